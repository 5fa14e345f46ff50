"""What `purerl train` takes up to the end of its first step: with empty caches, and in the next process."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from bench.contest import Contest, Side, Stretch, by_turns


def spent(arguments: list[str], cache: str) -> Stretch:
    """The CPU seconds of one `purerl` process and of all that it has started, compilers too, and beside them those of the clock."""

    def now() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    env = {**os.environ, "PURERL_CACHE": f"{cache}/purerl", "TMPDIR": cache}  # inductor keeps programs and headers in TMPDIR
    cpu, start = now(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "purerl", *arguments], env=env, check=True, stdout=subprocess.DEVNULL)
    return Stretch(1, now() - cpu, {"wall s": time.perf_counter() - start})


@contextmanager
def first_step(seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    with tempfile.TemporaryDirectory() as folder:
        cache = ""

        def train() -> Stretch:
            arguments = f"train ppo --env CartPole-v1 --seeds {seeds} --steps 512 --out {tempfile.mkdtemp(dir=folder)}"
            return spent(arguments.split(), cache)

        def cold() -> Stretch:
            nonlocal cache
            cache = tempfile.mkdtemp(dir=folder)
            return train()

        yield {"cold": cold, "next process": train, "purerl list": lambda: spent(["list"], cache)}


@by_turns(
    *(
        Contest(
            name=f"compile-{seeds}",
            title=f"CPU seconds to the end of the first step: purerl train ppo --env CartPole-v1 --seeds {seeds}",
            sides=("cold", "next process", "purerl list"),
            open=partial(first_step, seeds),
            floors={"cold": lambda seconds: seconds["purerl list"], "next process": lambda seconds: seconds["purerl list"]},
            rounds=2,
            unit="processes",
            per=1,
            warm=False,
        )
        for seeds in (1, 16, 64)
    )
)
def test_compile(replay: Callable[[], None]) -> None:
    replay()
