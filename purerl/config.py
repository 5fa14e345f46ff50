"""Fields of the frozen config dataclasses, and the check of their values."""

import dataclasses
import math
from typing import Any


def number(default: float | None, help: str, low: float = 0.0, high: float = math.inf, **kwargs: Any) -> Any:
    """A float field in `[low, high]`: a leaf of `state.hyper`, so it can be swept by `vmap`."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high}, **kwargs)


def count(default: int, help: str, low: int = 1) -> Any:
    """An integer field of at least `low`; it shapes the program."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": math.inf})


def option(default: str, help: str, choices: tuple[str, ...]) -> Any:
    """A field with one of a few names as its value."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def setting(default: Any, help: str) -> Any:
    """Any other field."""
    return dataclasses.field(default=default, metadata={"help": help})


def check(config: Any) -> None:
    """Check every field of a config against its declaration.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{type(config).__name__}.{field.name}"
        if "choices" in field.metadata and value not in field.metadata["choices"]:
            raise ValueError(f"{name} = {value!r} is not one of {', '.join(field.metadata['choices'])}")
        if "low" in field.metadata and value is not None:
            low, high = field.metadata["low"], field.metadata["high"]
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                kind = "an integer" if isinstance(low, int) else "a number"
                bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise ValueError(f"{name} = {value!r} is not {kind} {bound}")
            if isinstance(low, int) and not isinstance(value, int):
                raise ValueError(f"{name} = {value!r} is not an integer at least {low}")


def sweepable(config: Any) -> dict[str, float]:
    """The float fields that are set, which become `state.hyper`."""
    fields = (f.name for f in dataclasses.fields(config) if isinstance(f.metadata.get("low"), float))
    return {name: float(getattr(config, name)) for name in fields if getattr(config, name) is not None}
