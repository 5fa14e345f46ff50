"""A tree of sums, from which items are drawn in proportion to their weights (Schaul et al. 2016, appendix B.2.1).

A node has `FAN` children, so that a million items lie seven levels deep and every level is one vectorised step. Each sum is
computed anew of all its children and never adjusted by a difference: rounding cannot add up, and a node above nothing but zeros is
zero itself, so that an item of weight zero is never drawn.
"""

import functools
import itertools
from collections.abc import Iterable

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl.donation import Donated
from purerl.transforms import scan, write

BITS = 3
FAN = 1 << BITS


def init(n: int, device: torch.device | None = None) -> Donated:
    """The tree over `n` items of weight zero: one float32 tensor, level after level, the root's children first, the items last."""
    return Donated(memory=TensorDict(sums=torch.zeros(sum(_widths(n)), device=device)))


def update(tree: Donated, n: int, items: Tensor, weights: Tensor) -> Donated:
    """Give items other weights. It *donates* the tree.

    Args:
        n: how many items the tree is over.
        items: `[M]` int64; the same item several times takes the same weight each time.
        weights: `[M]` float32, not negative.
    """

    node, value = items, weights
    for start in reversed(_starts(n)):
        tree, node = write(tree, start + node, {"sums": value}), node >> BITS
        value = tree.memory["sums"].view(-1, FAN)[(start >> BITS) + node].sum(-1)
    return tree


def total(tree: Donated) -> Tensor:
    """`[]` the sum of all weights."""
    return tree.memory["sums"][:FAN].sum()


def find(tree: Donated, n: int, heights: Tensor) -> tuple[Tensor, Tensor]:
    """The items at certain heights of the stack of all weights.

    Where a level's sums have been rounded otherwise than the one above, so that a height lies above all of them, it is one of the
    last item that has a weight.

    Args:
        heights: `[M]` float32, from 0 up to the sum of all weights.

    Returns:
        The items `[M]` int64, and their weights `[M]`, which are positive unless all are zero.
    """

    def level(carry: tuple[Tensor, Tensor], start: Tensor) -> tuple[tuple[Tensor, Tensor], dict]:
        heights, node = carry
        children = _children(tree, start, node)
        tops = list(itertools.accumulate(children))
        below = [(heights >= top) & (top < tops[-1]) for top in tops[:-1]]
        heights = heights - _sum([torch.where(b, x, 0.0) for b, x in zip(below, children, strict=False)])
        return (heights, (node << BITS) + _sum([b.float() for b in below]).long()), {}

    (_, items), _ = scan(
        level, (heights, torch.zeros_like(heights, dtype=torch.int64)), torch.tensor(_starts(n), device=heights.device)
    )
    return items, weights(tree, n)[items]


def weights(tree: Donated, n: int) -> Tensor:
    """`[n]` the weights of all items."""
    return tree.memory["sums"][sum(_widths(n)[:-1]) :][:n]


def _children(tree: Donated, start: Tensor | int, node: Tensor) -> list[Tensor]:
    """What lies below nodes in the level that begins at `start`, `FAN` times `[M]`: one by one, so that a level is one loop."""
    return [tree.memory["sums"][start + (node << BITS) + k] for k in range(FAN)]


def _sum(xs: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, xs)


def _widths(n: int) -> list[int]:
    """How many nodes each level has, a multiple of `FAN`."""
    widths = [-(-n // FAN) * FAN]
    while widths[0] > FAN:
        widths.insert(0, -(-widths[0] // FAN // FAN) * FAN)
    return widths


def _starts(n: int) -> list[int]:
    """Where each level begins."""
    return [0, *itertools.accumulate(_widths(n)[:-1])]
