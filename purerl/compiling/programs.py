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


class Outcome(NamedTuple):
    """What is known of a function once it has run.

    Attributes:
        structure: the results'.
        given: which of the tensors that it was given are the donated memory that comes back, in its order.
    """

    structure: Any
    given: tuple[int, ...]


def on_tensors(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[Callable[..., Sequence[Tensor]], list[Outcome]]:
    """The function of the tensors among the leaves to the results' leaves, and where it notes the outcome.

    Donated memory that it gives back is written into what was given, and left out of the results.
    """
    outcomes: list[Outcome] = []
    given, call = _donated(leaves, structure), _of_tensors(leafwise, leaves, structure)

    def program(*tensors: Tensor) -> Sequence[Tensor]:
        results, results_structure = call(tensors)
        is_memory = [is_donated and bool(given) for is_donated in tree.donated(results_structure)]
        memory = [x for x, there in zip(results, is_memory, strict=True) if there]
        back = [given[k] for k in _coming_back([tensors[i] for i in given], memory, _origins)]
        outcomes.append(Outcome(results_structure, tuple(back)))
        return _written(tensors, results, is_memory, back)

    return program, outcomes


def _of_tensors(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> Callable[[Sequence[Tensor]], tuple]:
    """The function of the tensors among the leaves. It keeps none of these: their memory may be spent when it is called."""
    others = [None if isinstance(x, Tensor) else (x,) for x in leaves]

    def call(tensors: Sequence[Tensor]) -> tuple:
        rest = iter(tensors)
        return leafwise([next(rest) if x is None else x[0] for x in others], structure)

    return call


def _written(
    tensors: Sequence[Tensor], results: Sequence[Tensor], is_memory: Sequence[bool], back: Sequence[int]
) -> tuple[Tensor, ...]:
    """Write the results that are memory into the tensors that they were made from; a copy of the others."""
    memory = [x for x, there in zip(results, is_memory, strict=True) if there]
    for i, x in zip(back, memory, strict=True):
        if x is not tensors[i]:
            tensors[i].copy_(x)
    return tree.copy(tuple([x for x, there in zip(results, is_memory, strict=True) if not there]))


def _donated(leaves: Sequence[Any], structure: Any) -> tuple[int, ...]:
    """Which of the tensors among the leaves are donated."""
    marks = [is_donated for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if isinstance(x, Tensor)]
    return tuple(i for i, is_donated in enumerate(marks) if is_donated)


def _coming_back(given: Sequence[Tensor], back: Sequence[Tensor], origins: Callable) -> list[int]:
    """Which of the donated tensors come back: all in their order, or those that what comes back was made from."""
    found = list(range(len(given))) if len(back) == len(given) else origins(given, back)
    kinds = [[(x.dtype, list(x.shape)) for x in tensors] for tensors in ([given[k] for k in found if k is not None], back)]
    if kinds[0] != kinds[1] or len(set(found)) < len(found):
        raise ValueError(
            f"compile: the function is given the donated tensors {[(x.dtype, list(x.shape)) for x in given]} and gives back "
            f"{kinds[1]}; what it gives back must be what it was given, written or not, each once, and of the same shape and "
            "dtype (under vmap, memory that is not mapped can be read only)"
        )
    return found


def _origins(given: Sequence[Tensor], back: Sequence[Tensor]) -> list[int | None]:
    """Which of the donated tensors others were made from by what has been traced, None if from none."""
    from purerl.compiling import in_place, tracing

    nodes = [tracing.node(x) for x in given]
    made_from = [in_place.origin(tracing.node(x)) for x in back]
    return [nodes.index(x) if x in nodes else None for x in made_from]


def build(leafwise: Callable, leaves: Sequence[Any], structure: Any, threads: int, n_written: int) -> Built:
    """The program of `leafwise(leaves, structure) -> (results, structure)`.

    A function of this package is told by its code and what it closes over, and is then not traced at all; any other, and one that
    closes over other numbers, by its graph.

    Args:
        n_written: how many of the first tensors it may write into, by `copy_` of the whole.
    """
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    donated, extents = _donated(leaves, structure), tuple(map(donation.extent, tensors))
    on_cpu = all(x.device.type == "cpu" for x in tensors)
    name = disk.name("call", leafwise, structure, [kind(x) for x in leaves], threads, n_written) if on_cpu else None
    found = disk.load(name) if name else None
    if found is not None:
        run = _with(disk.run(found.library), found.constants)
        return Built(run, found.outcome.structure, found.outcome.given, extents)

    program, outcomes = on_tensors(leafwise, leaves, structure)
    with _without_collecting():
        from purerl.compiling import inductor, tracing  # a second of imports, for what is not on disk

        graph = tracing.trace(program, tensors, (*range(n_written), *donated), donated)
        by_graph = disk.name("graph", tracing.describe(graph), threads) if on_cpu else None
        found = disk.load(by_graph) if by_graph else None
        run, library = (disk.run(found.library), found.library) if found else inductor.build(graph, threads)
    if library is not None:
        if name:
            disk.save(name, library, outcomes[0], graph.constants)
        if by_graph:  # what is found by its graph has just been traced: its structure, of one's own classes perhaps, is known
            disk.save(by_graph, library, None, graph.constants)
    return Built(_with(run, graph.constants), *outcomes[0], extents)


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
    results, results_structure, found = _try(leafwise, leaves, structure)
    given, tensors = _donated(leaves, structure), [x for x in leaves if isinstance(x, Tensor)]
    is_memory = [is_donated and bool(given) for is_donated in tree.donated(results_structure)]
    memory = [x for x, there in zip(results, is_memory, strict=True) if there]
    back = [given[k] for k in _coming_back([tensors[i] for i in given], memory, lambda *_: found)]
    call = _of_tensors(leafwise, leaves, structure)

    def program(*tensors: Tensor) -> Sequence[Tensor]:
        return _written(tensors, call(tensors)[0], is_memory, back)

    return Built(fallback.build(program), results_structure, tuple(back), tuple(map(donation.extent, tensors)))


def _try(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[Sequence[Tensor], Any, list[int | None]]:
    """Run a function once on a copy of what is donated.

    Returns:
        The results' leaves and structure, and which of the donated tensors those that come back were made from.
    """
    marks = tree.donated(structure)
    copies = [x.clone() if is_donated else x for x, is_donated in zip(leaves, marks, strict=True)]
    places = [x.data_ptr() for x, is_donated in zip(copies, marks, strict=True) if is_donated]
    results, results_structure = leafwise(copies, structure)
    memory = [x for x, there in zip(results, tree.donated(results_structure), strict=True) if there and places]
    return results, results_structure, [places.index(x.data_ptr()) if x.data_ptr() in places else None for x in memory]


def trace_plainly(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[list[bool], list[Tensor], Any]:
    """`trace` by running the function: every leaf counts as one that the results depend on."""
    results, results_structure, _ = _try(leafwise, leaves, structure)
    return [True] * len(leaves), [x.to("meta") for x in results], results_structure


def trace(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[list[bool], list[Tensor], Any]:
    """Which leaves the results depend on, the results' leaves as tensors without data, and their structure."""
    name = disk.name("trace", leafwise, structure, [kind(x) for x in leaves])
    found = disk.kept(name) if name else None
    if found is None:
        from purerl.compiling import tracing

        program, outcomes = on_tensors(leafwise, leaves, structure)
        donated = _donated(leaves, structure)
        graph = tracing.trace(program, leaves, donated, donated)
        found = graph.used, [(x.shape, x.dtype) for x in graph.results], outcomes[0].structure
        if name:
            disk.keep(name, found)
    used, kinds, results_structure = found
    return used, [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in kinds], results_structure


def _with(run: Run, constants: Sequence[Tensor]) -> Run:
    return (lambda leaves: run([*leaves, *constants])) if constants else run
