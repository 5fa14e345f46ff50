"""Operations of torch's own that write into a tensor, as ones that return a new one: a graph that is compiled has no others."""

import itertools
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from purerl.compiling import graphs
from purerl.compiling.tracing import TraceError, line

_SPLITS = (torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default, torch.ops.aten.unsafe_split.Tensor)


def rewrite(module: GraphModule) -> None:
    """Rewrite a graph and its loops, but for copies into their inputs, which are writes into donated memory.

    Raises:
        TraceError: what was written through one view of a tensor is read through another.
    """
    for part in module.modules():
        if isinstance(part, GraphModule):
            for node in list(part.graph.nodes):
                if _writes(node):
                    _replace(part.graph, node)
            part.recompile()


def _writes(node: Any) -> bool:
    donates = node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder"
    return graphs.writes(node.target) and not donates


def _replace(graph: Graph, node: Any) -> None:
    written, name = node.args[0], node.target._schema.name.removeprefix("aten::")
    pure: Any = getattr(getattr(torch.ops.aten, name.rstrip("_")), node.target._overloadname)
    order = {x: i for i, x in enumerate(graph.nodes)}
    for other in itertools.takewhile(lambda x: x is not node, order):
        is_same = other is written or _writes(other)  # what another such operation returns is the tensor that it wrote into
        is_view = not is_same and graphs.storage(other) == graphs.storage(written) and not _apart(other, written)
        if is_view and any(order[user] > order[node] for user in other.users):
            raise TraceError(
                f"{line(*node.meta['line'])}: torch's {name} writes into a view of a tensor that is read again, which cannot be "
                "compiled here; write the same with operations that return new tensors"
            )
    with graph.inserting_before(node):
        new = graph.call_function(pure, node.args, node.kwargs)
    new.meta = dict(node.meta)
    new.meta["val"] = written.meta["val"].clone()
    for user in list(written.users):
        if order.get(user, -1) > order[node]:
            user.replace_input_with(written, new)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _apart(x: Any, y: Any) -> bool:
    """Whether two views are different parts of one split."""
    both = x.target is operator.getitem and y.target is operator.getitem
    return both and x.args[0] is y.args[0] and x.args[0].target in _SPLITS and x.args[1] != y.args[1]
