"""How functions run: `compile`, `specialize`, `vmap`, `scan` and `write`. What they compute stays the same."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from purerl import compiling, donation, tree
from purerl.compiling import cuda, fallback, programs
from purerl.donation import Donated

LARGE = 1 << 14  # numbers of a tensor that crosses the border of a loop by itself


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
        f: a pure function of trees whose results' leaves are tensors. Donated memory that it does not give back is only read.
        threads: CPU threads of one call. One is fastest for small networks; many lanes run faster as several tiles in Python
            threads of their own (the compiled code lets go of the interpreter) than with several threads in one call.

    Raises:
        TraceError: at the first call; what happens in `f` depends on a number inside a tensor, or it writes into one, or it reads
            donated memory as it was before it was written, or does not give back what it wrote.
        SpentError: an argument was donated before.
        ValueError: at the first call; an argument requires a gradient, which the program could not give back; or a result is no
            tensor; or donated memory comes back that was not given, or has another shape. At any call; another argument lies in
            donated memory.
    """
    leafwise = _leafwise(f)
    compiled: dict[Any, tuple[programs.Built, list[bool]]] = {}

    def call(*args: Any) -> Any:
        leaves, structure = tree.flatten(args)
        if _is_inside():
            results, results_structure = leafwise(leaves, structure)
            return tree.unflatten(results_structure, results)
        key = (structure, *[programs.kind(x) for x in leaves])
        found = compiled.get(key)
        if found is None:
            with compiling.one_at_a_time:
                found = compiled[key] = compiled.get(key) or _marked_program(_build(leafwise, leaves, structure, threads))
        program, is_memory = found
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        results = _run_in_place(program, is_memory, tensors) if program.given else program.run(tensors)
        return tree.unflatten(program.structure, results)

    call.leafwise = leafwise  # type: ignore[attr-defined]
    return call


def _marked_program(program: programs.Built) -> tuple[programs.Built, list[bool]]:
    """A program, and which of its results are donated memory."""
    return program, tree.donated(program.structure)


def _run_in_place(program: programs.Built, is_memory: Sequence[bool], tensors: list[Tensor]) -> list[Tensor]:
    """Run a program that writes into some of its arguments: the results, those among them."""
    memory = [tensors[i] for i in program.given]
    donation.check_apart(tensors, program.given, program.extents)
    try:
        rest = iter(program.run(tensors))
    finally:  # should it fail, a part is written
        kept = iter(donation.hand_on(memory))
    return [next(kept) if is_donated else next(rest) for is_donated in is_memory]


def iterate(step: Callable[[Any], tuple[Any, Any]], threads: int = 1) -> Callable[[Any, int], tuple[Any, Any]]:
    """`n` times `step(state) -> (state, info)`, compiled.

    On a CPU that is one program, with a loop of `n` turns. On a GPU a step's kernels are recorded at the first call and replayed
    from then on, with no work for the processor in between. A state that lies on both is stepped n times.

    Args:
        threads: as `compile` takes them.

    Returns:
        `run(state, n)`: the state after `n >= 1` steps, and the last one's info.
    """
    recorded: dict[Any, Callable] = {}
    compiled, looped = compile(step, threads), compile(partial(repeat, step), threads)

    def run(state: Any, n: int) -> tuple[Any, Any]:
        leaves, structure = tree.flatten(state)
        devices = {x.device.type for x in leaves if isinstance(x, Tensor)}
        if devices == {"cuda"}:
            places = [x.data_ptr() for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if is_donated]
            key = (structure, *[programs.kind(x) for x in leaves], *places)  # what is recorded writes into this memory
            if key not in recorded:
                recorded[key] = cuda.record(compiled, state)
            return recorded[key](state, n)
        if compiling.is_tested() and "cuda" not in devices:
            return looped(state, torch.tensor(n))
        for _ in range(n):
            state, info = compiled(state)
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
        return Trace(*programs.trace_plainly(_leafwise(f), leaves, structure))
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


