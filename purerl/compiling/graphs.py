"""What the passes ask of a graph's operations."""

from typing import Any

import torch
from torch import Tensor


def writes(operation: Any) -> bool:
    """Whether an operation writes into a tensor that it is given."""
    return isinstance(operation, torch._ops.OpOverload) and operation._schema.is_mutable


def storage(node: Any) -> int | None:
    """A number that two nodes share if their tensors share memory; None if it has no tensor."""
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def copy(graph: torch.fx.Graph, x: torch.fx.Node) -> torch.fx.Node:
    """A contiguous copy, inserted where the graph is being written; any other would keep the strides of a matrix of one row."""
    node = graph.call_function(torch.ops.aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
    node.meta["val"] = x.meta["val"].clone(memory_format=torch.contiguous_format)
    return node


def joined(x: Any) -> torch.fx.Node | None:
    """The `cat` that a node is, or shows with other axes: inductor writes its parts right into their places."""
    while x.target is torch.ops.aten.permute.default:
        x = x.args[0]
    return x if x.target is torch.ops.aten.cat.default else None


def is_read_after(call: torch.fx.Node, x: Any) -> bool:
    """Whether a node's tensor, or another that shares its memory, is asked for after a call."""
    later, memory = call, storage(x)
    while (later := later.next).op != "root":
        if any(y is x or (memory is not None and storage(y) == memory) for y in later.all_input_nodes):
            return True
    return False
