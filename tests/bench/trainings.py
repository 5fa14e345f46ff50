"""Whole trainings as sides of contests."""

import queue
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.contest import Side

from purerl import training as runs
from purerl.samplers.arrangements import cores

LENGTH = 500_000  # steps of a run that users have


class Closed(Exception):
    """A training that is no longer needed."""


@contextmanager
def training(algo: str, config: dict[str, Any], seeds: int, steps: int, turns: int, env: str = "CartPole-v1") -> Iterator[Side]:
    """`train` with all that it writes, which stands still between two turns of so many steps a seed.

    It is told to train for longer than it is let to, for it writes a hundred rows whatever the length.
    """
    run = runs.plan(algo, env, seeds, max(turns * steps, LENGTH), config, threads=cores())
    goals: queue.Queue[float] = queue.Queue()
    reached: queue.Queue[int] = queue.Queue()  # 0: it has ended
    goal = 0.0

    def report(progress: runs.Progress) -> None:
        nonlocal goal
        if progress.steps >= goal:
            reached.put(progress.steps)
            goal = goals.get()
            if goal == float("inf"):
                raise Closed

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, suppress(Closed):
            runs.prepare(Path(folder), run)
            runs.train(run, Path(folder), report=report)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        future.add_done_callback(lambda _: reached.put(0))
        at = reached.get() or future.result()

        def side() -> int:
            nonlocal at
            goals.put(goal + steps)
            before, at = at, reached.get() or future.result()
            return (at - before) * seeds

        try:
            yield side
        finally:
            goals.put(float("inf"))
