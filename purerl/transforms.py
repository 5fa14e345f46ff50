"""How functions run: `compile`, `vmap` and `scan`. What they compute stays the same."""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._higher_order_ops.scan import scan as _scan

from purerl import tree


def vmap(f: Callable, in_dims: Any = 0) -> Callable:
    """`torch.vmap` whose results own their memory.

    An output that does not depend on the mapped input comes out of `torch.vmap` as one number seen many times (stride 0), which
    compiled code takes for another kind of input than its own result.
    """
    mapped = torch.vmap(f, in_dims)
    return lambda *args: tree.map(torch.Tensor.contiguous, mapped(*args))


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`for x in xs: carry, y = body(carry, x)`, with the `y` stacked.

    Under `compile` it is one loop of the program, not an unrolled one. It cannot be differentiated through; a gradient may be
    taken inside `body`.

    Args:
        body: `body(carry, x) -> (carry, y)`; the carry keeps its structure, shapes and dtypes.
        carry: a tree.
        xs: a tree whose leaves are `[T, ...]`.

    Returns:
        The last carry, and the tree of `y` with leaves `[T, ...]`.
    """
    flat_carry, carry_spec = pytree.tree_flatten(carry)
    flat_xs, xs_spec = pytree.tree_flatten(xs)
    if not torch.compiler.is_compiling():
        ys = []
        for t in range(len(flat_xs[0])):
            carry, y = body(carry, pytree.tree_unflatten([x[t] for x in flat_xs], xs_spec))
            ys.append(y)
        return carry, tree.stack(ys)

    # The operator's body may only return tensors: learn the structure of `y` from a first step whose results are dead code.
    y_spec = pytree.tree_structure(body(carry, pytree.tree_unflatten([x[0] for x in flat_xs], xs_spec))[1])

    def flat_body(flat_carry: list[torch.Tensor], flat_x: list[torch.Tensor]) -> tuple[list, list]:
        carry, y = body(pytree.tree_unflatten(list(flat_carry), carry_spec), pytree.tree_unflatten(list(flat_x), xs_spec))
        # The operator refuses outputs that alias each other or its inputs.
        return [c.clone() for c in pytree.tree_leaves(carry)], [leaf.clone() for leaf in pytree.tree_leaves(y)]

    flat_carry = [c.clone(memory_format=torch.contiguous_format) for c in flat_carry]
    flat_carry, flat_ys = _scan(flat_body, flat_carry, flat_xs)
    return pytree.tree_unflatten(flat_carry, carry_spec), pytree.tree_unflatten(flat_ys, y_spec)


def compile(f: Callable, **options: Any) -> Callable:
    return torch.compile(f, fullgraph=True, dynamic=False, options={
        "realize_opcount_threshold": 16, "cpp_wrapper": __import__("os").environ.get("CPPW","1")=="1", "cpp.enable_loop_tail_vec": False, **options})
