"""Plain `torch.compile`, one's own or for versions of torch that the rest of this room was not tried with."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from purerl import tree

SETTINGS: dict[str, Any] = {"options": {"realize_opcount_threshold": 16}}  # of `torch.compile`

_numbers = itertools.count()


def loop(turn: Callable, carry: Sequence[Tensor], xs: Any, n_donated: int) -> tuple[Sequence[Tensor], Any]:
    """`for x in xs: carry, y = turn(carry, x)`, with the `y` stacked, as one loop of what `torch.compile` is tracing.

    Torch's loop gives back none of what goes into it, and copies what it carries: donated memory that a turn hands on unwritten is
    closed over instead. What a turn writes it copies.

    Args:
        n_donated: how many of the last tensors of the carry are donated memory.
    """
    from torch._higher_order_ops.scan import scan

    unwritten = _unwritten(turn, carry, xs, n_donated)
    moving = [i for i in range(len(carry)) if i not in unwritten]

    def moving_turn(moved: Sequence[Tensor], x: Any) -> tuple[list[Tensor], Any]:
        new, y = turn(_with(carry, moving, moved), x)
        return [new[i] for i in moving], y

    moved, ys = scan(moving_turn, [carry[i] for i in moving], xs)
    return _with(carry, moving, moved), ys


def _unwritten(turn: Callable, carry: Sequence[Tensor], xs: Any, n_donated: int) -> list[int]:
    """Which tensors of donated memory a turn hands on as they are: one is traced to see, of which nothing is computed."""
    if not n_donated:
        return []
    new, _ = turn(carry, tree.index(xs, 0))
    return [i for i in range(len(carry) - n_donated, len(carry)) if new[i] is carry[i]]


def _with(values: Sequence[Tensor], places: Sequence[int], new: Sequence[Tensor]) -> list[Tensor]:
    """The values with new ones in some places."""
    out = list(values)
    for i, x in zip(places, new, strict=True):
        out[i] = x
    return out


def build(f: Callable[..., Sequence[Tensor]]) -> Callable[[list[Tensor]], list[Tensor]]:
    """`f` of a list of tensors, as one whole graph."""

    def program(leaves: list[Tensor]) -> list[Tensor]:
        return list(f(*leaves))

    own_cache(program)
    return torch.compile(program, fullgraph=True, dynamic=False, **SETTINGS)


def own_cache(f: Any) -> None:
    """Give a function code of its own: there Dynamo keeps what it compiled, and by its name which shapes have changed. All that one
    `def` makes would share both."""
    f.__code__ = f.__code__.replace(co_name=f"{f.__name__}_{next(_numbers)}")
