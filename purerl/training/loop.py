"""The training loop: files, clocks, threads and processes, and no mathematics."""

import contextlib
import ctypes
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from purerl import checkpoint, samplers
from purerl.base import Algorithm, Env
from purerl.envs import HostEnv
from purerl.training.programs import Lanes, Runner, initial_state, make_runner, resumed_state, without_memory
from purerl.training.reports import Evaluator, Failure, Figures, Hook, Moment, Progress, every
from purerl.training.room import check_checkpoints, check_memory, held
from purerl.training.run import Run, build, check_device, lanes, load_run, rows_written, trained_with

REPORT_EVERY = 0.2  # seconds


def finished(out: Path, run: Run) -> bool:
    """Whether a run has taken all its steps, and owes no evaluation."""
    algo, meta = build(run)[0], checkpoint.newest_meta(out / "checkpoints")
    batch = algo.n_envs * algo.n_steps
    owed = run.evaluating.eval_every and meta.get("evaluated", 0) < run.steps // batch * batch
    if meta.get("update", 0) < run.steps // batch or owed or any((out / "checkpoints").glob("evaluation_*")):
        return False
    return checkpoint.newest_is_whole(out / "checkpoints")


def train(
    run: Run,
    out: Path,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoint_every: float = 60.0,
) -> list[Failure]:
    """Train all lanes of a run, and leave `progress.csv` of each, TensorBoard events and checkpoints in its folder.

    Args:
        out: the folder: a prepared one (`prepare`), or one to resume.
        resume: go on from the newest checkpoint; a run that is finished owes at most an evaluation.
        report: called several times a second with how far the run is.
        checkpoint_every: seconds between checkpoints; one is always written at the start, at the end, and when something is raised.

    Returns:
        The lanes that stopped because a number was no longer finite; their last good state is in the checkpoint.

    Raises:
        CheckpointError: resuming, and none of the checkpoints is whole, they are gone, or config.json says something else than what
            the run was trained with; not resuming, and there are some; or another process trains this run.
        RoomError: there is no room for its donated memory, or for the checkpoints that hold it; nothing is taken or written then.
        Exception: whatever collecting, learning or evaluating raises, with a note that says whether the state before is saved.
    """
    out = out.absolute()  # an environment may go to another folder
    threads = run.threads or torch.get_num_threads()
    with checkpoint.locked(out), _one_thread(), _keeping_freed_memory(), _collecting_once():
        return _train(run, out, resume, report, checkpoint_every, threads)


