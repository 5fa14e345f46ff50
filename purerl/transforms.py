"""How functions run: `compile`, `vmap` and `scan`. What they compute stays the same."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._higher_order_ops.scan import scan as _scan
from torch._higher_order_ops.scan import scan_op

from purerl import passes, tree

# The body is a submodule of the graph, hence part of the key of inductor's on-disk cache.
scan_op._cacheable = True
# Said of tracing alone: the compiled loop selects its slices without the fallback.
warnings.filterwarnings("ignore", message=".*not yet implemented the batching rule for aten::select_copy.*")


def compile(f: Callable, threads: int = 1) -> Callable:
    """`torch.compile` as one whole graph, with the settings that suit many small networks; the results own their memory.

    Args:
        f: a pure function of trees.
        threads: CPU threads of one call. One is fastest for small networks; many lanes run faster as several tiles in Python
            threads of their own (the compiled code lets go of the interpreter) than with several threads in one call.
    """
    options: dict[str, Any] = {
        "cpp_wrapper": True,  # halves the overhead of a call and of a loop's turn
        "cpp.threads": threads,
        "cpp.enable_loop_tail_vec": False,
        "realize_opcount_threshold": 16,  # keeps the generator's rounds from being inlined into each other, exponentially
        "post_grad_custom_pre_pass": passes.CheapTanh(),
        "post_grad_custom_post_pass": passes.OwnMemory(),
    }

    def call(*args: Any) -> Any:
        return _own(f(*args))

    # Dynamo keeps what it compiled with the code object; one of its own, or every function made by `vmap` would share a cache.
    call.__code__ = call.__code__.replace()
    return torch.compile(call, fullgraph=True, dynamic=False, options=options)


def vmap(f: Callable, in_dims: Any = 0) -> Callable:
    """`torch.vmap` whose results own their memory."""
    mapped = torch.vmap(f, in_dims)
    return lambda *args: mapped(*args) if torch.compiler.is_compiling() else _own(mapped(*args))


def _own(results: Any) -> Any:
    """Results that share memory, or show one number many times (what `torch.vmap` makes of an output that does not depend on
    the mapped input), would be another kind of input to the compiled function that they go back into."""
    return tree.map(lambda x: x.clone(memory_format=torch.contiguous_format), results)


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
    if not torch.compiler.is_compiling():
        ys = []
        for t in range(len(tree.leaves(xs)[0])):
            carry, y = body(carry, tree.index(xs, t))
            ys.append(y)
        return carry, tree.stack(ys)

    # Each tensor that crosses the loop's border costs time at every turn, so they cross packed. The structure of `y` is learnt
    # from a step whose results are dead code.
    packed_carry, unpack_carry = tree.pack(carry)
    packed_xs, unpack_x = tree.pack(xs, axes=1)
    _, unpack_y = tree.pack(body(carry, tree.index(xs, 0))[1])

    def packed_body(packed_carry: dict, packed_x: dict) -> tuple[dict, dict]:
        carry, y = body(unpack_carry(packed_carry), unpack_x(packed_x))
        return tree.pack(carry)[0], tree.pack(y)[0]

    packed_carry, packed_ys = _scan(packed_body, packed_carry, packed_xs)
    return unpack_carry(packed_carry), unpack_y(packed_ys)
