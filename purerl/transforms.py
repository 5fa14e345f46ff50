"""How functions run: `compile`, `specialize`, `vmap` and `scan`. What they compute stays the same."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purerl import compiling, tree
from purerl.compiling import cuda, fallback, programs


class Program(NamedTuple):
    """A function compiled for arguments of one structure, and of certain shapes, strides, dtypes and devices.

    Attributes:
        run: from the arguments' tensors, as a list that it empties, to the results' leaves.
        structure: the results'.
    """

    run: Callable[[list[Tensor]], list[Tensor]]
    structure: Any


class Trace(NamedTuple):
    """What can be said of a function without computing anything.

    Attributes:
        used: for each leaf of the arguments, whether any result depends on it.
        results: the results' leaves, as tensors without data.
        structure: the results'.
    """

    used: list[bool]
    results: list[Tensor]
    structure: Any


def compile(f: Callable, threads: int = 1) -> Callable:
    """Trace `f` once for each structure, shape, stride, dtype and device of its arguments, and compile what was traced.

    As with `jax.jit`, the Python of `f` runs while it is traced and never again: numbers and other arguments that are no tensors,
    and all that it closes over, are taken as they are at that time. The results own their memory.

    Args:
        f: a pure function of trees.
        threads: CPU threads of one call. One is fastest for small networks; many lanes run faster as several tiles in Python
            threads of their own (the compiled code lets go of the interpreter) than with several threads in one call.

    Raises:
        TraceError: at the first call; what happens in `f` depends on a number inside a tensor, or it writes into one.
        ValueError: at the first call; an argument requires a gradient, which the program could not give back.
    """
    leafwise = _leafwise(f)
    compiled: dict[Any, Program] = {}

    def call(*args: Any) -> Any:
        leaves, structure = tree.flatten(args)
        if _is_inside():
            results, results_structure = leafwise(leaves, structure)
            return tree.unflatten(results_structure, results)
        key = (structure, *[programs.kind(x) for x in leaves])
        program = compiled.get(key)
        if program is None:
            with compiling.one_at_a_time:
                program = compiled[key] = compiled.get(key) or _build(leafwise, leaves, structure, threads)
        return tree.unflatten(program.structure, program.run([x for x in leaves if isinstance(x, Tensor)]))

    call.leafwise = leafwise  # type: ignore[attr-defined]
    return call


def iterate(step: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any, int], tuple[Any, Any]]:
    """`n` times a compiled `step(state) -> (state, info)`.

    On a GPU the step's kernels are recorded at the first call and replayed from then on, with no work for the processor in between.

    Returns:
        `run(state, n)`: the state after `n >= 1` steps, and the last one's info.
    """
    recorded: dict[Any, Callable] = {}

    def run(state: Any, n: int) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(state)
        if leaves[0].device.type == "cuda":
            key = (structure, *[programs.kind(x) for x in leaves])
            if key not in recorded:
                recorded[key] = cuda.record(step, state)
            return recorded[key](state, n)
        for _ in range(n):
            state, info = step(state)
        return state, info

    return run


def specialize(f: Callable, *examples: Any) -> Program:
    """`compile(f)` for arguments with the structure, shapes, strides, dtypes and devices of the examples, and for no others.

    For a small function that a loop of the outside world calls at each step: a call costs a fifth of a compiled function's,
    because no tree is taken apart and nothing but shapes and strides is checked.
    """
    return _build(_leafwise(f), *tree.flatten(examples), threads=1)


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

    return _build(_leafwise(program), *tree.flatten((out, *examples)), threads=1, n_donated=len(tree.leaves(out))).run


def trace(f: Callable, *examples: Any) -> Trace:
    """What `f` does with arguments of the structure, shapes, strides, dtypes and devices of the examples."""
    leaves, structure = tree.flatten(examples)
    if not compiling.is_tested():
        results, results_structure = _leafwise(f)(leaves, structure)
        return Trace([True] * len(leaves), list(results), results_structure)
    with compiling.one_at_a_time:
        return Trace(*programs.trace(_leafwise(f), leaves, structure))


def _build(leafwise: Callable, leaves: list[Any], structure: Any, threads: int, n_donated: int = 0) -> Program:
    if any(isinstance(x, Tensor) and x.requires_grad for x in leaves):
        raise ValueError(
            "compile: an argument requires a gradient; take it inside the function, with torch.func.grad, or detach it"
        )
    if not compiling.is_tested():
        _, results_structure = leafwise(leaves, structure)
        return Program(fallback.build(programs.on_tensors(leafwise, leaves, structure)[0]), results_structure)
    with compiling.one_at_a_time:
        return Program(*programs.build(leafwise, leaves, structure, threads, n_donated))


def _is_inside() -> bool:
    """Whether a function is being traced or mapped: what was compiled apart becomes a part of it."""
    return torch.compiler.is_compiling() or compiling.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None


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
    loop = _loop_of_dynamo if torch.compiler.is_compiling() else _loop_of_trace if compiling.is_tracing() else None
    if loop is None:
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
    packed_carry, ys = loop(turn, packed_carry, turns)
    return tree.own(unpack_carry(packed_carry)), tree.map(lambda y: y.flatten(0, 1), ys)


def _loop_of_trace(turn: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    carry_leaves, carry_structure = tree.flatten(carry)
    xs_leaves, xs_structure = tree.flatten(xs)
    n, structures = len(carry_leaves), []

    def on_tensors(*tensors: Tensor) -> list[Tensor]:
        carry, y = turn(tree.unflatten(carry_structure, tensors[:n]), tree.unflatten(xs_structure, tensors[n:]))
        y_leaves, y_structure = tree.flatten(y)
        structures.append(y_structure)
        return [*tree.leaves(carry), *y_leaves]

    from purerl.compiling import loops

    results = loops.loop(on_tensors, carry_leaves, xs_leaves)
    return tree.unflatten(carry_structure, results[:n]), tree.unflatten(structures[-1], results[n:])


def _loop_of_dynamo(turn: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    from torch._higher_order_ops.scan import scan

    return scan(turn, carry, xs)