@contextlib.contextmanager
def _keeping_freed_memory() -> Iterator[None]:
    """Let the C library keep what is freed: a program soon asks for the same again, and new pages are filled with zeros first.

    Afterwards it gives all of that back, and what is freed from then on as by itself. What it was told before cannot be asked: its
    thresholds are put where they come to stand after large allocations (mallopt(3)).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):  # another C library
        yield
        return
    mmap_max, mmap_threshold, top_pad, trim_threshold = -4, -3, -2, -1
    for parameter, value in ((mmap_max, 0), (trim_threshold, (1 << 31) - 1), (top_pad, 1 << 26)):
        set_option(parameter, value)
    try:
        yield
    finally:
        for parameter, value in ((mmap_max, 1 << 16), (mmap_threshold, 1 << 25), (trim_threshold, 1 << 26), (top_pad, 1 << 17)):
            set_option(parameter, value)
        trim(0)


@contextlib.contextmanager
def _collecting_once() -> Iterator[None]:
    """Let the garbage collector rest until the first update is made, which compiles (`Pace`), and visit again in the end what is
    frozen from then on, unless something was before: it cannot be told apart."""
    collects, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        (gc.enable if collects else gc.disable)()
        if not frozen:
            gc.unfreeze()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread here, and give back the others that it has made for this thread (`omp_pause_resource_all`).

    Those that learn have threads of their own. Once there are more than cores OpenMP lets them sleep between two tasks, which takes
    longer than the tasks.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # another OpenMP
        ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Pace:
    """How long an update takes.

    The first one compiles: it is taken alone, and is no part of the rate.
    """

    def __init__(self, update: int) -> None:
        self._first, self._start, self._each, self._known = update + 1, 0.0, REPORT_EVERY, False

    def fits(self, update: int, seconds: float) -> int:
        """How many updates take so long, at least one."""
        return max(1, int(seconds / self._each)) if update >= self._first else 1

    def note(self, update: int) -> None:
        """So many updates are made now."""
        now = time.monotonic()
        if update == self._first:
            gc.collect()
            gc.freeze()  # what compiling leaves behind needs no visit by the garbage collector
            gc.enable()
            self._start = now
        elif update > self._first:
            self._each = (now - self._start) / (update - self._first)
        self._known = update > self._first

    def rate(self) -> float:
        """Updates a second; 0 before it can be told."""
        return 1 / self._each if self._known else 0.0


def each_time(seconds: float, act: Callable[[Moment], None], grid: int = 1, begun: float = 0.0) -> Hook:
    """A hook that acts when so many seconds have passed since it began or acted, at a multiple of `grid` updates."""
    before = begun

    def look(moment: Moment) -> None:
        nonlocal before
        if moment.last or (moment.update % grid == 0 and time.monotonic() - before > seconds):
            act(moment)
            before = time.monotonic()

    return Hook(lambda update: 1 << 62, look)


def _start(run: Run, out: Path, resume: bool) -> tuple[Lanes | None, dict]:
    """The state of the newest checkpoint, None if there is none, and its meta."""
    folder = out / "checkpoints"
    saved = any(folder.glob("step_*"))
    if resume and not saved and rows_written(out, run):
        raise checkpoint.CheckpointError(
            f"{folder}: the checkpoints are gone; the figures of the run's steps are still in {out}. "
            f"To begin anew, train into another folder, or delete {out} first"
        )
    trained, now = checkpoint.newest_meta(folder).get("trained_with", {}), trained_with(run)
    for name in sorted(trained.keys() & now.keys()):
        if trained[name] != now[name]:
            raise checkpoint.CheckpointError(
                f"{out}: config.json has {name} = {now[name]!r}, but the run has been trained with {trained[name]!r}, and goes on "
                "with that alone; put it back, or train into another folder"
            )
    if not resume and load_run(out) != run:
        raise checkpoint.CheckpointError(f"{out}: another run has been prepared here meanwhile")
    if saved and not resume:
        raise checkpoint.CheckpointError(f"{folder}: holds the checkpoints of a run; resume it, or train into another folder")
    if not saved:
        checkpoint.clean(folder, 0)
        return None, {}
    algo, env = build(run)
    found, meta = resumed_state(out, run, algo, env)
    checkpoint.clean(folder, int(meta["update"]) * algo.n_envs * algo.n_steps)
    return found, meta


def _environments(run: Run, env: Env | HostEnv, algo: Algorithm, meta: dict) -> dict | None:
    """What `make_runner` takes of outside environments, from a checkpoint's meta; where that is nothing, it is said."""
    if isinstance(env, Env):
        return None
    obstacle = samplers.obstacle(env, run.collecting.sampler, algo.n_envs * len(lanes(run)))
    if obstacle:
        said = f"the state of its environments cannot be saved ({obstacle}), so that a resumed run begins new episodes"
        warnings.warn(f"{run.env}: {said}", stacklevel=4)
        return None
    known = {name: meta[name] for name in ("opened", "environments") if name in meta}
    if meta.get("update", 0) and not known:
        warnings.warn(f"{run.env}: the checkpoint is without the state of its environments; new episodes begin", stacklevel=4)
    return known