def _is_traced() -> bool:
    """Whether a function is being traced, here or by one's own `torch.compile`."""
    return torch.compiler.is_compiling() or compiling.is_tracing()


def _is_inside() -> bool:
    """Whether a function is being traced or mapped: what was compiled apart becomes a part of it."""
    return _is_traced() or compiling.is_mapping()


def _leafwise(f: Callable) -> Callable:
    """`f` as `(leaves, structure) -> (leaves, structure)`: lists are faster to trace, and to check at a call, than trees."""
    return getattr(f, "leafwise", None) or (
        lambda leaves, structure: tree.flatten(_tensors("a result", f(*tree.unflatten(structure, leaves))))
    )


def _tensors(what: str, values: Any) -> Any:
    """A tree, if all its leaves are tensors."""
    for x in tree.leaves(values):
        if not isinstance(x, Tensor):
            raise ValueError(f"{what} has the leaf {x!r}; under compile and vmap all are tensors, such as torch.tensor(1.0)")
    return values


def vmap(f: Callable, in_dims: int | tuple[int | None, ...] = 0) -> Callable:
    """`torch.vmap` over trees, whose results own their memory.

    Args:
        in_dims: the mapped axis of the arguments' tensors, None for an argument that is not mapped. `Donated` memory is mapped
            along its first axis or, where it is only read, not at all.

    Raises:
        ValueError: donated memory is mapped along another axis, or is not mapped and written or given back; a tensor has no such
            axis, or not the others' length of it; a result is not a tensor.
    """
    leafwise_lane = _leafwise(f)

    def leafwise(leaves: Sequence[Any], structure: Any) -> tuple[Sequence[Any], Any]:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(structure.children)
        lane_args = [x if dim is None else tree.batched(x, -1) for dim, x in zip(dims, structure.children, strict=True)]
        lane_structure = structure._replace(children=tuple(lane_args))
        structures: list[Any] = []
        arg_dims = [dim for dim, x in zip(dims, structure.children, strict=True) for _ in range(tree.size(x))]
        leaf_dims = [dim if isinstance(x, Tensor) else None for dim, x in zip(arg_dims, leaves, strict=True)]
        memory = [i for i, (_, is_donated) in enumerate(_marked(leaves, structure)) if is_donated]
        if any(leaf_dims[i] not in (0, None) for i in memory):
            raise ValueError(f"vmap: in_dims = {in_dims}, but donated memory is mapped along axis 0 or, to be read only, None")
        handed_on: list[int] = []

        def lane(*leaves: Any) -> tuple[Any, ...]:
            results, results_structure = leafwise_lane(leaves, lane_structure)
            structures.append(results_structure)
            back = [x for x, is_donated in _marked(results, results_structure) if is_donated]
            handed_on.extend(i for i in memory if donation.is_spent(leaves[i]) or any(leaves[i] is x for x in back))
            if any(leaf_dims[i] is None for i in handed_on):
                raise ValueError(
                    "vmap: donated memory that is not mapped, in_dims None, can be read only, not written or given back"
                )
            return tuple(results)

        results = torch.vmap(lane, tuple(leaf_dims))(*leaves)
        if not _is_traced():
            old = [leaves[i] for i in handed_on]
            new = dict(zip(map(id, old), donation.hand_on(old), strict=True))
            results = tuple([new.get(id(x), x) for x in results])  # torch gives back what it was given, if nothing was written
        return results, tree.batched(structures[0], 1)

    def mapped(*args: Any) -> Any:
        leaves, args_structure = tree.flatten(args)
        results, structure = leafwise(leaves, args_structure)
        if compiling.is_tracing():
            keep = lambda x: x  # noqa: E731
        elif any(tree.donated(args_structure)) and not torch.compiler.is_compiling():
            keep = donation.renamed
        else:  # new memory may be one lane's, shown many times; and with other strides it would be compiled for again
            keep = torch.Tensor.contiguous
        return tree.unflatten(structure, [keep(x) if is_donated else tree.copy(x) for x, is_donated in _marked(results, structure)])

    mapped.leafwise = leafwise  # type: ignore[attr-defined]
    if not torch.compiler.is_compiling():
        fallback.own_cache(mapped)
    return mapped


