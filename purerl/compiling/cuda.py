"""Kernels recorded once and replayed: a GPU runs many small ones faster than a processor can ask for them."""

from collections.abc import Callable
from typing import Any

import torch

from purerl import tree


def record(step: Callable[[Any], tuple[Any, Any]], example: Any) -> Callable[[Any, int], tuple[Any, Any]]:
    """Record `step(state) -> (state, info)` as a CUDA graph.

    Returns:
        `run(state, n)`: the state after `n` steps, and the last one's info.
    """
    place = tree.map(torch.clone, example)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(place)  # compiles, and lets the libraries take their working memory
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        new, info = step(place)
        for old, x in zip(tree.leaves(place), tree.leaves(new), strict=True):
            old.copy_(x)

    def run(state: Any, n: int) -> tuple[Any, Any]:
        for old, x in zip(tree.leaves(place), tree.leaves(state), strict=True):
            old.copy_(x)
        for _ in range(n):
            graph.replay()
        return tree.map(torch.clone, place), tree.map(torch.clone, info)

    return run
