"""How functions run: `compile`, `specialize`, `vmap`, `scan` and `write`. What they compute stays the same."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from purerl import compiling, donation, tree
from purerl.compiling import cuda, fallback, programs
from purerl.donation import Donated


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
    and all that it closes over, are taken as they are at that time. The results own their memory, but for what is `Donated`: that
    is written in place, and the memory handed over is spent.

    Args:
        f: a pure function of trees. It gives back all the donated memory that it is given, in the same order, or none of it.
        threads: CPU threads of one call. One is fastest for small networks; many lanes run faster as several tiles in Python
            threads of their own (the compiled code lets go of the interpreter) than with several threads in one call.

    Raises:
        TraceError: at the first call; what happens in `f` depends on a number inside a tensor, or it writes into one, or it reads
            donated memory as it was before it was written.
        SpentError: an argument was donated before.
        ValueError: at the first call; an argument requires a gradient, which the program could not give back; or not all donated
            memory comes back. At any call; another argument lies in donated memory.
    """
    leafwise = _leafwise(f)
    compiled: dict[Any, programs.Built] = {}

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
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        return tree.unflatten(program.structure, _run_in_place(program, tensors) if program.given else program.run(tensors))

    call.leafwise = leafwise  # type: ignore[attr-defined]
    return call


def _run_in_place(program: programs.Built, tensors: list[Tensor]) -> list[Tensor]:
    """Run a program that writes into some of its arguments: the results, those among them."""
    memory = [tensors[i] for i in program.given]
    donation.check_apart(tensors, program.given, program.extents)
    try:
        rest = iter(program.run(tensors))
    finally:  # should it fail, a part is written
        kept = iter(donation.hand_on(memory))
    return [next(kept) if is_donated else next(rest) for is_donated in tree.donated(program.structure)]


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
            places = [x.data_ptr() for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if is_donated]
            key = (structure, *[programs.kind(x) for x in leaves], *places)  # what is recorded writes into this memory
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
    because no tree is taken apart and nothing but shapes and strides is checked. Nothing is donated.
    """
    built = _build(_leafwise(f), *tree.flatten(examples), threads=1)
    if built.given:
        raise ValueError("specialize: what is donated cannot be given back; use compile")
    return Program(built.run, built.structure)


def specialize_into(f: Callable, out: Any, *examples: Any) -> Callable[[list[Tensor]], Any]:
    """`specialize(f)` that writes its results into memory given to it.

    Args:
        f: a pure function; its results have the leaves, shapes and dtypes of `out`.
        out: an example of the memory; it must not overlap the arguments'.

    Returns:
        A function of the leaves of `out` and of the arguments, as a list that it empties. It writes into those of `out`.
    """

    def program(out: Any, *args: Any) -> Any:
        for place, result in zip(tree.leaves(out), tree.leaves(f(*args)), strict=True):
            place.copy_(result)
        return ()

    return _build(_leafwise(program), *tree.flatten((out, *examples)), threads=1, n_written=len(tree.leaves(out))).run


def trace(f: Callable, *examples: Any) -> Trace:
    """What `f` does with arguments of the structure, shapes, strides, dtypes and devices of the examples."""
    leaves, structure = tree.flatten(examples)
    if not compiling.is_tested():
        results, results_structure = _leafwise(f)(leaves, structure)
        return Trace([True] * len(leaves), list(results), results_structure)
    with compiling.one_at_a_time:
        return Trace(*programs.trace(_leafwise(f), leaves, structure))


def shapes(f: Callable, *args: Any) -> Any:
    """What `f(*args)` returns, as tensors without data (`jax.eval_shape`): nothing is computed and no memory is taken, unless `f`
    mixes in numbers of its own, which lie on a device."""

    def without_data(tree_: Any) -> Any:
        return tree.map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, tree_)

    try:
        with torch.device("meta"):
            return f(*without_data(args))
    except (RuntimeError, NotImplementedError):  # of other devices, or because it asks for a number
        return without_data(f(*args))


def _build(leafwise: Callable, leaves: list[Any], structure: Any, threads: int, n_written: int = 0) -> programs.Built:
    if any(isinstance(x, Tensor) and x.requires_grad for x in leaves):
        raise ValueError(
            "compile: an argument requires a gradient; take it inside the function, with torch.func.grad, or detach it"
        )
    if not compiling.is_tested():
        return programs.build_plainly(leafwise, leaves, structure)
    with compiling.one_at_a_time:
        return programs.build(leafwise, leaves, structure, threads, n_written)


def _is_inside() -> bool:
    """Whether a function is being traced or mapped: what was compiled apart becomes a part of it."""
    return torch.compiler.is_compiling() or compiling.is_tracing() or compiling.is_mapping()


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
        leaves, args_structure = tree.flatten(args)
        results, structure = leafwise(leaves, args_structure)
        if torch.compiler.is_compiling():
            return tree.unflatten(structure, results)
        if compiling.is_tracing():
            return tree.unflatten(structure, [x if is_donated else tree.copy(x) for x, is_donated in _marked(results, structure)])
        given = [x for x, is_donated in _marked(leaves, args_structure) if is_donated]
        if given and any(tree.donated(structure)):
            donation.hand_on(given)
        keep = donation.renamed if given else torch.Tensor.contiguous  # new memory may be one lane's, shown many times
        return tree.unflatten(structure, [keep(x) if is_donated else tree.copy(x) for x, is_donated in _marked(results, structure)])

    mapped.leafwise = leafwise  # type: ignore[attr-defined]
    return mapped


def write(memory: Donated, rows: Tensor, values: Any) -> Donated:
    """Write into some rows of donated memory, in place.

    Args:
        memory: leaves `[N, ...]`. It is *donated*.
        rows: `[M]` int64, no row twice.
        values: what is written there, leaves `[M, ...]` under the memory's names; a tensor where the memory is a single one.

    Returns:
        The memory with the rows written.

    Raises:
        SpentError: it was donated before.
        ValueError: the names, shapes or dtypes are not the memory's; nothing is written then.
    """
    leaves, structure = tree.flatten(memory)
    new = _in_order_of(memory, leaves, rows, values)
    if torch.compiler.is_compiling() or compiling.is_tracing():
        if compiling.is_tracing():
            compiling.note_writes(len(leaves))
        return tree.unflatten(structure, [x.index_put((rows,), v) for x, v in zip(leaves, new, strict=True)])
    for x, v in zip(leaves, new, strict=True):
        x.index_put_((rows,), v)
    return tree.unflatten(structure, donation.hand_on(leaves))


def _marked(leaves: Sequence[Any], structure: Any) -> Iterator[tuple[Any, bool]]:
    """Each leaf, and whether it is donated."""
    return zip(leaves, tree.donated(structure), strict=True)


def _in_order_of(memory: Donated, leaves: list[Tensor], rows: Tensor, values: Any) -> list[Tensor]:
    """The leaves of what is written, in the memory's order, checked."""
    if not isinstance(memory, Donated):
        raise ValueError(f"write: memory is {type(memory).__name__}, not Donated")
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise ValueError(f"write: rows are {rows.dtype} {list(rows.shape)}, not int64 [M]")
    names = list(_named(memory.memory))
    found = dict.fromkeys(names, values) if isinstance(values, Tensor) and len(names) == 1 else _named(values)
    if set(found) != set(names):
        raise ValueError(f"write: values have the names {sorted(found)}, but the memory has {sorted(names)}")
    for name, x in zip(names, leaves, strict=True):
        wanted, value = (len(rows), *x.shape[1:]), found[name]
        kind = (value.dtype, list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
        if kind != (x.dtype, list(wanted)):
            raise ValueError(f"write: {name} is {kind}, but {(x.dtype, list(wanted))} is wanted")
    return [found[name] for name in names]


def _named(values: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested names, by their paths; in order."""
    if not isinstance(values, dict | TensorDictBase):
        return {path: values}
    return {name: x for key, value in values.items() for name, x in _named(value, f"{path}.{key}" if path else str(key)).items()}


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`for x in xs: carry, y = body(carry, x)`, with the `y` stacked.

    Under `compile` it is one loop of the program, not an unrolled one. It cannot be differentiated through; a gradient may be
    taken inside `body`.

    Args:
        body: `body(carry, x) -> (carry, y)`; the carry keeps its structure, shapes and dtypes, and `y` is a nesting of plain
            dicts, lists and tuples of tensors.
        carry: a tree; what is `Donated` in it is written in place.
        xs: a tree whose leaves are `[T, ...]`.

    Returns:
        The last carry, and the tree of `y` with leaves `[T, ...]`.
    """
    if not (torch.compiler.is_compiling() or compiling.is_tracing()):
        ys = []
        for t in range(len(tree.leaves(xs)[0])):
            carry, y = body(carry, tree.index(xs, t))
            ys.append(y)
        return carry, tree.stack(ys)

    # Each tensor that crosses the loop's border costs time at every turn, so they cross packed; the `y` go into place one by one,
    # and donated memory stays where it is.
    packed_carry, unpack_carry = tree.pack(carry)
    packed_xs, unpack_x = tree.pack(xs, axes=1)

    def turn(packed_carry: dict, packed_xs: dict) -> tuple[dict, Any]:
        carry, y = body(unpack_carry(packed_carry), unpack_x(packed_xs))
        return tree.pack(carry)[0], tree.copy(y)

    packed_carry, ys = _loop(turn, packed_carry, packed_xs)
    return tree.copy(unpack_carry(packed_carry)), ys


def _loop(turn: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """One loop of the program that is being traced, over the tensors of the trees."""
    carry_leaves, carry_structure = tree.flatten(carry)

    def flat_turn(carry: Sequence[Tensor], xs: Any) -> tuple[list[Tensor], Any]:
        new, y = turn(tree.unflatten(carry_structure, carry), xs)
        return tree.leaves(new), y

    if torch.compiler.is_compiling():
        leaves, ys = fallback.loop(flat_turn, carry_leaves, xs)
    else:
        leaves, ys = _loop_of_trace(flat_turn, carry_leaves, xs, sum(tree.donated(carry_structure)))
    return tree.unflatten(carry_structure, leaves), ys


def _loop_of_trace(turn: Callable, carry: list[Tensor], xs: Any, n_donated: int) -> tuple[list[Tensor], Any]:
    from purerl.compiling import loops

    xs_leaves, xs_structure = tree.flatten(xs)
    n, structures = len(carry), []

    def on_tensors(*tensors: Tensor) -> list[Tensor]:
        new, y = turn(tensors[:n], tree.unflatten(xs_structure, tensors[n:]))
        y_leaves, y_structure = tree.flatten(y)
        structures.append(y_structure)
        return [*new, *y_leaves]

    results = loops.loop(on_tensors, carry, xs_leaves, n_donated)
    return results[:n], tree.unflatten(structures[-1], results[n:])