def write(memory: Donated, rows: Tensor, values: Any) -> Donated:
    """Write into some rows of donated memory, in place.

    Args:
        memory: leaves `[N, ...]`. It is *donated*.
        rows: `[M]` int64 in `[-N, N)`, negative ones from the end, on any device. Of the values for a row that is there twice any
            one is written.
        values: what is written there, leaves `[M, ...]` under the memory's names; a tensor where the memory is a single one.

    Returns:
        The memory with the rows written.

    Raises:
        SpentError: it was donated before.
        ValueError: the names, shapes or dtypes are not the memory's; nothing is written then.
        IndexError: there is no such row. Where it is compiled, a CPU raises a RuntimeError, "index out of bounds", and a GPU fails
            for good; the memory, of which a part may be written, is then spent.
    """
    leaves, structure = tree.flatten(memory)
    new = _in_order_of(memory, leaves, rows, values)
    if _is_traced():
        for _ in leaves if compiling.is_tracing() else ():
            compiling.note_write()
        return tree.unflatten(structure, [x.index_put((rows.to(x.device),), v) for x, v in zip(leaves, new, strict=True)])
    for x, v in zip(leaves, new, strict=True):
        _put(x, rows, v)
    return tree.unflatten(structure, donation.hand_on(leaves))


def _put(x: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write into rows of a tensor; torch's errors, in the words of `write`."""
    try:
        x.index_put_((rows.to(x.device),), values)
    except IndexError as error:
        raise IndexError(f"write: memory of {len(x)} rows has those from {-len(x)} to {len(x) - 1}, but {error}") from error
    except RuntimeError as error:
        if not str(error).startswith("vmap:"):
            raise
        raise ValueError(
            "write: under vmap, memory that is not mapped, by in_dims None or because it is new, can be read only"
        ) from error


def _marked(leaves: Sequence[Any], structure: Any) -> Iterator[tuple[Any, bool]]:
    """Each leaf, and whether it is donated."""
    return zip(leaves, tree.donated(structure), strict=True)


def _in_order_of(memory: Donated, leaves: list[Tensor], rows: Tensor, values: Any) -> list[Tensor]:
    """The leaves of what is written, in the memory's order, checked."""
    if not isinstance(memory, Donated):
        raise ValueError(f"write: memory is {type(memory).__name__}, not Donated")
    if not isinstance(rows, Tensor) or rows.ndim != 1 or rows.dtype != torch.int64:
        what = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"write: rows are {what}, not int64 [M]")
    names = list(_named(memory.memory))
    found = dict.fromkeys(names, values) if isinstance(values, Tensor) and len(names) == 1 else _named(values)
    if set(found) != set(names):
        raise ValueError(f"write: values have the names {sorted(found)}, but the memory has {sorted(names)}")
    for name, x in zip(names, leaves, strict=True):
        if not x.ndim:
            raise ValueError(f"write: the memory {name} is a single number and has no rows")
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

    Under `compile` it is one loop of the program, not an unrolled one; a single turn is none. It cannot be differentiated through;
    a gradient may be taken inside `body`.

    Args:
        body: `body(carry, x) -> (carry, y)`; the carry keeps its structure, shapes and dtypes, and `y` is a nesting of plain
            dicts, lists and tuples of tensors.
        carry: a tree; what is `Donated` in it is written in place.
        xs: a tree whose leaves are `[T, ...]`.

    Returns:
        The last carry, and the tree of `y` with leaves `[T, ...]`.
    """
    if not len(next(iter(tree.leaves(xs)), ())):
        raise ValueError("scan: there is nothing to go through, xs has no leaves or they are empty")
    if not _is_traced() or len(tree.leaves(xs)[0]) == 1:
        ys = []
        for t in range(len(tree.leaves(xs)[0])):
            carry, y = body(carry, tree.index(xs, t))
            ys.append(y)
        return carry, tree.stack(ys)

    # Each tensor that crosses the loop's border costs time at every turn, so small ones cross packed; the `y` go into place one by
    # one, and donated memory stays where it is.
    packed_carry, unpack_carry = tree.pack(_tensors("scan: the carry", carry), apart=LARGE)
    packed_xs, unpack_x = tree.pack(xs, axes=1)

    def turn(packed_carry: dict, packed_xs: dict) -> tuple[dict, Any]:
        carry, y = body(unpack_carry(packed_carry), unpack_x(packed_xs))
        return tree.pack(_tensors("scan: the carry", carry), apart=LARGE)[0], tree.copy(_tensors("scan: y", y))

    packed_carry, ys = _loop(turn, packed_carry, packed_xs)
    return tree.copy(unpack_carry(packed_carry)), ys


def repeat(step: Callable[[Any], tuple[Any, Any]], state: Any, turns: Tensor) -> tuple[Any, Any]:
    """`for _ in range(turns): state, info = step(state)`, where `turns` is `[]` int64, at least 1 and the same for all lanes.

    Under `compile` it is one loop of the program, whatever their number; as a `scan`, it cannot be differentiated through.

    Returns:
        The last state, and the last turn's info, a nesting of TensorDicts, dicts, lists and tuples of tensors.
    """
    if not compiling.is_tracing():
        for _ in range(int(turns)):
            state, info = step(state)
        return state, info
    packed, unpack = tree.pack(_tensors("repeat: the state", state), apart=LARGE)
    structures = []

    def turn(packed: dict, _: Tensor) -> tuple[dict, Any]:
        state, info = step(unpack(packed))
        structures.append(tree.structure(info))
        new = tree.pack(_tensors("repeat: the state", state), apart=LARGE)[0]
        return new, tree.copy(tree.leaves(_tensors("repeat: the info", info)))

    packed, info = _loop(turn, packed, turns, _repeat_in_trace)
    return tree.copy(unpack(packed)), tree.unflatten(structures[-1], info)


def _scan_in_trace(f: Callable, carry: list[Tensor], xs: list[Tensor], n_donated: int) -> list[Tensor]:
    from purerl.compiling import loops

    return loops.loop(f, carry, xs, n_donated)


def _repeat_in_trace(f: Callable, carry: list[Tensor], xs: list[Tensor], n_donated: int) -> list[Tensor]:
    from purerl.compiling import loops

    return loops.repeat(f, carry, xs[0], n_donated)


def _loop(turn: Callable, carry: Any, xs: Any, in_trace: Callable = _scan_in_trace) -> tuple[Any, Any]:
    """One loop of the program that is being traced, over the tensors of the trees."""
    carry_leaves, carry_structure = tree.flatten(carry)

    def flat_turn(carry: Sequence[Tensor], xs: Any) -> tuple[list[Tensor], Any]:
        new, y = turn(tree.unflatten(carry_structure, carry), xs)
        return tree.leaves(new), y

    n_donated = sum(tree.donated(carry_structure))  # the last ones, as `pack` has it
    if torch.compiler.is_compiling():
        leaves, ys = fallback.loop(flat_turn, carry_leaves, xs, n_donated)
    else:
        leaves, ys = _loop_of_trace(flat_turn, carry_leaves, xs, n_donated, in_trace)
    return tree.unflatten(carry_structure, leaves), ys


def _loop_of_trace(turn: Callable, carry: list[Tensor], xs: Any, n_donated: int, in_trace: Callable) -> tuple[list[Tensor], Any]:
    xs_leaves, xs_structure = tree.flatten(xs)
    n, structures = len(carry), []

    def on_tensors(*tensors: Tensor) -> list[Tensor]:
        new, y = turn(tensors[:n], tree.unflatten(xs_structure, tensors[n:]))
        y_leaves, y_structure = tree.flatten(y)
        structures.append(y_structure)
        return [*new, *y_leaves]

    results = in_trace(on_tensors, carry, xs_leaves, n_donated)
    return results[:n], tree.unflatten(structures[-1], results[n:])
