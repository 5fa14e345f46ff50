"""What a run writes down and tells while it goes on."""

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from purerl import checkpoint, logs, samplers, tree
from purerl.evaluate import Evaluation, play
from purerl.training.programs import Runner
from purerl.training.run import Run, build, lane_name, lanes

EVAL_SEED = 1_000_000  # of evaluation's environments, which training does not see


class Failure(NamedTuple):
    """A lane that stopped after so many steps, because its state was no longer finite."""

    lane: str
    steps: int


class Moment(NamedTuple):
    """Where a run stands after some update.

    Attributes:
        runner: its lanes.
        update, steps: made in each lane.
        seconds: of training so far.
        rate: steps a second in each lane; 0 before it can be told.
        failed: the lanes that have stopped, by name.
        lost: batches that were lost with a worker.
        last: it was the run's last update.
    """

    runner: Runner
    update: int
    steps: int
    seconds: float
    rate: float
    failed: dict[str, Failure]
    lost: int
    last: bool


class Hook(NamedTuple):
    """Something that is done when a run has come so far.

    Attributes:
        due: `due(update)`, after how many updates from this one on, at least one, it looks again.
        act: `act(moment)`, at every moment at which the run looks up.
    """

    due: Callable[[int], int]
    act: Callable[[Moment], None]


