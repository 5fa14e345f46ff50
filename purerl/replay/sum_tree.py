"""A tree of sums, from which items are drawn in proportion to their weights (Schaul et al. 2016, appendix B.2.1).

A node has `FAN` children, so that a million items lie five levels deep and every level is one vectorised step. Each sum is
computed anew of all its children and never adjusted by a difference: rounding cannot add up, and a node above nothing but zeros is
zero itself, so that an item of weight zero is never drawn.
"""

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl.donation import Donated
from purerl.transforms import write

FAN = 16


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
        tree = write(tree, start + node, {"sums": value})
        node = node // FAN
        value = _children(tree, start, node).sum(-1)
    return tree


def total(tree: Donated) -> Tensor:
    """`[]` the sum of all weights."""
    return tree.memory["sums"][:FAN].sum()


def find(tree: Donated, n: int, heights: Tensor) -> tuple[Tensor, Tensor]:
    """The items at certain heights of the stack of all weights.

    Args:
        heights: `[M]` float32, from 0 up to the sum of all weights.

    Returns:
        The items `[M]` int64, and their weights `[M]`, which are positive unless all are zero.
    """
    node, weight = torch.zeros_like(heights, dtype=torch.int64), heights
    place = torch.arange(FAN, device=heights.device)
    for start in _starts(n):
        children = _children(tree, start, node)
        below = children.cumsum(-1)
        last = (place * (children > 0)).amax(-1)
        child = torch.minimum((below <= heights[:, None]).sum(-1), last)
        weight = children.gather(-1, child[:, None]).squeeze(-1)
        heights = torch.clamp(heights - (below.gather(-1, child[:, None]).squeeze(-1) - weight), min=0.0)
        node = node * FAN + child
    return node, weight


def weights(tree: Donated, n: int) -> Tensor:
    """`[n]` the weights of all items."""
    start = _starts(n)[-1]
    return tree.memory["sums"][start : start + n]


def _children(tree: Donated, start: int, node: Tensor) -> Tensor:
    """`[M, FAN]` what lies below nodes, in the level that begins at `start`."""
    return tree.memory["sums"].view(-1, FAN)[start // FAN + node]


def _widths(n: int) -> list[int]:
    """How many nodes each level has, a multiple of `FAN`."""
    widths = [-(-n // FAN) * FAN]
    while widths[0] > FAN:
        widths.insert(0, -(-widths[0] // FAN // FAN) * FAN)
    return widths


def _starts(n: int) -> list[int]:
    """Where each level begins."""
    widths = _widths(n)
    return [sum(widths[:i]) for i in range(len(widths))]
