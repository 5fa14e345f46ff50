"""How functions run: `compile`, `specialize`, `vmap` and `scan`. What they compute stays the same."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._higher_order_ops.scan import scan as _scan
from torch._higher_order_ops.scan import scan_op
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from purerl import passes, random, tree

# The body is a submodule of the graph, hence part of the key of inductor's on-disk cache.
scan_op._cacheable = True
_CPP_WRAPPER = torch.__version__ >= "2.13"  # earlier ones cannot express a loop in C++
# Said of tracing alone: the compiled loop selects its slices without the fallback.
warnings.filterwarnings("ignore", message=".*not yet implemented the batching rule for aten::select_copy.*")


def compile(f: Callable, threads: int = 1) -> Callable:
    """`torch.compile` as one whole graph, with the settings that suit many small networks; the results own their memory.

    It is compiled anew for arguments of another structure, shape or dtype, or another number that is no tensor.

    Args:
        f: a pure function of trees. What it closes over is taken as it is at the first call.
        threads: CPU threads of one call. One is fastest for small networks; many lanes run faster as several tiles in Python
            threads of their own (the compiled code lets go of the interpreter) than with several threads in one call.
    """
    leafwise, programs = _leafwise(f), {}

    def call(*args: Any) -> Any:
        leaves, structure = tree.flatten(args)
        if structure not in programs:
            programs[structure] = _program(leafwise, structure, _options(threads))
        results, results_structure = programs[structure](leaves)
        return tree.unflatten(results_structure, results)

    return call


class Trace(NamedTuple):
    """A function as one graph of tensor operations.

    Attributes:
        graph: of the examples' leaves to the results' leaves.
        used: for each leaf of the examples, whether any result depends on it.
        results: the results' leaves, as tensors without data.
        structure: the results'.
    """

    graph: torch.fx.GraphModule
    used: list[bool]
    results: list[Tensor]
    structure: Any


def trace(f: Callable, *examples: Any) -> Trace:
    """Trace `f` for arguments with the structure, shapes, strides and dtypes of the examples, without computing anything."""
    leaves, structure = tree.flatten(examples)
    structures: list[Any] = []

    def program(*leaves: Tensor) -> Sequence[Tensor]:
        results, results_structure = _leafwise(f)(leaves, structure)
        structures.append(results_structure)
        return tree.own(tuple(results))

    with torch.no_grad():
        tracer = make_fx(program, select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
        module = tracer(*leaves)
    module.graph.eliminate_dead_code()
    used = [bool(node.users) for node in module.graph.find_nodes(op="placeholder")]
    (output,) = module.graph.find_nodes(op="output")
    return Trace(module, used, [node.meta["val"] for node in output.args[0]], structures[0])


def specialize(f: Callable, *examples: Any) -> tuple[Callable[[list[Tensor]], list[Tensor]], Any]:
    """`compile(f)` for arguments with the structure, shapes, strides and dtypes of the examples, and for no others.

    For a small function that a loop of the outside world calls at each step: a call costs a fifth of a compiled function's,
    because no tree is taken apart and nothing but shapes and strides is checked. What `f` closes over is taken as it is now.

    Returns:
        The function of the arguments' leaves, as a list that it empties, to the result's leaves; and the result's structure.
    """
    traced = trace(f, *examples)
    return _specialized(traced.graph), traced.structure


def specialize_into(f: Callable, out: Any, *examples: Any) -> Callable[[list[Tensor]], Any]:
    """`specialize(f)` that writes its results into memory given to it.

    Args:
        f: a pure function; its results have the leaves, shapes and dtypes of `out`.
        out: an example of the memory; it must not overlap the arguments'.

    Returns:
        A function of the leaves of `out` and of the arguments, as a list that it empties. It *donates* those of `out`.
    """

    def program(out: Any, *args: Any) -> Any:
        for place, result in zip(tree.leaves(out), tree.leaves(f(*args)), strict=True):
            place.copy_(result)
        return ()

    return _specialized(trace(program, out, *examples).graph)


def _specialized(module: torch.fx.GraphModule) -> Callable[[list[Tensor]], list[Tensor]]:
    inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    with torch.no_grad(), inductor_config.patch(_options(threads=1)), tracing(TracingContext(inputs[0].fake_mode)):
        return compile_fx_inner(module, inputs, cpp_wrapper=_CPP_WRAPPER)


def _options(threads: int) -> dict[str, Any]:
    """Inductor's, for many small operations on the CPU."""
    return {
        "cpp_wrapper": _CPP_WRAPPER,  # halves the overhead of a call and of a loop's turn
        "cpp_wrapper_build_separate": True,  # two compilers side by side, and no optimization of what allocates
        "cpp.threads": threads,
        "cpp.enable_loop_tail_vec": False,
        "realize_opcount_threshold": 16,  # keeps the generator's rounds from being inlined into each other, exponentially
        "post_grad_custom_pre_pass": passes.CheapTanh(),
        "post_grad_custom_post_pass": passes.OwnMemory(),
        "_post_fusion_custom_pass": passes.LoopBuffers(),
        "unsafe_marked_cacheable_functions": {"purerl.random.threefry2x32": get_hash_for_files((random.__file__,)).hex()},
    }