def every(n: int, act: Callable[[Moment], None]) -> Hook:
    """A hook that acts every n updates, and after the last one."""
    return Hook(lambda update: n - update % n, lambda moment: act(moment) if moment.update % n == 0 or moment.last else None)


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        steps, total: done and to do in each lane.
        rate: steps a second in all lanes; 0 before it can be told.
        mean_return: over lanes, NaN before the first episode has ended.
        left: seconds.
        failed: the lanes that have stopped.
    """

    steps: int
    total: int
    rate: float
    mean_return: float
    left: float
    failed: tuple[Failure, ...]


class Figures:
    """The files figures go to: one CSV a lane, one TensorBoard run a variant (means over its seeds).

    Args:
        keep_steps: rows beyond this step count are dropped.
    """

    def __init__(self, out: Path, run: Run, keep_steps: int) -> None:
        self.names = [lane_name(variant, seed) for variant, seed in lanes(run)]
        self._csv = [logs.CsvLog(out / name, keep_steps) for name in self.names]
        groups: list[str] = [str(Path(name).parent) for name in self.names]
        self._members = {group: [i for i, g in enumerate(groups) if g == group] for group in groups}
        self._tb = {group: logs.TensorBoardLog(out / "tb" / group, keep_steps + 1) for group in self._members}
        self.mean_return = np.nan

    def write(self, moment: Moment) -> None:
        """One row of every lane that has not stopped."""
        figures = moment.runner.figures()
        going = [name not in moment.failed for name in self.names]
        clock = {
            logs.STEPS: moment.steps,
            logs.TIME: round(moment.seconds, 3),
            logs.RATE: round(moment.rate, 1),
            logs.LOST: moment.lost,
        }
        rows: list[tuple[Any, dict[str, Any]]] = [
            (lane, {**clock, **{name: x[i] for name, x in figures.items()}}) for i, lane in enumerate(self._csv) if going[i]
        ]
        for group, members in self._members.items():
            members = [i for i in members if going[i]]
            if members:
                rows.append((self._tb[group], {**clock, **{name: x[members].mean() for name, x in figures.items()}}))
        logs.write_all(rows)
        returns = figures["ReturnAverage"][going]
        self.mean_return = np.nan if np.isnan(returns).all() else float(np.nanmean(returns))

    def close(self) -> None:
        """Close the files."""
        for lane in self._csv:
            lane.close()
        for sink in self._tb.values():
            sink.close()


class Evaluator:
    """Evaluations of a run while it trains, in `evaluation.csv` of each lane and in TensorBoard.

    What is to be evaluated is written beside the checkpoints before, and deleted when its figures are: a run that ends in between
    makes the evaluation up when it is resumed.

    Args:
        acting: the algorithm's: only what it gives is evaluated and written.
        keep_steps: rows beyond this step count are dropped, as in `progress.csv`.
        evaluated: steps up to which evaluations were begun.
        batch: steps of an update.
    """

    def __init__(self, run: Run, acting: Callable[[Any], Any], out: Path, keep_steps: int, evaluated: int, batch: int) -> None:
        self._acting, self._batch = lambda tile: acting(tile.learner.algo), batch
        self._run, self._every, self._background = run, run.evaluating.eval_every, run.evaluating.eval_background
        self._folder, self.evaluated = out / "checkpoints", evaluated
        self._pool: ProcessPoolExecutor | None = None
        self._pending: tuple[int, list[bool], Future[Evaluation]] | None = None
        self._sinks: list[tuple[logs.CsvLog, logs.TensorBoardLog]] = []
        self._owed = []
        for path in sorted(self._folder.glob("evaluation_*.safetensors")):
            steps = int(path.stem.removeprefix("evaluation_"))
            if steps > keep_steps:
                path.unlink()  # it will be due again
            else:
                self._owed.append(steps)
        keep_steps = min([keep_steps, *(steps - 1 for steps in self._owed)])  # rows of some lanes may have been written
        for variant, seed in lanes(run) if self._every else ():
            name = lane_name(variant, seed)
            tensorboard = logs.TensorBoardLog(out / "tb" / "evaluation" / name, keep_steps + 1)
            self._sinks.append((logs.CsvLog(out / name, keep_steps, "evaluation.csv"), tensorboard))

    @property
    def hook(self) -> Hook:
        """Looks when the next evaluation is due, and after the last update."""
        return Hook(self._due, lambda moment: self.look(moment.runner, moment.steps, moment.last))

    def make_up(self, runner: Runner) -> None:
        """Evaluate what an earlier part of the run has left."""
        for steps in self._owed:
            try:
                owed, _ = checkpoint.load(self._path(steps), runner.gather(self._acting), self._run.device)
            except checkpoint.CheckpointError as error:
                warnings.warn(f"{error}; the evaluation after {steps} steps is left out", stacklevel=3)
                self._path(steps).unlink()
                continue
            self._pending = steps, self._going(runner, steps), self._evaluate(owed)
            self._collect()

    def _going(self, runner: Runner, steps: int) -> list[bool]:
        """Which lanes were going after so many steps."""
        return runner.gather(lambda tile: tile.updates * self._batch >= steps).tolist()

    def _path(self, steps: int) -> Path:
        return self._folder / f"evaluation_{steps:012d}.safetensors"

    def _next(self) -> int:
        return (self.evaluated // self._every + 1) * self._every

    def _due(self, update: int) -> int:
        return max(1, -(-(self._next() - update * self._batch) // self._batch)) if self._every else 1 << 62

    def look(self, runner: Runner, steps: int, last: bool) -> None:
        """Evaluate the lanes if it is time to, and write down what has been found of those that have not stopped."""
        if not self._every:
            return
        if steps >= self._next() or (last and steps > self.evaluated):
            self._collect()  # one at a time: training waits for an evaluation that is slower than itself
            acting = runner.gather(self._acting)
            checkpoint.save(self._path(steps), [acting], {})
            self.evaluated = steps
            self._pending = steps, self._going(runner, steps), self._evaluate(acting)
        if self._pending and (last or not self._background or self._pending[-1].done()):
            self._collect()

    def _evaluate(self, acting: Any) -> "Future[Evaluation]":
        if not self._background:
            found: Future[Evaluation] = Future()
            found.set_result(evaluate_run(self._run, acting))
            return found
        if self._pool is None:
            around = samplers.surroundings()
            self._pool = ProcessPoolExecutor(1, samplers.context(), initializer=samplers.settle_in, initargs=(around,))
        leaves, structure = tree.flatten(acting)
        return self._pool.submit(_evaluate_elsewhere, self._run, structure, [x.cpu().numpy() for x in leaves])

    def _collect(self) -> None:
        if self._pending is None:
            return
        (steps, goings, found), self._pending = self._pending, None
        rows: list[tuple[Any, dict[str, Any]]] = []
        for sinks, going, returns, lengths in zip(self._sinks, goings, *found.result(), strict=True):
            if not going:
                continue
            row: dict[str, Any] = {
                logs.STEPS: steps,
                "Evaluation/ReturnAverage": returns.mean(),
                "Evaluation/ReturnStd": returns.std(),
                "Evaluation/LengthAverage": lengths.mean(),
                "Evaluation/Episodes": len(returns),
            }
            rows += [(sink, row) for sink in sinks]
        logs.write_all(rows)
        self._path(steps).unlink(missing_ok=True)

    def close(self) -> None:
        """End an evaluation that is under way, and close the files."""
        if self._pool is not None:
            for process in list(self._pool._processes.values()) if self._pending else ():
                process.kill()  # nobody waits for it any more
            self._pool.shutdown(cancel_futures=True)
        for lane, tensorboard in self._sinks:
            lane.close()
            tensorboard.close()


def evaluate_run(run: Run, acting: Any) -> Evaluation:
    """Evaluate what acting needs of the states `[L]` of a run, as its settings say."""
    algo, env = build(run)
    return play(algo, env, acting, len(lanes(run)), run.evaluating.eval_episodes, EVAL_SEED, run.evaluating.eval_steps)


def _evaluate_elsewhere(run: Run, structure: Any, leaves: list[np.ndarray]) -> Evaluation:
    return evaluate_run(run, tree.unflatten(structure, [torch.from_numpy(x) for x in leaves]))
