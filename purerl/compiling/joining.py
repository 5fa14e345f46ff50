"""Parts that lie side by side in one tensor, put together in their order, are a part of that tensor, and need no copy.

Parameters are cut out of the packed state of a run, put together to the one vector that an optimizer takes a step of, cut again,
and packed again: without this their numbers would be copied each time.
"""

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from purerl.compiling import graphs

aten = torch.ops.aten
RESHAPES = (aten.reshape.default, aten.view.default)
LOOPS = (torch.ops.higher_order.scan, torch.ops.higher_order.while_loop)


class Part(NamedTuple):
    """Those numbers of a tensor that are between two places along its last axis."""

    whole: Node
    start: int
    stop: int


def join(graph: Graph) -> None:
    """Replace what is put together of neighbours, all of it or some."""
    handed = {x for node in graph.nodes if node.target in LOOPS for x in node.all_input_nodes}  # where it may be written
    written = {graphs.storage(x) for node in graph.nodes if graphs.writes(node.target) for x in node.all_input_nodes}
    unsafe = written | set(map(graphs.storage, handed))
    changed: set[Node] = set()
    for cat in graph.find_nodes(op="call_function", target=aten.cat.default):
        pieces: Any = cat.args[0]
        ndim, axis = cat.meta["val"].ndim, (*cat.args, *cat.kwargs.values(), 0)[1]
        own = graphs.storage(cat) not in written | set(map(graphs.storage, handed - {cat}))  # a loop is given a copy of it
        if axis % ndim != ndim - 1 or not own or any(x.meta["val"].ndim != ndim for x in pieces):
            continue
        runs = _runs(pieces, unsafe)
        if len(runs) < len(pieces):
            with graph.inserting_before(cat):
                cat.args = ([_cut(graph, run) for run in runs], axis)
                changed |= _replace(graph, cat) if len(runs) == 1 else set()
    _follow(graph, changed)


def _runs(pieces: Iterable[Node], unsafe: set[int | None]) -> list[list[tuple[Node, Part]]]:
    """Pieces with the parts that they are, neighbours together."""
    runs: list[list[tuple[Node, Part]]] = []
    for piece in pieces:
        part = _part(piece)
        if graphs.storage(part.whole) in unsafe:
            part = Part(piece, 0, piece.meta["val"].shape[-1])
        if runs and (runs[-1][-1][1].whole, runs[-1][-1][1].stop) == (part.whole, part.start):
            runs[-1].append((piece, part))
        else:
            runs.append([(piece, part)])
    return runs


def _part(x: Node) -> Part:
    """Of which tensor these numbers are a part, through copies and other shapes."""
    shape = x.meta["val"].shape
    y: Any = x
    while isinstance(y, Node):
        if y.target is aten.clone.default or y.target in RESHAPES or _keeps_order(y):
            y = y.args[0]
        elif y.meta["val"].shape == shape and (cut := _cut_of(y)) is not None:
            whole, start, _ = _part(cut.whole)
            return Part(whole, start + cut.start, start + cut.stop)
        else:
            break
    return Part(x, 0, shape[-1])


def _keeps_order(x: Node) -> bool:
    return x.target is aten.permute.default and list(x.args[1]) == list(range(len(x.args[1])))  # type: ignore[arg-type]


def _cut_of(x: Node) -> Part | None:
    """What a node is cut out of along the last axis, if it is."""
    args: Any = x.args
    if x.target is operator.getitem and args[0].target is aten.split_with_sizes.default:
        whole, sizes, axis = (*args[0].args, 0)[:3]
        start = sum(sizes[: args[1]])
        part = Part(whole, start, start + sizes[args[1]])
    elif x.target is aten.slice.Tensor and len(args) == 4:
        whole, axis, start, _ = args
        part = Part(whole, start, start + x.meta["val"].shape[-1])
    else:
        return None
    return part if axis % x.meta["val"].ndim == x.meta["val"].ndim - 1 and part.start >= 0 else None


def _cut(graph: Graph, run: list[tuple[Node, Part]]) -> Node:
    """A run as one node."""
    (piece, first), (_, last) = run[0], run[-1]
    whole, ndim = first.whole, first.whole.meta["val"].ndim
    if len(run) == 1:
        return piece
    if (first.start, last.stop) == (0, whole.meta["val"].shape[-1]):
        return whole
    return _call(graph, aten.slice.Tensor, whole, ndim - 1, first.start, last.stop)


def _replace(graph: Graph, cat: Node) -> set[Node]:
    """Replace a node by the one that it is put together of; those that ask for memory of their own get a copy. Returns the users
    whose input is another now."""
    one: Any = cat.args[0][0]  # type: ignore[index]
    users = set(cat.users)
    owners = [x for x in users if x.op == "output" or x.target in LOOPS]
    copy = graphs.copy(graph, one) if owners else one
    for x in users:
        x.replace_input_with(cat, copy if x in owners else one)
    graph.erase_node(cat)
    return users


def _call(graph: Graph, operation: Any, *args: Any) -> Node:
    node = graph.call_function(operation, args)
    node.meta["val"] = operation(*_values(args))
    return node


def _values(args: Any) -> Any:
    return torch.fx.node.map_arg(args, lambda x: x.meta["val"])


def _follow(graph: Graph, changed: set[Node]) -> None:
    """Say anew how what is seen of changed tensors lies in memory, and in whose."""
    for x in graph.nodes:
        if x in changed and (x.target in RESHAPES or x.target is operator.getitem or getattr(x.target, "is_view", False)):
            operation = aten.reshape.default if x.target in RESHAPES else x.target
            x.meta["val"] = operation(*_values(x.args), **x.kwargs)
            changed |= set(x.users)
