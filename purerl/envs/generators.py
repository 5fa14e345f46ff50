"""The global generators of numpy, Python and torch: environments that draw from them get streams of their own."""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

_turn = threading.RLock()


class Generators(NamedTuple):
    """The states of the three global generators."""

    numpy: dict
    python: tuple
    torch: torch.Tensor


def seeded(seed: int) -> Generators:
    """The states that a seed of 32 bits gives; the global generators stay as they are."""
    numpy: Any = np.random.RandomState(seed).get_state(legacy=False)
    return Generators(numpy, random.Random(seed).getstate(), torch.Generator().manual_seed(seed).get_state())


def current() -> Generators:
    """The states as they are."""
    numpy: Any = np.random.get_state(legacy=False)
    return Generators(numpy, random.getstate(), torch.random.get_rng_state())


def install(states: Generators) -> None:
    """Give the global generators these states."""
    np.random.set_state(states.numpy)
    random.setstate(states.python)
    torch.random.set_rng_state(states.torch)


@contextmanager
def stream(states: Generators) -> Iterator[list[Generators]]:
    """What runs inside draws from these states; the global generators are afterwards as before. The list gets the new states.

    They are the process's: another thread waits until this one has put them back.
    """
    with _turn:
        outside, after = current(), [states]
        install(states)
        try:
            yield after
        finally:
            after[0] = current()
            install(outside)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What runs inside draws as it would and goes where it likes, but generators and working folder are afterwards as before."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was deleted
        folder = None
    try:
        with stream(current()):
            yield
    finally:
        if folder is not None:
            os.chdir(folder)


class Stream(NamedTuple):
    """An environment's stream of global randomness.

    Attributes:
        states: None where nobody draws.
        left: for how many steps it is still watched.
        used: whether it, or one that was stepped beside it, has drawn.
    """

    states: Generators | None
    left: int
    used: bool


class Streams:
    """A stream of global randomness for each environment: what it draws depends on its seed alone, whoever steps it.

    Changing streams costs more than a fast environment's step, so it is done while the environments are made, begun and watched for
    their first steps, and after that only if one of them has drawn.

    Args:
        seeds: of the environments.
        watched: for how many steps.
    """

    def __init__(self, seeds: Sequence[int], watched: int = 100) -> None:
        self._watched = watched
        self._begin(seeds)

    def reseed(self, seeds: Sequence[int]) -> None:
        """Begin the streams of other seeds, and watch again; those of the same seeds go on."""
        if list(seeds) != self._seeds:
            self._begin(seeds)

    def _begin(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._streams = [seeded(seed) for seed in seeds]
        self._left, self._used = self._watched, False
        self.free = False

    def save(self) -> list["Stream"]:
        """Each environment's stream, as it stands."""
        return [Stream(None if self.free else self._streams[j], self._left, self._used) for j in range(len(self._seeds))]

    def restore(self, saved: Sequence["Stream"]) -> None:
        """Go on with what `save` gave, of environments that other processes may have stepped."""
        self.free = all(one.states is None for one in saved)
        self._left, self._used = max(one.left for one in saved), any(one.used for one in saved)
        self._streams = [] if self.free else [one.states or x for one, x in zip(saved, self._streams, strict=True)]

    def call(self, j: int, f: Callable, *args: Any, **kwargs: Any) -> Any:
        """`f(*args, **kwargs)` with environment `j`'s stream in the place of the global generators'; at once where nobody draws."""
        if self.free:
            return f(*args, **kwargs)
        before = self._streams[j]
        with stream(before) as after:
            result = f(*args, **kwargs)
        self._streams[j] = after[0]
        self._used |= not _equal(before, after[0])
        return result

    def stepped(self) -> None:
        """All environments have taken a step."""
        self._left -= 1
        if self._left == 0 and not self._used:
            self.free, self._streams = True, []


def _equal(a: Generators, b: Generators) -> bool:
    """Whether nothing was drawn in between."""
    x, y = a.numpy["state"], b.numpy["state"]
    same = x["pos"] == y["pos"] and a.numpy["has_gauss"] == b.numpy["has_gauss"] and np.array_equal(x["key"], y["key"])
    return same and a.python == b.python and torch.equal(a.torch, b.torch)