def _program(leafwise: Callable, structure: Any, options: dict[str, Any]) -> Callable:
    def program(leaves: list[Any]) -> tuple[list[Any], Any]:
        results, results_structure = leafwise(leaves, structure)
        return tree.own(results), results_structure

    # Dynamo keeps what it compiled with the code object: each program needs one of its own, or all would share a cache.
    program.__code__ = program.__code__.replace()
    return torch.compile(program, fullgraph=True, dynamic=False, options={**options, "guard_filter_fn": _guard_arguments})


def _guard_arguments(guards: Sequence[Any]) -> list[bool]:
    """Check the arguments at a call, not the hundreds of objects that a pure function refers to."""
    return [not guard.name or guard.name.startswith("leaves") for guard in guards]


def _leafwise(f: Callable) -> Callable:
    """`f` as `(leaves, structure) -> (leaves, structure)`: lists are faster to trace, and to check at a call, than trees."""
    return getattr(f, "leafwise", None) or (lambda leaves, structure: tree.flatten(f(*tree.unflatten(structure, leaves))))


def vmap(f: Callable, in_dims: int | tuple[int | None, ...] = 0) -> Callable:
    """`torch.vmap` over trees, whose results own their memory.

    Args:
        in_dims: the mapped axis of the arguments' leaves, None for an argument that is not mapped.
    """
    leafwise_lane = _leafwise(f)

    def leafwise(leaves: Sequence[Any], structure: Any) -> tuple[Sequence[Any], Any]:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(structure.children)
        lane_args = [x if dim is None else tree.batched(x, -1) for dim, x in zip(dims, structure.children, strict=True)]
        lane_structure = structure._replace(children=tuple(lane_args))
        structures: list[Any] = []

        def lane(*leaves: Any) -> tuple[Any, ...]:
            results, results_structure = leafwise_lane(leaves, lane_structure)
            structures.append(results_structure)
            return tuple(results)

        leaf_dims = [dim for dim, x in zip(dims, structure.children, strict=True) for _ in range(tree.size(x))]
        results = torch.vmap(lane, tuple(leaf_dims))(*leaves)
        return results, tree.batched(structures[0], 1)

    def mapped(*args: Any) -> Any:
        results, structure = leafwise(*tree.flatten(args))
        return tree.unflatten(structure, results if torch.compiler.is_compiling() else tree.own(results))

    mapped.leafwise = leafwise  # type: ignore[attr-defined]
    return mapped


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, unroll: int = 1) -> tuple[Any, Any]:
    """`for x in xs: carry, y = body(carry, x)`, with the `y` stacked.

    Under `compile` it is one loop of the program, not an unrolled one. It cannot be differentiated through; a gradient may be
    taken inside `body`.

    Args:
        body: `body(carry, x) -> (carry, y)`; the carry keeps its structure, shapes and dtypes, and `y` is a nesting of plain
            dicts, lists and tuples of tensors.
        carry: a tree.
        xs: a tree whose leaves are `[T, ...]`.
        unroll: steps in one turn of the compiled loop, lowered to a divisor of T; more take longer to compile.

    Returns:
        The last carry, and the tree of `y` with leaves `[T, ...]`.
    """
    if not torch.compiler.is_compiling():
        ys = []
        for t in range(len(tree.leaves(xs)[0])):
            carry, y = body(carry, tree.index(xs, t))
            ys.append(y)
        return carry, tree.stack(ys)

    # Each tensor that crosses the loop's border costs time at every turn, so they cross packed; the `y` go into place one by one.
    packed_carry, unpack_carry = tree.pack(carry)
    packed_xs, unpack_x = tree.pack(xs, axes=1)
    n_steps = len(tree.leaves(xs)[0])
    per_turn = math.gcd(n_steps, unroll)

    def turn(packed_carry: dict, packed_xs: dict) -> tuple[dict, Any]:
        carry, ys = unpack_carry(packed_carry), []
        for t in range(per_turn):
            carry, y = body(carry, unpack_x(tree.index(packed_xs, t)))
            ys.append(y)
        return tree.pack(carry)[0], tree.own(tree.stack(ys))

    turns = tree.map(lambda x: x.unflatten(0, (-1, per_turn)), packed_xs)
    packed_carry, ys = _scan(turn, packed_carry, turns)
    return tree.own(unpack_carry(packed_carry)), tree.map(lambda y: y.flatten(0, 1), ys)
