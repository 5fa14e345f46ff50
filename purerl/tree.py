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


def index(tree: Any, i: Any) -> Any:
    """The tree of `leaf[i]`."""
    return map(lambda x: x[i], tree)


def where(mask: Tensor, a: Any, b: Any) -> Any:
    """Choose leaf-wise by a mask over the leaves' leading axes."""
    return map(lambda x, y: torch.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y), a, b)


def pack(tree: Any, axes: int = 0) -> tuple[dict[torch.dtype, Tensor], Callable[[dict[torch.dtype, Tensor]], Any]]:
    """All leaves side by side, one tensor `[*lead, n]` for each dtype, where `lead` are the `axes` leading axes the leaves share.

    Returns:
        The packed tensors, and the function that cuts such tensors, with any leading axes, into views of the tree's shapes.
    """
    flat, spec = pytree.tree_flatten(tree)
    groups: dict[torch.dtype, list[int]] = {}
    for i, x in enumerate(flat):
        groups.setdefault(x.dtype, []).append(i)
    shapes = [x.shape[axes:] for x in flat]

    def unpack(packed: dict[torch.dtype, Tensor]) -> Any:
        out: list[Any] = [None] * len(shapes)
        for dtype, members in groups.items():
            parts = packed[dtype].split([shapes[i].numel() for i in members], -1)
            for i, part in zip(members, parts, strict=True):
                out[i] = part.reshape(part.shape[:-1] + shapes[i])
        return pytree.tree_unflatten(out, spec)

    packed = {
        dtype: torch.cat([flat[i].reshape((*flat[i].shape[:axes], -1)) for i in members], -1) for dtype, members in groups.items()
    }
    return packed, unpack


def ravel(tree: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """All leaves, of one dtype, as one vector `[P]`, and the function that cuts such a vector into views of the tree's shapes."""
    packed, unpack = pack(tree)
    ((dtype, flat),) = packed.items()
    return flat, lambda vector: unpack({dtype: vector})
