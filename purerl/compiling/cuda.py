"""Kernels recorded once and replayed: a GPU runs many small ones faster than a processor can ask for them."""

from collections.abc import Callable
from typing import Any

import torch

from purerl import donation, tree


def record(step: Callable[[Any], tuple[Any, Any]], example: Any) -> Callable[[Any, int], tuple[Any, Any]]:
    """Record `step(state) -> (state, info)` as a CUDA graph, which from then on writes into the donated memory of the example.

    Returns:
        `run(state, n)`: the state after `n` steps, and the last one's info.
    """
    leaves, structure = tree.flatten(example)
    is_donated = tree.donated(structure)
    place = [donation.renamed(x) if there else x.clone() for x, there in zip(leaves, is_donated, strict=True)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(tree.map(torch.clone, example))  # compiles, and lets the libraries take their working memory
    torch.cuda.current_stream().wait_stream(stream)

    def read() -> Any:
        return tree.unflatten(structure, [donation.renamed(x) if there else x for x, there in zip(place, is_donated, strict=True)])

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        new, info = step(read())
        for old, x, there in zip(place, tree.leaves(new), is_donated, strict=True):
            if not there:
                old.copy_(x)

    def run(state: Any, n: int) -> tuple[Any, Any]:
        given = tree.leaves(state)
        for old, x in zip(place, given, strict=True):
            if old.data_ptr() != x.data_ptr():
                old.copy_(x)
        donation.hand_on([x for x, there in zip(given, is_donated, strict=True) if there])
        for _ in range(n):
            graph.replay()
        leaves = [donation.renamed(x) if there else x.clone() for x, there in zip(place, is_donated, strict=True)]
        return tree.unflatten(structure, leaves), tree.map(torch.clone, info)

    return run
