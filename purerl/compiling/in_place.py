"""Writes into donated memory, where a traced function has new versions of it.

A function writes by operations that return the memory's next version, and the last one is copied into the memory at the end. Here
every version becomes a write into the memory itself: `index_put` followed by the copy of its whole result is what inductor makes
an `index_put_` of, and a loop that carries the memory writes into it at each turn.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from purerl.compiling import graphs
from purerl.compiling.tracing import TraceError, line

aten = torch.ops.aten
_WRITES = (aten.index_put.default, aten._unsafe_index_put.default)


def settle(module: GraphModule, donated: Sequence[int], written_at: list[tuple[str, int]]) -> None:
    """Let a graph and its loops write where the memory is.

    Args:
        donated: which of its inputs the memory is.
        written_at: the lines where `write` was called while it was traced, one for each tensor; emptied of what is given back.

    Raises:
        TraceError: the memory is read as it was before it was written, or what was written is not given back.
        ValueError: a loop writes into memory that is not contiguous.
    """
    for part in module.modules():
        if isinstance(part, GraphModule):
            inputs: list[Any] = part.graph.find_nodes(op="placeholder")
            memory = [inputs[i] for i in donated] if part is module else inputs
            copies: list[Any] = part.graph.find_nodes(op="call_function", target=aten.copy_.default)
            for copy in reversed(copies):
                place = copy.args[0]
                if place in memory:
                    newest = _settle(part.graph, copy, written_at)
                    if newest.target is operator.getitem:
                        (_keep if part is module else _touch)(part.graph, place, newest)
            part.recompile()
    if written_at:
        raise TraceError(
            f"{line(*written_at[0])}: what purerl.write returned is not given back by the function, or by the body of a scan; "
            "without that the memory would stay as it was: return it"
        )


def _settle(graph: Graph, copy: Any, written_at: list[tuple[str, int]]) -> Node:
    """Write every version of the memory that leads to this copy in place; returns the last one."""
    place, newest = copy.args
    versions, writers = [newest], []
    while versions[-1] is not place and (made := _made(versions[-1])) is not None:
        writers.append(made[0])
        versions.append(made[1])
    if versions[-1] is not place:  # it was computed from scratch: the copy puts it there
        writers.append(versions[-1])
        versions.append(place)
    _check_reads(graph, copy, versions[::-1], writers[::-1])
    _keep_copies(graph, versions)
    for version in versions:
        if version.target in _WRITES and version.meta["line"] in written_at:
            written_at.remove(version.meta["line"])
    for version, writer in zip(versions, writers, strict=False):
        if writer is not version:  # a loop
            if not place.meta["val"].is_contiguous():
                raise ValueError(
                    f"{line(*writer.meta['line'])}: memory of shape {list(place.meta['val'].shape)} and strides "
                    f"{list(place.meta['val'].stride())} is donated to a scan, which writes into contiguous memory only"
                )
            body, carry, *rest = writer.args
            carry = [place if i == version.args[1] else x for i, x in enumerate(carry)]
            writer.args = (body, carry, *rest)
            continue
        if version.target in _WRITES:
            version.args = (place, *version.args[1:])
        last_input = graph.find_nodes(op="placeholder")[-1]
        with graph.inserting_after(last_input if version.op == "placeholder" else version):
            graph.call_function(aten.copy_.default, (place, version)).meta["val"] = place.meta["val"]
    copy.replace_all_uses_with(place)
    graph.erase_node(copy)
    return newest


def origin(version: Any) -> Any:
    """What writes and loops have made a version of the memory from."""
    while (made := _made(version)) is not None:
        version = made[1]
    return version


def _made(version: Any) -> tuple[Any, Any] | None:
    """What made a version of the memory, a write or a loop that carries it, and the version before; None if neither did."""
    if version.target in _WRITES:
        return version, version.args[0]
    if version.target is operator.getitem:
        loop, k = version.args
        if k in loop.meta.get("in_place", ()):
            return loop, loop.args[1][k]
    return None


def _keep_copies(graph: Graph, versions: Sequence[Any]) -> None:
    """A copy that is made of a part of the memory is needed, which inductor does not know: it would be left out."""
    for view in _views(graph, versions):
        for user in list(view.users):
            if user.target is aten.clone.default and user.meta["val"].stride() == view.meta["val"].stride():
                is_bool = view.meta["val"].dtype == torch.bool
                with graph.inserting_before(user):
                    same = graph.call_function(
                        aten.logical_or.default if is_bool else aten.mul.Tensor, (view, view if is_bool else 1)
                    )
                same.meta = dict(user.meta)
                user.replace_all_uses_with(same)
                graph.erase_node(user)


def _views(graph: Graph, versions: Sequence[Any]) -> list[Any]:
    """The nodes whose tensors lie in the memory of some versions, those among them."""
    storages = {graphs.storage(version) for version in versions}
    return [node for node in graph.nodes if graphs.storage(node) in storages]


def _touch(graph: Graph, place: Any, version: Any) -> None:
    """Write a number of what an inner loop has written once more, where torch sees it: it does not look into a loop's loops."""
    shape = place.meta["val"].shape
    if not shape.numel():
        return
    if not shape:
        with graph.inserting_after(version):
            graph.call_function(aten.copy_.default, (place, version)).meta["val"] = place.meta["val"]
        return
    with graph.inserting_after(version):
        zero = graph.call_function(aten.full.default, ([1], 0), {"dtype": torch.int64, "device": place.meta["val"].device})
    zero.meta["val"] = aten.full.default([1], 0, dtype=torch.int64, device=place.meta["val"].device)
    at = [zero] * len(shape)
    with graph.inserting_after(zero):
        number = graph.call_function(aten.index.Tensor, (version, at))
    number.meta["val"] = place.meta["val"].new_empty(1)
    with graph.inserting_after(number):
        graph.call_function(aten.index_put_.default, (place, at, number)).meta["val"] = place.meta["val"]


def _keep(graph: Graph, place: Any, version: Node) -> None:
    """Let a number of what a loop has written be one more result: a loop without results would be left out."""
    output: Any = graph.output_node()
    number = version
    with graph.inserting_before(output):
        for target, args in ((aten.reshape.default, ([-1],)), (aten.slice.Tensor, (0, 0, 1)), (aten.clone.default, ())):
            value = target(number.meta["val"], *args)
            number = graph.call_function(target, (number, *args))
            number.meta["val"] = value
    output.args = ((*output.args[0], number),)


def _check_reads(graph: Graph, copy: Node, versions: Sequence[Node], writers: Sequence[Any]) -> None:
    """Raise if a version, or a view of it, is read after the next one was written."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for version, writer in zip(versions, writers, strict=False):
        views = _views(graph, [version])
        for user in {user for view in views for user in view.users} - {*views, copy, graph.output_node()}:
            if order[user] > order[writer] or (user is writer and _reads_twice(writer, views)):
                raise TraceError(
                    f"{line(*user.meta['line'])}: memory of shape {list(version.meta['val'].shape)} that is donated is read as it "
                    f"was before it was written at {line(*writer.meta['line'])}; read it before, or read what the write returned"
                )


def _reads_twice(writer: Any, views: Sequence[Node]) -> bool:
    """Whether a write takes the memory that it writes into for something else, too."""
    if writer.target in _WRITES:
        return any(x in views for x in (*writer.args[1], writer.args[2]))
    if writer.target is not torch.ops.higher_order.scan:
        return False
    _, carry, *others = writer.args
    return sum(x in views for x in carry) > 1 or any(x in views for group in others for x in group)
