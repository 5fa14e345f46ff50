"""Fields of the frozen config dataclasses, and the check of their values."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl.base import EnvSpec, check_spec

C = TypeVar("C")


def number(default: float | None, help: str, low: float = 0.0, high: float = math.inf, needs: str = "") -> Any:
    """A float field in `[low, high]`, which shapes no program: it can be swept.

    Args:
        needs: the bool field without which it has no effect.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "kind": "a number", "low": low, "high": high, "leaf": True, "needs": needs}
    )


def length(default: int, help: str) -> Any:
    """An integer field of at least 1 that shapes no program: it can be swept too."""
    return dataclasses.field(
        default=default, metadata={"help": help, "kind": "an integer", "low": 1, "high": math.inf, "leaf": True}
    )


def count(default: int, help: str, low: int = 1) -> Any:
    """An integer field of at least `low`; it shapes the program."""
    return dataclasses.field(default=default, metadata={"help": help, "kind": "an integer", "low": low, "high": math.inf})


def constant(default: float, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A float field in `[low, high]` that shapes the program: it cannot be swept."""
    return dataclasses.field(default=default, metadata={"help": help, "kind": "a number", "low": low, "high": high})


def counts(default: tuple[int, ...], help: str, low: int = 1) -> Any:
    """A tuple of integers of at least `low`; it shapes the program."""
    return dataclasses.field(default=default, metadata={"help": help, "each": low})


def option(default: str, help: str, choices: tuple[str, ...]) -> Any:
    """A field with one of a few names as its value."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def setting(default: Any, help: str) -> Any:
    """Any other field; its annotation says of what type: bool, str, or a tuple of one of them."""
    return dataclasses.field(default=default, metadata={"help": help})


def given(config: C | None, default: Callable[[EnvSpec], C], spec: EnvSpec) -> C:
    """The config that an algorithm is made from for an environment: the user's, or the default one where there is none.

    Raises:
        ValueError: the spec is none, or the config another algorithm's.
    """
    check_spec(spec)
    usual = default(spec)
    if config is None:
        return usual
    if not isinstance(config, type(usual)):
        raise ValueError(f"config: {config!r} is no {type(usual).__name__}")
    return config


def check(config: Any) -> None:
    """Check every field of a config against its declaration.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    kinds = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if not (_fits(value, kind) and _in_range(value, field.metadata)):
            raise ValueError(f"{type(config).__name__}.{field.name} = {value!r} is not {_allowed(field, kind)}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's type; an integer is a float too, a bool is neither."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(x, get_args(kind)[0]) for x in value)
    if get_args(kind):  # a union
        return any(_fits(value, part) for part in get_args(kind))
    if kind in (int, float):
        return isinstance(value, numbers.Real if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _in_range(value: Any, metadata: Any) -> bool:
    if "choices" in metadata:
        return value in metadata["choices"]
    if "each" in metadata:
        return all(x >= metadata["each"] for x in value)
    return "low" not in metadata or value is None or metadata["low"] <= value <= metadata["high"]


def _allowed(field: dataclasses.Field, kind: Any) -> str:
    """What a field's value may be, in words."""
    match field.metadata:
        case {"choices": choices}:
            return f"one of {', '.join(choices)}"
        case {"each": low}:
            return f"a tuple of integers at least {low}, such as {field.default}"
        case {"kind": kind, "low": low, "high": high}:
            return f"{kind} at least {low}" if high == math.inf else f"{kind} between {low} and {high}"
    return "True or False" if kind is bool else f"of type {kind.__name__ if isinstance(kind, type) else kind}"


def check_needs(config: Any, name: str) -> None:
    """Raise a `ValueError` if a field that somebody has set has no effect in a config."""
    (needs,) = (f.metadata.get("needs") for f in dataclasses.fields(config) if f.name == name)
    if needs and not getattr(config, needs):
        raise ValueError(f"{type(config).__name__}.{name} = {getattr(config, name)} has no effect without {needs}")


def sweepable(config: Any) -> dict[str, float]:
    """The fields that are set and shape no program, as an algorithm's `hyper`."""
    fields = (f.name for f in dataclasses.fields(config) if f.metadata.get("leaf"))
    return {name: float(getattr(config, name)) for name in fields if getattr(config, name) is not None}


def start(numbers: Mapping[str, float], hyper: Mapping[str, Tensor | float], device: torch.device | None = None) -> TensorDict:
    """The numbers of an algorithm as a state holds them, float32 `[]` each; those in `hyper` in the start values' place.

    Raises:
        ValueError: `hyper` names a number that there is not, or its value is neither a number nor a float32 tensor `[]`.
    """
    for name, x in hyper.items():
        if name not in numbers:
            raise ValueError(f"hyper: there is no number {name!r} to sweep; there are {', '.join(numbers) or 'none'}")
        kind = (x.dtype, list(x.shape)) if isinstance(x, Tensor) else type(x).__name__
        if kind != (torch.float32, []) and not _fits(x, float):
            raise ValueError(
                f"hyper: {name} is {kind}, but (torch.float32, []) is wanted, of a mapped function in each lane, or a number"
            )
    values = {**numbers, **hyper}
    return TensorDict({k: x if isinstance(x, Tensor) else torch.tensor(float(x), device=device) for k, x in values.items()})
