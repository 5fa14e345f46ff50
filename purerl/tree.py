"""Functions over trees: a tensor, or any nesting of TensorDicts, TensorClasses, tuples and dicts of tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

map = pytree.tree_map
leaves = pytree.tree_leaves


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves are stacked along a new first axis."""
    return map(lambda *xs: torch.stack(xs), *trees)


def cat(trees: Sequence[Any]) -> Any:
    """One tree whose leaves are concatenated along their first axis."""
    return map(lambda *xs: torch.cat(xs), *trees)


def index(tree: Any, i: Any) -> Any:
    """The tree of `leaf[i]`."""
    return map(lambda x: x[i], tree)


def where(mask: Tensor, a: Any, b: Any) -> Any:
    """Choose leaf-wise by a mask over the leaves' leading axes."""
    return map(lambda x, y: torch.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y), a, b)


def ravel(tree: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """All leaves as one vector `[P]`, and the function that cuts such a vector into views of the tree's shapes."""
    flat, spec = pytree.tree_flatten(tree)
    shapes, sizes = [x.shape for x in flat], [x.numel() for x in flat]

    def unravel(vector: Tensor) -> Any:
        return pytree.tree_unflatten([x.reshape(s) for x, s in zip(vector.split(sizes), shapes, strict=True)], spec)

    return torch.cat([x.reshape(-1) for x in flat]), unravel