def _train(
    run: Run, out: Path, resume: bool, report: Callable[[Progress], None], checkpoint_every: float, threads: int
) -> list[Failure]:
    check_device(run.device)
    algo, env = build(run)
    memory, n_lanes = held(algo), len(lanes(run))
    check_memory(memory, n_lanes, run.device, run.replay_folder)
    if run.checkpoint_replay:
        check_checkpoints(memory, n_lanes, out, run.replay_folder)
    found, meta = _start(run, out, resume)
    begin, seconds, lost = int(meta.get("update", 0)), float(meta.get("seconds", 0.0)), int(meta.get("lost", 0))
    environments = _environments(run, env, algo, meta)
    state = initial_state(run, algo, env) if found is None else found
    runner = make_runner(run, algo, env, state, begin, environments, threads)
    batch = algo.n_envs * algo.n_steps
    n_updates = run.steps // batch
    row_every = max(1, n_updates // 100)
    figures = Figures(out, run, begin * batch)
    evaluator = Evaluator(run, algo.acting, out, begin * batch, int(meta.get("evaluated", begin * batch)), batch)
    failed: dict[str, Failure] = {}
    start, pace, looked_up = time.monotonic() - seconds, Pace(begin), begin

    def save() -> None:
        now: dict[str, Any] = {"update": runner.update, "seconds": time.monotonic() - start, "evaluated": evaluator.evaluated}
        now |= {"trained_with": trained_with(run), **runner.environments()}
        update, tiles = runner.update, runner.tiles if run.checkpoint_replay else list(map(without_memory, runner.tiles))
        checkpoint.save_step(out / "checkpoints", update * batch, tiles, {**now, "lost": lost + runner.lost})

    def tell(moment: Moment) -> None:
        left = (n_updates - moment.update) / pace.rate() if moment.rate else float("nan")
        stopped = tuple(failed.values())
        report(Progress(moment.steps, n_updates * batch, moment.rate * n_lanes, float(figures.mean_return), left, stopped))

    def look_up(hooks: list[Hook]) -> None:
        nonlocal looked_up
        note_failures(failed, figures.names, runner, batch)
        update, clock = runner.update, time.monotonic() - start
        looked_up, rate, last = update, pace.rate() * batch, update == n_updates
        moment = Moment(runner, update, update * batch, clock, rate, failed, lost + runner.lost, last)
        for hook in hooks:
            hook.act(moment)

    hooks = [
        every(row_every, figures.write),
        evaluator.hook,
        each_time(REPORT_EVERY, tell),
        each_time(checkpoint_every, lambda moment: save(), row_every, time.monotonic()),
    ]
    try:
        if found is None:
            save()
        evaluator.make_up(runner)
        evaluator.look(runner, begin * batch, last=begin >= n_updates)
        while runner.update < n_updates:
            update = runner.update
            runner.step(min(n_updates - update, pace.fits(update, REPORT_EVERY), *(hook.due(update) for hook in hooks)))
            runner.wait()
            pace.note(runner.update)
            look_up(hooks)
    except BaseException as error:
        try:
            if runner.update > looked_up:  # interrupted in an update that came to its end all the same
                look_up(hooks[:1])
            save()
            error.add_note("the run up to there is saved")
        except Exception as failure:
            is_one = checkpoint.newest_meta(out / "checkpoints")
            before = "the checkpoint before is whole" if is_one else "there is none before"
            error.add_note(f"the run up to there could not be saved ({failure}); {before}")
        raise
    finally:
        with contextlib.ExitStack() as closing:
            for part in (runner, figures, evaluator):
                closing.callback(part.close)
    note_failures(failed, figures.names, runner, batch)
    return list(failed.values())


def note_failures(failed: dict[str, Failure], names: list[str], runner: Runner, batch: int) -> None:
    """Add to `failed` the lanes that have stopped, after so many batches of `batch` steps."""
    if not all(tile.going.all() for tile in runner.tiles):
        goings, updates = runner.gather(lambda tile: (tile.going, tile.updates))
        for lane, going, n in zip(names, goings.tolist(), updates.tolist(), strict=True):
            if not going:
                failed.setdefault(lane, Failure(lane, n * batch))
