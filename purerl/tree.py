"""Functions over trees: a tensor, or any nesting of TensorDicts, TensorClasses, tuples, lists and dicts of tensors."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase, is_tensorclass
from torch import Tensor

from purerl.donation import Donated


class Node(NamedTuple):
    """The structure of a tree without its leaves, comparable and hashable; a leaf's is None.

    Attributes:
        cls: the container.
        keys: of the children; empty for tuples and lists.
        children: their structures.
        size: the number of leaves.
        batch_dims: how many leading axes a TensorDict counts as its batch size.
    """

    cls: type
    keys: tuple[str, ...]
    children: tuple[Any, ...]
    size: int
    batch_dims: int = 0


def size(structure: Node | None) -> int:
    """The number of leaves."""
    return 1 if structure is None else structure.size


def flatten(tree: Any) -> tuple[list[Any], Node | None]:
    """The leaves in order, and the structure that `unflatten` rebuilds the tree from."""
    found: list[Any] = []
    return found, _flatten(tree, found)


def _flatten(tree: Any, found: list[Any]) -> Node | None:
    cls = type(tree)
    if isinstance(tree, Tensor):
        found.append(tree)
        return None
    before = len(found)
    if cls is TensorDict:
        items = tree._tensordict  # what `items` gives one by one
        children = tuple([_flatten(x, found) for x in items.values()])
        return Node(cls, tuple(items), children, len(found) - before, len(tree.batch_size))
    if is_tensorclass(cls):
        return Node(cls, (), (_flatten(tree._tensordict, found),), len(found) - before)
    if issubclass(cls, TensorDictBase):
        return _flatten(TensorDict(dict(tree.items()), tree.batch_size), found)
    if issubclass(cls, dict):
        return Node(dict, tuple(tree), tuple([_flatten(x, found) for x in tree.values()]), len(found) - before)
    if issubclass(cls, tuple | list):
        return Node(cls, (), tuple([_flatten(x, found) for x in tree]), len(found) - before)
    found.append(tree)
    return None


def unflatten(structure: Node | None, values: Sequence[Any]) -> Any:
    """The tree of a structure with these leaves. A TensorDict's batch size is read off its first leaf."""
    return _unflatten(structure, list(values)[::-1], torch.Size())


def _unflatten(structure: Node | None, rest: list[Any], batch_size: torch.Size) -> Any:
    if structure is None:
        return rest.pop()
    cls, keys, parts, size, batch_dims = structure
    if cls is TensorDict and size:
        batch_size = rest[-1].shape[:batch_dims]
    children = [rest.pop() if part is None else _unflatten(part, rest, batch_size) for part in parts]
    if cls is TensorDict:
        items: dict[Any, Any] = dict(zip(keys, children, strict=True))
        return TensorDict._new_unsafe(items, batch_size=batch_size, nested=False)  # checks nothing: faster
    if cls is dict:
        return dict(zip(keys, children, strict=True))
    if is_tensorclass(cls):
        return _rebuilt(cls, children[0])
    return cls(*children) if hasattr(cls, "_fields") else cls(children)


def _rebuilt(cls: Any, fields: TensorDict) -> Any:
    """A TensorClass with the fields of another instance: `_from_tensordict` without a look at their names, nor `__post_init__`."""
    if torch.compiler.is_compiling():
        return cls._from_tensordict(fields)
    new = cls.__new__(cls)
    new.__dict__.update(_tensordict=fields, _non_tensordict={})
    return new


def batched(structure: Node | None, more: int) -> Node | None:
    """The structure whose TensorDicts count `more` leading axes as batch size, fewer if negative."""
    if structure is None:
        return None
    dims = max(0, structure.batch_dims + more) if structure.cls is TensorDict else 0
    children = tuple([batched(x, more) for x in structure.children])
    return Node(structure.cls, structure.keys, children, structure.size, dims)


def donated(structure: Node | None) -> list[bool]:
    """For each leaf whether it is donated memory."""
    if structure is None:
        return [False]
    if structure.cls is Donated:
        return [True] * structure.size
    return [found for child in structure.children for found in donated(child)]


def without_memory(tree: Any) -> Any:
    """The tree with nothing in what is donated."""
    found, shape_of_tree = flatten(tree)
    rest = [x for x, is_donated in zip(found, donated(shape_of_tree), strict=True) if not is_donated]
    return unflatten(_without_memory(shape_of_tree), rest)


def _without_memory(structure: Node | None) -> Node | None:
    if structure is None:
        return None
    if structure.cls is Donated:
        return Node(Donated, (), (Node(TensorDict, (), (), 0),), 0)
    children = tuple([_without_memory(x) for x in structure.children])
    return structure._replace(children=children, size=sum(size(x) for x in children))


def map(f: Callable, *trees: Any) -> Any:
    """The tree of `f(leaf, ...)` over the leaves of trees of one structure; what has a name is found by it, whatever the order.

    Raises:
        ValueError: other names, or not as many leaves.
    """
    first, shape_of_tree = flatten(trees[0])
    columns = [first, *(_ordered(shape_of_tree, *flatten(tree)[::-1]) for tree in trees[1:])]
    return unflatten(shape_of_tree, [f(*xs) for xs in zip(*columns, strict=True)])


