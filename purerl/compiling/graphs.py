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
