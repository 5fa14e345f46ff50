"""An environment of the outside world as bytes, from which another process goes on with it as if nothing had happened."""

import contextlib
import copy
import io
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import EzPickle

from purerl.envs import RAISED, HostEnv
from purerl.envs.generators import current, install

MOST = 1 << 28  # bytes of all environments
STEPS, SECONDS = 50, 0.2  # of a trial, whichever comes first
PATIENCE = 30.0  # seconds that a trial may take in all


class _Pickler(cloudpickle.Pickler):
    """Takes objects as they are where their `EzPickle` would have them made anew; of ALE's emulator, which cannot be taken, its
    state."""

    def reducer_override(self, obj: Any) -> Any:
        ale = sys.modules.get("ale_py")
        if ale is not None and isinstance(obj, ale.AtariEnv):
            rest = {name: x for name, x in obj.__dict__.items() if name != "ale"}
            state = obj.ale.cloneState(include_rng=True)
            return _game, (type(obj), obj._ezpickle_args, obj._ezpickle_kwargs, rest, state)
        if isinstance(obj, EzPickle):
            return _bare, (type(obj),), obj.__dict__, None, None, _fill
        return super().reducer_override(obj)


def _bare(kind: Any) -> Any:
    return kind.__new__(kind)


def _fill(obj: Any, attributes: dict[str, Any]) -> None:
    obj.__dict__.update(attributes)


def _game(kind: Callable, args: tuple, options: dict[str, Any], rest: dict[str, Any], state: Any) -> Any:
    env = kind(*args, **options)
    env.__dict__.update(rest)
    env.ale.restoreState(state)
    return env


def dumps(env: Any) -> bytes:
    """An environment, with its wrappers and their counters and the generators that it owns.

    Raises:
        Exception: what pickling raises where something in it cannot be.
    """
    file = io.BytesIO()
    _Pickler(file).dump(env)
    return file.getvalue()


def loads(data: bytes) -> Any:
    """The environment that `dumps` was given, as it was then. It runs what is in the bytes, as any pickle."""
    return pickle.loads(data)


def obstacle(host: HostEnv, sampler: str, n: int) -> str:
    """Why `n` environments cannot be saved while a sampler collects from them, in words; empty where they can be.

    That is tried with one more, for some steps in a process that is thrown away: a copy must go on as the environment does.
    """
    if sampler == "buffered":
        return "the next batch is collected while the run learns from the last one"
    if host.make is not None and sampler != "native":
        return _apart(partial(_try, host.make, n))
    assert host.make_vec is not None
    return _apart(partial(_try, partial(host.make_vec, 1, 1), n))


def _try(make: Callable[[], Any], n: int) -> str:
    env = make()
    env.action_space.seed(0)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(2 * STEPS)]
    _play(env, actions[:STEPS])
    data, generators = dumps(env), current()
    if len(data) * n > MOST:
        return f"one of {n} takes {len(data) / 1e6:,.1f} MB"
    seen = _play(env, actions[STEPS:])
    install(generators)
    again = _play(loads(data), actions[STEPS : STEPS + len(seen)], np.inf)
    try:
        np.testing.assert_equal(again, seen)
    except AssertionError:
        return "a copy of one does not go on as it does"
    return ""


def _play(env: Any, actions: Sequence[Any], seconds: float = SECONDS) -> list[Any]:
    """What an environment shows for these actions, as far as they go in so many seconds."""
    start, over = time.perf_counter(), False
    seen: list[Any] = []
    for action in actions:
        if time.perf_counter() - start > seconds and seen:
            break
        if over:
            shown, over = env.reset()[0], False
        else:
            shown = env.step(action)[:4]
            over = not isinstance(env, gym.vector.VectorEnv) and bool(shown[2] or shown[3])
        seen.append(copy.deepcopy(shown))  # it may write into the same array again
    return seen


def _apart(f: Callable[[], str]) -> str:
    """What `f()` says, or what it raises, in a fork of this process, whatever becomes of that."""
    result, there = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: one that waits for their locks is given up
        child = os.fork()
    if child == 0:
        _say_and_end(f, there)
    os.close(there)
    try:
        if not select.select([result], [], [], PATIENCE)[0]:
            return f"to try it took more than {PATIENCE:g} s"
        said = os.read(result, 1 << 16).decode(errors="replace")
        return said[1:] if said else "a process that tried it died"
    finally:
        os.close(result)
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what its environment has started
        os.waitpid(child, 0)


def _say_and_end(f: Callable[[], str], there: int) -> None:
    """In the fork: silently, as the leader of a group of its own."""
    try:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        torch.set_num_threads(1)
        try:
            said = f()
        except RAISED as error:
            said = f"{type(error).__name__}: {error}"
        os.write(there, f"={said}".encode()[: 1 << 12])
    finally:
        os._exit(0)
