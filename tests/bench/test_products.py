"""Products of matrices in compiled programs, against torch's own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from bench.contest import Contest, Side, by_turns, repeated

from purerl import compile


@contextmanager
def products(rows: int, width: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    """Of `[rows, width]` and `[width, width]`, 64 at a call: a layer of as many lanes."""
    torch.set_num_threads(1)
    a, b = torch.rand(64, rows, width), torch.rand(64, width, width)
    multiply = compile(torch.bmm)
    calls = max(1, (1 << 24) // (rows * width * width))
    yield {"purerl": repeated(lambda: multiply(a, b), calls, 64), "torch": repeated(lambda: torch.bmm(a, b), calls, 64)}


@by_turns(
    *(
        Contest(
            name=f"products-{rows}-{width}",
            title=f"[{rows}, {width}] x [{width}, {width}], one thread",
            sides=("purerl", "torch"),
            open=partial(products, rows, width),
            peers=("torch",),
            rounds=15,
            unit="products",
            per=1,
        )
        for rows, width in ((4, 64), (128, 64), (256, 256))
    )
)
def test_products(replay: Callable[[], None]) -> None:
    replay()
