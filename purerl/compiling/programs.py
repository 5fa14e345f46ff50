"""A function's program: from disk if it is there, else traced and compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from purerl import tree
from purerl.compiling import disk

Run = Callable[[list[Tensor]], list[Tensor]]


def kind(x: Any) -> Any:
    """What a program depends on of an argument's leaf: shape, strides, dtype and device of a tensor, the value of anything else."""
    return (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)


def on_tensors(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[Callable[..., Sequence[Tensor]], list[Any]]:
    """The function of the tensors among the leaves to the results' leaves, and where it notes the results' structure."""
    structures: list[Any] = []

    def program(*tensors: Tensor) -> Sequence[Tensor]:
        rest = iter(tensors)
        results, results_structure = leafwise([next(rest) if isinstance(x, Tensor) else x for x in leaves], structure)
        structures.append(results_structure)
        return tree.own(tuple(results))

    return program, structures


def build(leafwise: Callable, leaves: Sequence[Any], structure: Any, threads: int, n_donated: int) -> tuple[Run, Any]:
    """The program of `leafwise(leaves, structure) -> (results, structure)`.

    A function of this package is told by its code and what it closes over, and is then not traced at all; any other, and one that
    closes over other numbers, by its graph.

    Returns:
        A function of the tensors, as a list that it empties, to the results' leaves; and the results' structure.
    """
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    on_cpu = all(x.device.type == "cpu" for x in tensors)
    name = disk.name("call", leafwise, structure, [kind(x) for x in leaves], threads, n_donated) if on_cpu else None
    found = disk.load(name) if name else None
    if found is not None:
        return _with(disk.run(found.library), found.constants), found.structure

    from purerl.compiling import inductor, tracing  # a second of imports, for what is not on disk

    program, structures = on_tensors(leafwise, leaves, structure)
    graph = tracing.trace(program, tensors, n_donated)
    by_graph = disk.name("graph", tracing.describe(graph), threads) if on_cpu else None
    found = disk.load(by_graph) if by_graph else None
    run, library = (disk.run(found.library), found.library) if found else inductor.build(graph, threads)
    if library is not None:
        for key in filter(None, (name, by_graph)):
            disk.save(key, library, structures[0], graph.constants)
    return _with(run, graph.constants), structures[0]


def trace(leafwise: Callable, leaves: Sequence[Any], structure: Any) -> tuple[list[bool], list[Tensor], Any]:
    """Which leaves the results depend on, the results' leaves as tensors without data, and their structure."""
    name = disk.name("trace", leafwise, structure, [kind(x) for x in leaves])
    found = disk.kept(name) if name else None
    if found is None:
        from purerl.compiling import tracing

        program, structures = on_tensors(leafwise, leaves, structure)
        graph = tracing.trace(program, leaves)
        found = graph.used, [(x.shape, x.dtype) for x in graph.results], structures[0]
        if name:
            disk.keep(name, found)
    used, kinds, results_structure = found
    return used, [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in kinds], results_structure


def _with(run: Run, constants: Sequence[Tensor]) -> Run:
    return (lambda leaves: run([*leaves, *constants])) if constants else run
