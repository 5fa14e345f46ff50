"""A function's program: from disk if it is there, else traced and compiled."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purerl import donation, tree
from purerl.compiling import disk, fallback

Run = Callable[[list[Tensor]], list[Tensor]]


class Built(NamedTuple):
    """A function's program for arguments of one kind.

    Attributes:
        run: of the tensors, as a list that it empties, to the results' leaves but for donated memory that comes back.
        structure: the results'.
        given: which of the tensors are that memory; empty if none comes back.
        extents: bytes that each tensor spans.
    """

    run: Run
    structure: Any
    given: tuple[int, ...]
    extents: tuple[int, ...]


def kind(x: Any) -> Any:
    """What a program depends on of an argument's leaf: shape, strides, dtype and device of a tensor, the value of anything else."""
    return (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)


def on_tensors(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[Callable[..., Sequence[Tensor]], list[Any]]:
    """The function of the tensors among the leaves to the results' leaves, and where it notes the results' structure.

    Donated memory that it gives back is written into what was given, and left out of the results.
    """
    structures: list[Any] = []
    given = _donated(leaves, structure)

    def program(*tensors: Tensor) -> Sequence[Tensor]:
        rest = iter(tensors)
        results, results_structure = leafwise([next(rest) if isinstance(x, Tensor) else x for x in leaves], structure)
        structures.append(results_structure)
        if not _in_place(given, results_structure):
            return tree.copy(tuple(results))
        is_memory = tree.donated(results_structure)
        memory = [x for x, is_donated in zip(results, is_memory, strict=True) if is_donated]
        _check_memory([tensors[i] for i in given], memory)
        for i, x in zip(given, memory, strict=True):
            if x is not tensors[i]:
                tensors[i].copy_(x)
        return tree.copy(tuple([x for x, is_donated in zip(results, is_memory, strict=True) if not is_donated]))

    return program, structures


def _donated(leaves: Sequence[Any], structure: Any) -> tuple[int, ...]:
    """Which of the tensors among the leaves are donated."""
    marks = [is_donated for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if isinstance(x, Tensor)]
    return tuple(i for i, is_donated in enumerate(marks) if is_donated)


def _in_place(given: tuple[int, ...], results: Any) -> tuple[int, ...]:
    """Which of the donated tensors come back in results of this structure: all or none."""
    return given if any(tree.donated(results)) else ()


def _check_memory(given: Sequence[Tensor], back: Sequence[Tensor]) -> None:
    kinds = [[(x.dtype, list(x.shape)) for x in tensors] for tensors in (given, back)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"compile: the function is given the donated tensors {kinds[0]} and gives back {kinds[1]}; it must give back all of "
            "them, in the same order, or none"
        )


def build(leafwise: Callable, leaves: Sequence[Any], structure: Any, threads: int, n_written: int) -> Built:
    """The program of `leafwise(leaves, structure) -> (results, structure)`.

    A function of this package is told by its code and what it closes over, and is then not traced at all; any other, and one that
    closes over other numbers, by its graph.

    Args:
        n_written: how many of the first tensors it may write into, by `copy_` of the whole.
    """
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    given, extents = _donated(leaves, structure), tuple(map(donation.extent, tensors))
    on_cpu = all(x.device.type == "cpu" for x in tensors)
    name = disk.name("call", leafwise, structure, [kind(x) for x in leaves], threads, n_written) if on_cpu else None
    found = disk.load(name) if name else None
    if found is not None:
        run = _with(disk.run(found.library), found.constants)
        return Built(run, found.structure, _in_place(given, found.structure), extents)

    program, structures = on_tensors(leafwise, leaves, structure)
    with _without_collecting():
        from purerl.compiling import inductor, tracing  # a second of imports, for what is not on disk

        graph = tracing.trace(program, tensors, (*range(n_written), *given), given)
        by_graph = disk.name("graph", tracing.describe(graph), threads) if on_cpu else None
        found = disk.load(by_graph) if by_graph else None
        run, library = (disk.run(found.library), found.library) if found else inductor.build(graph, threads)
    if library is not None:
        if name:
            disk.save(name, library, structures[0], graph.constants)
        if by_graph:  # what is found by its graph has just been traced: its structure, of one's own classes perhaps, is known
            disk.save(by_graph, library, None, graph.constants)
    return Built(_with(run, graph.constants), structures[0], _in_place(given, structures[0]), extents)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Compiling makes millions of objects that live on: looking through them for garbage is a tenth of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def build_plainly(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> Built:
    """`build` with plain `torch.compile`."""
    copies = [tree.copy(x) if is_donated else x for x, is_donated in zip(leaves, tree.donated(structure), strict=True)]
    _, results = leafwise(copies, structure)
    run = fallback.build(on_tensors(leafwise, leaves, structure)[0])
    extents = tuple(donation.extent(x) for x in leaves if isinstance(x, Tensor))
    return Built(run, results, _in_place(_donated(leaves, structure), results), extents)


def trace(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[list[bool], list[Tensor], Any]:
    """Which leaves the results depend on, the results' leaves as tensors without data, and their structure."""
    name = disk.name("trace", leafwise, structure, [kind(x) for x in leaves])
    found = disk.kept(name) if name else None
    if found is None:
        from purerl.compiling import tracing

        program, structures = on_tensors(leafwise, leaves, structure)
        given = _donated(leaves, structure)
        graph = tracing.trace(program, leaves, given, given)
        found = graph.used, [(x.shape, x.dtype) for x in graph.results], structures[0]
        if name:
            disk.keep(name, found)
    used, kinds, results_structure = found
    return used, [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in kinds], results_structure


def _with(run: Run, constants: Sequence[Tensor]) -> Run:
    return (lambda leaves: run([*leaves, *constants])) if constants else run
