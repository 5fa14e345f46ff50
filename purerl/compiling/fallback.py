"""Plain `torch.compile`, one's own or for versions of torch that the rest of this room was not tried with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def loop(turn: Callable, carry: Sequence[Tensor], xs: Any) -> tuple[Sequence[Tensor], Any]:
    """`for x in xs: carry, y = turn(carry, x)`, with the `y` stacked, as one loop of what `torch.compile` is tracing."""
    from torch._higher_order_ops.scan import scan

    return scan(turn, carry, xs)


def build(f: Callable[..., Sequence[Tensor]]) -> Callable[[list[Tensor]], list[Tensor]]:
    """`f` of a list of tensors, as one whole graph."""

    def program(leaves: list[Tensor]) -> list[Tensor]:
        return list(f(*leaves))

    # Dynamo keeps what it compiled with the code object: each program needs one of its own, or all would share a cache.
    program.__code__ = program.__code__.replace()
    return torch.compile(program, fullgraph=True, dynamic=False, options={"realize_opcount_threshold": 16})
