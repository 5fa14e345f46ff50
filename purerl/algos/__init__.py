"""Algorithms by name, the package's and one's own: what makes them, and the config class it takes."""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from purerl.algos.a2c import A2CConfig, make_a2c
from purerl.algos.c51 import C51Config, make_c51
from purerl.algos.crossq import make_crossq
from purerl.algos.ddpg import DDPGConfig, make_ddpg
from purerl.algos.dqn import DQNConfig, make_dqn
from purerl.algos.droq import make_droq
from purerl.algos.ppo import PPOConfig, make_ppo
from purerl.algos.pqn import PQNConfig, make_pqn
from purerl.algos.qrdqn import QRDQNConfig, make_qrdqn
from purerl.algos.rainbow import RainbowConfig, make_rainbow
from purerl.algos.redq import make_redq
from purerl.algos.sac import SACConfig, make_sac
from purerl.algos.sac_discrete import SACDiscreteConfig, make_sac_discrete
from purerl.algos.td3 import TD3Config, make_td3
from purerl.algos.tqc import make_tqc
from purerl.algos.xqc import make_xqc
from purerl.base import Algorithm, EnvSpec

Maker = Callable[..., Algorithm]  # make(spec, config=None), or make(spec) where there is nothing to configure
ALGORITHMS: dict[str, Maker] = {
    "a2c": make_a2c,
    "c51": make_c51,
    "crossq": make_crossq,
    "ddpg": make_ddpg,
    "dqn": make_dqn,
    "droq": make_droq,
    "ppo": make_ppo,
    "pqn": make_pqn,
    "qrdqn": make_qrdqn,
    "rainbow": make_rainbow,
    "redq": make_redq,
    "sac": make_sac,
    "sac_discrete": make_sac_discrete,
    "td3": make_td3,
    "tqc": make_tqc,
    "xqc": make_xqc,
}


def find(name: str) -> Maker:
    """What makes the algorithm of a name: one of `ALGORITHMS`, or `my_module:make_mine`, for which the module is imported.

    Raises:
        ValueError: no such algorithm (the nearest names are listed), no such function in the module, or importing it raises.
        ImportError: no such module.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if ":" in name:
        return _import(name)
    near = difflib.get_close_matches(name, ALGORITHMS, n=3, cutoff=0.3)
    advice = f"; did you mean {near[0]}?" if near else "; one of your own is my_module:make_mine"
    raise ValueError(f"algorithm: {name!r} is not one of {', '.join(ALGORITHMS)}{advice}")


def _import(name: str) -> Maker:
    module_name, _, maker = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        gone = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        advice = f"; the module {module_name!r} is looked for in the working folder and on PYTHONPATH" if gone else ""
        raise ImportError(f"algorithm: {name!r} cannot be imported ({error}){advice}") from error
    except Exception as error:
        raise ValueError(f"algorithm: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, maker, None)
    if found is None:
        near = difflib.get_close_matches(maker, vars(module), n=1, cutoff=0.5)
        raise ValueError(
            f"algorithm: {module_name} has no {maker!r}" + (f"; did you mean {module_name}:{near[0]}?" if near else "")
        )
    if not callable(found):
        raise ValueError(f"algorithm: {name!r} is {type(found).__name__}, not a function make(spec, config) -> Algorithm")
    return found


def config_class(name: str) -> type | None:
    """The config dataclass that the maker of a name takes, as it annotates its `config`; None if it takes none.

    Raises:
        ValueError: the annotation is no dataclass; and as `find`.
    """
    maker: Any = find(name)
    while isinstance(maker, partial):
        maker = maker.func
    try:
        hint = typing.get_type_hints(maker).get("config")
    except NameError as error:
        raise ValueError(f"algorithm: {name!r} has an annotation that is not defined ({error})") from None
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind not in (None, type(None))]
    if not kinds:
        return None
    if len(kinds) > 1 or not dataclasses.is_dataclass(kinds[0]):
        raise ValueError(f"algorithm: {name!r} annotates its config with {hint}, which is no dataclass")
    return typing.cast(type, kinds[0])


def make(name: str, spec: EnvSpec, config: Any = None) -> Algorithm:
    """The algorithm of a name for an environment's spec, with its default config for it when `config` is None.

    Raises:
        ValueError: what it makes is no `Algorithm`, or it raises; and as `find`.
    """
    maker = find(name)
    try:
        algo = maker(spec) if config is None else maker(spec, config)
    except (ValueError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"algorithm: {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(algo, Algorithm):
        raise ValueError(f"algorithm: {name!r} returned {type(algo).__name__}, not an Algorithm")
    for field in ("n_envs", "n_steps"):
        n = getattr(algo, field)
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"algorithm: {name!r} has {field} = {n!r}, not an integer at least 1")
    return algo


def default_config(name: str, spec: EnvSpec) -> Any:
    """The config of the algorithm that is made without one; None if it takes none.

    Raises:
        ValueError: the algorithm does not say what it was made from; and as `make`.
    """
    kind = config_class(name)
    if kind is None:
        return None
    config = make(name, spec).config
    if not isinstance(config, kind):
        raise ValueError(f"algorithm: {name!r} takes a {kind.__name__}, but its config is {config!r}; put it into the record")
    return config


__all__ = [
    "ALGORITHMS",
    "A2CConfig",
    "C51Config",
    "DDPGConfig",
    "DQNConfig",
    "Maker",
    "PPOConfig",
    "PQNConfig",
    "QRDQNConfig",
    "RainbowConfig",
    "SACConfig",
    "SACDiscreteConfig",
    "TD3Config",
    "config_class",
    "default_config",
    "find",
    "make",
    "make_a2c",
    "make_c51",
    "make_crossq",
    "make_ddpg",
    "make_dqn",
    "make_droq",
    "make_ppo",
    "make_pqn",
    "make_qrdqn",
    "make_rainbow",
    "make_redq",
    "make_sac",
    "make_sac_discrete",
    "make_td3",
    "make_tqc",
    "make_xqc",
]