def _ordered(wanted: Node | None, found: Node | None, leaves: list[Any]) -> list[Any]:
    """A tree's leaves in the order that another one has them."""
    if wanted is None or found is None or wanted == found or len(wanted.children) != len(found.children):
        return leaves
    ends = list(itertools.accumulate(size(child) for child in found.children))
    parts = [leaves[end - size(child) : end] for child, end in zip(found.children, ends, strict=True)]
    places = list(range(len(parts)))
    if wanted.keys and found.keys and wanted.keys != found.keys:
        if set(wanted.keys) != set(found.keys):
            raise ValueError(f"tree: one has {', '.join(wanted.keys)}, but another {', '.join(found.keys)}")
        places = [found.keys.index(name) for name in wanted.keys]
    children = zip(wanted.children, places, strict=True)
    return [x for child, i in children for x in _ordered(child, found.children[i], parts[i])]


def leaves(tree: Any) -> list[Any]:
    """The leaves in order."""
    return flatten(tree)[0]


def structure(tree: Any) -> Node | None:
    """What `unflatten` rebuilds the tree from."""
    return flatten(tree)[1]


def replace(tree: Any, **fields: Any) -> Any:
    """A TensorClass with some fields changed (its own `replace` copies all of them, which is slow to trace)."""
    inner = tree._tensordict
    return type(tree)._from_tensordict(TensorDict({**dict(inner.items()), **fields}, batch_size=inner.batch_size))


def copy(tree: Any) -> Any:
    """A copy whose leaves are contiguous and share no memory; what is donated is not copied.

    Results that share memory, or show one number many times (what `torch.vmap` makes of an output that does not depend on the
    mapped input), would be another kind of input to the compiled function that they go back into.
    """
    found, shape_of_tree = flatten(tree)
    marks = donated(shape_of_tree)
    copies = [x if keep else x.clone(memory_format=torch.contiguous_format) for x, keep in zip(found, marks, strict=True)]
    return unflatten(shape_of_tree, copies)


def to(tree: Any, device: torch.device) -> Any:
    """The tree with its leaves on a device."""
    return map(lambda x: x.to(device), tree)


def expand(tree: Any, n: int) -> Any:
    """The tree `n` times along a new first axis, without taking memory."""
    return unflatten(batched(structure(tree), 1), [x.expand(n, *x.shape) for x in leaves(tree)])


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves are stacked along a new first axis."""
    columns = zip(*[leaves(tree) for tree in trees], strict=True)
    return unflatten(batched(structure(trees[0]), 1), [torch.stack(xs) for xs in columns])


def concatenate(trees: Sequence[Any]) -> Any:
    """One tree whose leaves are joined along their first axis; they own their memory."""
    return map(lambda *xs: torch.cat(xs), *trees)


def index(tree: Any, i: Any) -> Any:
    """The tree of `leaf[i]`."""
    found, shape_of_tree = flatten(tree)
    return unflatten(batched(shape_of_tree, -1) if isinstance(i, int) else shape_of_tree, [x[i] for x in found])


def where(mask: Tensor, a: Any, b: Any) -> Any:
    """Choose leaf-wise by a mask over the leaves' leading axes."""
    return map(lambda x, y: torch.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y), a, b)


def pack(tree: Any, axes: int = 0, apart: float = math.inf) -> tuple[dict[Any, Any], Callable[[dict[Any, Any]], Any]]:
    """All leaves side by side, one tensor `[*lead, n]` for each dtype, where `lead` are the `axes` leading axes the leaves share.

    Args:
        apart: how many numbers a leaf, without its leading axes, may have so that it is packed.

    Returns:
        The packed tensors by dtype; as they are, the larger ones by their place among all leaves, and those that are donated in
        one `Donated` (if there are any); and the function that cuts such tensors, with any leading axes, into views of the
        tree's shapes.
    """
    flat, shape_of_tree = flatten(tree)
    shapes = [x.shape[axes:] for x in flat]
    memory = [i for i, is_donated in enumerate(donated(shape_of_tree)) if is_donated]
    large = [i for i, shape in enumerate(shapes) if i not in memory and shape.numel() > apart]
    groups: dict[torch.dtype, list[int]] = {}
    for i, x in enumerate(flat):
        if i not in memory and i not in large:
            groups.setdefault(x.dtype, []).append(i)

    def unpack(packed: dict[Any, Any]) -> Any:
        out: list[Any] = [None] * len(shapes)
        for i in large:
            out[i] = packed[i]
        for i, x in zip(memory, leaves(packed.get(Donated, ())), strict=True):
            out[i] = x
        for dtype, members in groups.items():
            parts = packed[dtype].split([shapes[i].numel() for i in members], -1)
            for i, part in zip(members, parts, strict=True):
                out[i] = part.reshape(part.shape[:-1] + shapes[i])
        return unflatten(shape_of_tree, out)

    packed: dict[Any, Any] = {
        dtype: torch.cat([flat[i].reshape((*flat[i].shape[:axes], -1)) for i in members], -1) for dtype, members in groups.items()
    }
    packed |= {i: flat[i] for i in large}
    if memory:
        packed[Donated] = Donated(memory=TensorDict({str(i): flat[i] for i in memory}))
    return packed, unpack


def ravel(tree: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """All leaves, of one dtype, as one vector `[P]`, and the function that cuts such a vector into views of the tree's shapes."""
    packed, unpack = pack(tree)
    ((dtype, flat),) = packed.items()
    return flat, lambda vector: unpack({dtype: vector})
