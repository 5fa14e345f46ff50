"""Algorithms by name: a config, the default config for an environment, and the maker."""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from purerl.algos import a2c, ppo
from purerl.algos.a2c import A2CConfig, make_a2c
from purerl.algos.ppo import PPOConfig, make_ppo
from purerl.base import Algorithm, EnvSpec


class Entry(NamedTuple):
    """One algorithm: its config class, `default_config(spec) -> config`, and `make(spec, config) -> Algorithm`."""

    config: type
    default_config: Callable[[EnvSpec], Any]
    make: Callable[..., Algorithm]


ALGORITHMS = {
    "a2c": Entry(A2CConfig, a2c.default_config, make_a2c),
    "ppo": Entry(PPOConfig, ppo.default_config, make_ppo),
}


def find(name: str) -> Entry:
    """The algorithm of a name.

    Raises:
        ValueError: no such algorithm; the nearest names are listed.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    near = difflib.get_close_matches(name, ALGORITHMS, n=3, cutoff=0.3)
    raise ValueError(f"algorithm: {name!r} is not one of {', '.join(ALGORITHMS)}" + (f"; did you mean {near[0]}?" if near else ""))


__all__ = ["ALGORITHMS", "A2CConfig", "Entry", "PPOConfig", "find", "make_a2c", "make_ppo"]
