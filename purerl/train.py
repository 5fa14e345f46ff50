"""The training loop: everything that holds files, clocks, threads and processes, and no mathematics."""

import contextlib
import dataclasses
import gc
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import algos, checkpoint, envs, logs, random, samplers, tree
from purerl import config as cfg
from purerl.base import Algorithm, Env, EnvSpec
from purerl.episodes import Episodes, averages, check_infos, init_episodes, record_episodes
from purerl.evaluate import Evaluation, play
from purerl.rollout import discount, fuse
from purerl.transforms import compile, iterate, vmap

REPORT_EVERY = 0.2  # seconds
EVAL_SEED = 1_000_000  # of evaluation's environments, which training does not see
LARGE = 200_000  # parameters from which an update is worth several threads
PATIENCE = 1.0  # seconds that a thread at work has to come to an end


@dataclasses.dataclass(frozen=True)
class Collecting:
    """How batches are collected from an environment of the outside world; a pure one is fused with the update."""

    sampler: str = cfg.option(
        "auto", "arrangement of processes; auto chooses by what a step costs", ("auto", "fused", *samplers.KINDS)
    )
    n_workers: int = cfg.count(0, "worker processes; 0 for as many as there are cores", low=0)
    reset: str = cfg.option(
        "mid", "whether an environment whose episode ended is reset at once or waits for the next batch", ("mid", "wait")
    )
    decorrelate: int = cfg.count(0, "each environment begins with up to so many random steps", low=0)
    infos: tuple[str, ...] = cfg.setting((), "infos at the end of an episode to record")
    timeout: float = cfg.number(60.0, "seconds after which an environment in a worker hangs", low=0.01)
    restarts: int = cfg.count(3, "how often dead workers are replaced", low=0)

    def __post_init__(self) -> None:
        cfg.check(self)
        check_infos(self.infos)

    def changed(self, *names: str) -> dict[str, Any]:
        """Which of these fields have not their default value, and what they are."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}


@dataclasses.dataclass(frozen=True)
class Evaluating:
    """Evaluation during training, in environments of its own, with the mode of the policy."""

    eval_every: int = cfg.count(0, "environment steps of a lane between two evaluations; 0 for none", low=0)
    eval_episodes: int = cfg.count(10, "environments, each of which plays one episode, or as many as --eval-steps asks for")
    eval_steps: int = cfg.count(0, "steps to play in all, every environment to the end of its episode", low=0)
    eval_background: bool = cfg.setting(False, "evaluate in a process of its own while training goes on")

    def __post_init__(self) -> None:
        cfg.check(self)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is, as `config.json` keeps it.

    Attributes:
        algo, env: names.
        seeds: how many seeds of each variant, `0, 1, ...`
        steps: environment steps of each lane.
        config: the algorithm's config fields, but for those that are swept.
        sweep: the values of each field that is swept.
        device: where the algorithm lives.
        threads: CPU threads of the updates; 0 for as many as there are cores.
        env_options: for the environment's constructor.
        collecting, evaluating: as their flags.
    """

    algo: str
    env: str
    seeds: int
    steps: int
    config: dict[str, Any]
    sweep: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    device: str = "cpu"
    threads: int = 0
    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    collecting: Collecting = Collecting()
    evaluating: Evaluating = Evaluating()


class HostState(TensorClass):
    """`TrainState` without the environments, which live outside."""

    algo: Any
    episodes: Episodes
    key: Tensor


class Lanes(TensorClass):
    """Everything that changes in a run.

    Attributes:
        learner: `[L]` of `TrainState` or `HostState`.
        going: `[L]` bool, False from the update on after which a number of the lane's state was no longer finite.
        updates: `[L]` int64, how many were made while it was going.
    """

    learner: Any
    going: Tensor
    updates: Tensor


class Program(NamedTuple):
    """A run as two functions over the state of all lanes.

    Attributes:
        init: `init(keys [L, 2], hyper) -> learner`, with a leading axis `[L]`; `hyper` maps the numbers swept to `[L]` values.
        step: `step(lanes, n) -> (lanes, info)`, `n` times one batch and one update in every lane, and the last update's info.
        lost: batches that were lost with a worker so far.
        close: gives back threads, processes and environments; a thread that is at work for longer (it compiles) is left alone.
    """

    init: Callable[[Tensor, dict[str, Tensor]], Any]
    step: Callable[[Lanes, int], tuple[Lanes, TensorDict]]
    lost: Callable[[], int]
    close: Callable[[], None]


class Failure(NamedTuple):
    """A lane that stopped after so many steps, because its state was no longer finite."""

    lane: str
    steps: int


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


class Point(NamedTuple):
    """How far a run has come: updates in each lane, and the state after them."""

    update: int
    lanes: Lanes


def plan(
    algo: str,
    env: str,
    seeds: int,
    steps: int,
    overrides: dict[str, Any],
    device: str = "cpu",
    threads: int = 0,
    env_options: dict[str, Any] | None = None,
    collecting: Collecting | None = None,
    evaluating: Evaluating | None = None,
) -> Run:
    """Check a run before any work is done.

    Args:
        overrides: config fields; a list of values sweeps the field.

    Returns:
        The run, with `auto` replaced by the sampler chosen ("fused" for a pure environment).

    Raises:
        ValueError, ImportError: naming the field, its value and what is allowed.
    """
    algos.find(algo)
    for name, n, low in (("seeds", seeds, 1), ("steps", steps, 1), ("threads", threads, 0)):
        if not isinstance(n, int):
            raise ValueError(f"{name} = {n!r} is not an integer")
        if n < low:
            raise ValueError(f"{name} = {n} is not at least {low}")
    env_options = as_json("env_options", env_options or {})
    made = envs.make(env, **env_options)
    default = algos.default_config(algo, made.spec)
    start = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)} if default is not None else {}
    for name in overrides:
        if name not in start:
            fields = f"it has {', '.join(sorted(start))}" if start else "it takes no config"
            raise ValueError(f"{algo} has no config field {name!r}; {fields}")
    sweep = {name: as_json(name, overrides[name]) for name in start if isinstance(overrides.get(name), list)}
    for name, values in sweep.items():
        check_sweep(algo, made.spec, default, name, values)
    length = {"total_steps": steps} if "total_steps" in start else {}
    config = {name: as_json(name, x) for name, x in {**start, **length, **overrides}.items() if name not in sweep}
    run = Run(algo, env, seeds, steps, config, sweep, device, threads, env_options, evaluating=evaluating or Evaluating())
    for variant in variants(run):  # all are of one batch
        found = algos.make(algo, made.spec, make_config(run, variant))
    n = found.n_envs * found.n_steps
    if steps < n:
        raise ValueError(f"steps = {steps} is less than one batch of n_envs * n_steps = {found.n_envs} * {found.n_steps} = {n}")
    check_device(device)
    return dataclasses.replace(run, collecting=choose(collecting or Collecting(), made, found.n_envs))


def check_device(device: str) -> None:
    """Raise a `ValueError` if there is no such device here."""
    n = torch.cuda.device_count()
    found = ["cpu", *["cuda"][:n], *(f"cuda:{i}" for i in range(n))]
    if device not in found:
        raise ValueError(f"device = {device!r} is not available; this machine has {', '.join(found)}")


def check_sweep(algo: str, spec: EnvSpec, config: Any, name: str, values: list) -> None:
    """Raise a `ValueError` if these values of a config's field cannot be swept."""
    if not values:
        raise ValueError(f"{name} = [] names no value to sweep")
    for value in values:
        numbers = algos.make(algo, spec, dataclasses.replace(config, **{name: value})).hyper
        if name not in numbers:
            allowed = f"only {', '.join(numbers)} can" if numbers else f"{algo} has no numbers that can"
            raise ValueError(f"{name} = {values} cannot be swept: it shapes the program; {allowed}")
    if len({np.float32(value) for value in values}) < len(values):
        raise ValueError(f"{name} = {values} holds a number twice (as float32, in which it is computed)")


def as_json(name: str, value: Any) -> Any:
    """A value as `config.json` gives it back.

    Raises:
        ValueError: JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"{name} = {value!r} cannot be kept in config.json: {error}") from None


def choose(collecting: Collecting, env: Env | envs.HostEnv, n_envs: int) -> Collecting:
    """Check the sampler, or choose one.

    Raises:
        ValueError: the environment cannot be collected from like that.
    """
    if isinstance(env, Env):
        if collecting.sampler not in ("auto", "fused"):
            raise ValueError(
                f"sampler = {collecting.sampler!r} is for environments of the outside world, but {env.spec.id} is pure; "
                f"gym:{env.spec.id} is Gymnasium's own"
            )
        ignored = collecting.changed(*(f.name for f in dataclasses.fields(collecting) if f.name != "sampler"))
        if ignored:
            name, value = next(iter(ignored.items()))
            raise ValueError(
                f"{name} = {value!r} is for environments of the outside world, but {env.spec.id} is pure; "
                f"gym:{env.spec.id} is Gymnasium's own"
            )
        return dataclasses.replace(collecting, sampler="fused")
    if collecting.sampler == "fused":
        raise ValueError(f"sampler = 'fused' is for pure environments, but {env.spec.id} is one of the outside world")
    if collecting.sampler == "auto":
        collecting = dataclasses.replace(collecting, sampler=samplers.suggest(env, n_envs, collecting.n_workers))
    if collecting.sampler == "native":
        envs.vector_host(env)
    if collecting.sampler not in samplers.WORKERLESS:
        samplers.count_workers(collecting.sampler, n_envs, collecting.n_workers)
    elif collecting.changed("n_workers"):
        raise ValueError(f"n_workers = {collecting.n_workers} is for samplers with workers, which {collecting.sampler!r} has not")
    if env.make is None and collecting.reset == "wait":
        raise ValueError(f"reset = 'wait' needs environments that are stepped one by one, but {env.spec.id} is a VectorEnv")
    return collecting


def variants(run: Run) -> list[dict[str, float]]:
    """The swept fields' values, one dict a variant; one empty dict if nothing is swept."""
    return [dict(zip(run.sweep, values, strict=True)) for values in itertools.product(*run.sweep.values())]


def lanes(run: Run) -> list[tuple[dict[str, float], int]]:
    """A variant and a seed for each lane."""
    return [(variant, seed) for variant in variants(run) for seed in range(run.seeds)]


def lane_name(variant: dict[str, float], seed: int) -> str:
    """The lane's folder: `seed_000`, or `lr=0.001,clip=0.1/seed_000` in a sweep."""
    prefix = ",".join(f"{name}={_short(value)}" for name, value in variant.items())
    return f"{prefix}/seed_{seed:03d}" if prefix else f"seed_{seed:03d}"


def _short(value: float) -> str:
    """A number in as few digits as tell it from every other one."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def make_config(run: Run, variant: dict[str, float]) -> Any:
    """The algorithm's config of one variant; None if it takes none."""
    config_class, values = algos.config_class(run.algo), {**run.config, **variant}
    return config_class and config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def guard(step: Callable, example: Any) -> Callable:
    """`step` on a packed state (a few large tensors cross the border of a compiled call sooner than many small ones), in which a
    lane stands still for good once any number of the algorithm's state is no longer finite: at its last good state.

    A number that is infinite from the start and stays so (a clipping range that is never reached) is none of these.

    Args:
        step: `step(state, *batch) -> (state, info)`, whose state has the algorithm's as its first field.
        example: a state.

    Returns:
        `guarded(packed, going, updates, *batch) -> (packed, going, updates, info)`, the rest as in `Lanes`.
    """
    _, unpack = tree.pack(example)
    learnt = [x for x in tree.leaves(example.algo) if x.is_floating_point()]
    counts = {dtype: sum(x.numel() for x in learnt if x.dtype == dtype) for dtype in {x.dtype for x in learnt}}

    def guarded(packed: dict[torch.dtype, Tensor], going: Tensor, updates: Tensor, *batch: Any) -> tuple:
        state, info = step(tree.own(unpack(packed)), *batch)  # a loop takes no two views of one tensor
        new = tree.pack(state)[0]
        heads = [(new[dtype][:n], packed[dtype][:n]) for dtype, n in counts.items()]  # what the algorithm's leaves were packed into
        sound = [(torch.isfinite(after) | (after == before)).all() for after, before in heads]
        going = going & torch.stack(sound).all() if sound else going
        return tree.where(going, new, packed), going, updates + going, info

    return guarded


def make_program(run: Run, algo: Algorithm, env: Env | envs.HostEnv, start: int) -> Program:
    """The run's program, about to make update number `start`."""
    n_lanes = len(lanes(run))
    if isinstance(env, Env):
        return pure_program(algo, env, n_lanes, torch.get_num_threads() if run.device == "cpu" else 1)
    return host_program(algo, env, start, run.collecting)


def pure_program(algo: Algorithm, env: Env, n_lanes: int, cores: int) -> Program:
    """Rollout and update fused; the lanes run as tiles of equal size, at most `cores`, one thread each."""
    init, step = fuse(algo, env)
    compiled = compile(vmap(guard(step, init(random.key(0)))))
    n_tiles = max(n for n in range(1, cores + 1) if n_lanes % n == 0)
    size = n_lanes // n_tiles
    pool = ThreadPoolExecutor(n_tiles, initializer=lambda: torch.set_num_threads(1))
    compiling = True

    futures: list[Future] = []

    def one(state: tuple[dict, Tensor, Tensor]) -> tuple[tuple[dict, Tensor, Tensor], TensorDict]:
        packed, going, updates, info = compiled(*state)
        return (packed, going, updates), info

    many = iterate(one)

    def repeat(tile: Lanes, n: int) -> tuple[Lanes, TensorDict]:
        packed, unpack = tree.pack(tile.learner, axes=1)
        (packed, going, updates), info = many((packed, tile.going, tile.updates), n)
        return Lanes(learner=unpack(packed), going=going, updates=updates), info

    def step_all(lanes: Lanes, n: int) -> tuple[Lanes, TensorDict]:
        nonlocal compiling
        tiles = [tree.index(lanes, slice(i * size, (i + 1) * size)) for i in range(n_tiles)]
        futures.clear()
        for tile in tiles:
            futures.append(pool.submit(repeat, tile, n))
            if compiling:  # in one thread, once
                futures[0].result()
        compiling = False
        done = [future.result() for future in futures]
        return tree.concatenate([tile for tile, _ in done]), tree.concatenate([info for _, info in done])

    def close() -> None:
        wait(futures, PATIENCE)
        pool.shutdown(wait=False, cancel_futures=True)

    return Program(vmap(init), step_all, lambda: 0, close)


def host_program(algo: Algorithm, env: envs.HostEnv, start: int, collecting: Collecting) -> Program:
    """Collect from outside, then update."""

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> HostState:
        key, algo_key = random.split(key)
        episodes = init_episodes(algo.n_envs, discount(algo, hyper), collecting.infos, key.device)
        return HostState(algo=algo.init(algo_key, hyper), episodes=episodes, key=key)

    def learn(state: HostState, batch: Any) -> tuple[HostState, TensorDict]:
        algo_state, info = algo.update(state.algo, batch)
        return HostState(algo=algo_state, episodes=record_episodes(state.episodes, batch), key=state.key), info

    example = init(random.key(0))
    n_params = sum(x.numel() for x in tree.leaves(algo.acting(example.algo)))
    threads = torch.get_num_threads() if n_params > LARGE else 1
    compiled = compile(vmap(guard(learn, example)), threads)
    pool = ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(threads))
    feed: samplers.Feed | None = None
    future: Future = Future()

    def step(lanes: Lanes, n: int) -> tuple[Lanes, TensorDict]:
        nonlocal feed
        state, going, updates = lanes.learner, lanes.going, lanes.updates
        if feed is None:
            keys = torch.vmap(lambda key: random.fold_in(key, start))(state.key)
            feed = samplers.make(env, algo, algo.n_envs, algo.n_steps, keys, **dataclasses.asdict(collecting))
            feed.publish(state.algo)
        for _ in range(n):
            packed, unpack = tree.pack(state, axes=1)
            packed, going, updates, info = compiled(packed, going, updates, next(feed))
            state = unpack(packed)
            feed.publish(state.algo)
        return tree.own(Lanes(learner=state, going=going, updates=updates)), info

    def step_in_thread(lanes: Lanes, n: int) -> tuple[Lanes, TensorDict]:
        nonlocal future
        future = pool.submit(step, lanes, n)
        return future.result()

    def close() -> None:
        if future.running():
            wait([future], PATIENCE)
        if feed is not None and not future.running():
            feed.close()
        pool.shutdown(wait=False, cancel_futures=True)

    return Program(vmap(init), step_in_thread, lambda: feed.lost if feed else 0, close)


def initial_state(run: Run, program: Program) -> Lanes:
    """All lanes before their first step, each with its seed's key and its variant's numbers."""
    key = torch.stack([random.key(seed, run.device) for _, seed in lanes(run)])
    hyper = {name: torch.tensor([float(variant[name]) for variant, _ in lanes(run)], device=run.device) for name in run.sweep}
    going = torch.ones(len(key), dtype=torch.bool, device=run.device)
    return Lanes(learner=program.init(key, hyper), going=going, updates=torch.zeros_like(going, dtype=torch.int64))


def prepare(out: Path, run: Run) -> None:
    """Make the run's folder and describe the run in it.

    Raises:
        ValueError: the folder holds a run already, or cannot be written.
    """
    _refuse_a_run(out)
    try:
        with checkpoint.locked(out):
            _refuse_a_run(out)  # another process may have been faster
            _describe(out, run)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written ({error.strerror})") from None


def _refuse_a_run(out: Path) -> None:
    if (out / "config.json").exists():
        raise ValueError(f"out: {out} already holds a run; choose another folder, or continue it with: purerl resume {out}")
    if any((out / "checkpoints").glob("*.safetensors")):
        raise ValueError(
            f"out: {out} holds the checkpoints of a run whose config.json is gone; choose another folder, or delete it"
        )


def _describe(out: Path, run: Run) -> None:
    for variant, seed in lanes(run):
        folder = out / lane_name(variant, seed)
        folder.mkdir(parents=True, exist_ok=True)
        params = {"algo": run.algo, "env": run.env, "seed": seed, **run.config, **variant}
        checkpoint.write_atomically(folder / "params.json", json.dumps(params, indent=2).encode())
    checkpoint.write_atomically(out / "config.json", json.dumps(dataclasses.asdict(run), indent=2).encode())


def load_run(out: Path) -> Run:
    """The run a folder describes.

    Raises:
        ValueError: the folder holds no run.
    """
    try:
        found = json.loads((out / "config.json").read_text())
        collecting, evaluating = found.pop("collecting"), found.pop("evaluating")
        collecting["infos"] = tuple(collecting["infos"])
        return Run(**found, collecting=Collecting(**collecting), evaluating=Evaluating(**evaluating))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{out}: holds no run ({error})") from None


def build(run: Run) -> tuple[Algorithm, Env | envs.HostEnv]:
    """The run's algorithm and environment."""
    env = envs.make(run.env, **run.env_options)
    return algos.make(run.algo, env.spec, make_config(run, variants(run)[0])), env


def load_state(out: Path, run: Run, algo: Algorithm, env: Env | envs.HostEnv) -> tuple[Lanes, dict[str, Any]]:
    """The newest whole checkpoint of a run: the state of all lanes, and its meta.

    Raises:
        CheckpointError: there is none.
    """
    program = make_program(run, algo, env, 0)
    try:
        return checkpoint.load_newest(out / "checkpoints", initial_state(run, program))
    finally:
        program.close()


def finished(out: Path, run: Run) -> bool:
    """Whether a run has taken all its steps, and owes no evaluation."""
    algo, meta = build(run)[0], checkpoint.newest_meta(out / "checkpoints")
    batch = algo.n_envs * algo.n_steps
    owed = run.evaluating.eval_every and meta.get("evaluated", 0) < run.steps // batch * batch
    return meta.get("update", 0) >= run.steps // batch and not owed and not any((out / "checkpoints").glob("evaluation_*"))


def rows_written(out: Path, run: Run) -> bool:
    """Whether the run's lanes have written down any figures yet."""
    paths = [out / lane_name(*lane) / logs.PROGRESS for lane in lanes(run)]
    return any(path.exists() and logs.read_rows(path)[1] for path in paths)


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
        CheckpointError: resuming, and none of the checkpoints is whole, or they are gone; not resuming, and there are some; or
            another process trains this run.
        Exception: whatever collecting, learning or evaluating raises, with a note that says whether the state before is saved.
    """
    out = out.absolute()  # an environment may go to another folder
    with checkpoint.locked(out), _threads(run.threads or torch.get_num_threads()):
        return _train(run, out, resume, report, checkpoint_every)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(run: Run, out: Path, resume: bool, report: Callable[[Progress], None], checkpoint_every: float) -> list[Failure]:
    check_device(run.device)
    algo, env = build(run)
    folder = out / "checkpoints"
    if resume and not any(folder.glob("step_*")) and rows_written(out, run):
        raise checkpoint.CheckpointError(
            f"{folder}: the checkpoints are gone; the figures of the run's steps are still in {out}. "
            f"To begin anew, train into another folder, or delete {out} first"
        )
    saved = any(folder.glob("step_*"))
    if saved and not resume:
        raise checkpoint.CheckpointError(f"{folder}: holds the checkpoints of a run; resume it, or train into another folder")
    found, meta = load_state(out, run, algo, env) if saved else (None, {})
    start_update, seconds, lost = int(meta.get("update", 0)), float(meta.get("seconds", 0.0)), int(meta.get("lost", 0))
    program = make_program(run, algo, env, start_update)
    done = Point(start_update, initial_state(run, program) if found is None else found)

    batch = algo.n_envs * algo.n_steps
    n_updates, n_lanes = run.steps // batch, len(lanes(run))
    row_every = max(1, n_updates // 100)
    sinks = Sinks(out, run, start_update * batch)
    evaluator = Evaluator(run, algo.acting, out, start_update * batch, int(meta.get("evaluated", start_update * batch)))
    failed: dict[str, Failure] = {}
    start = last_report = last_save = time.monotonic()
    start_at, seconds_each, first = start - seconds, REPORT_EVERY, start_update + 1

    def save() -> None:
        now = {"update": done.update, "seconds": time.monotonic() - start_at, "evaluated": evaluator.evaluated}
        now["lost"] = lost + program.lost()
        checkpoint.save_step(folder, done.update * batch, done.lanes, now)

    def tell() -> None:
        left = (n_updates - done.update) * seconds_each if rate else float("nan")
        report(Progress(done.update * batch, n_updates * batch, rate, float(sinks.mean_return), left, tuple(failed.values())))

    try:
        if found is None:
            save()
        evaluator.make_up(done.lanes)
        evaluator.look(done.lanes, done.update * batch, last=done.update >= n_updates)
        while done.update < n_updates:
            # Up to the next row, but no longer than between two reports; the first update alone, because it compiles.
            to_row = min(row_every - done.update % row_every, n_updates - done.update, evaluator.due(done.update * batch, batch))
            n = max(1, min(to_row, int(REPORT_EVERY / seconds_each))) if done.update > start_update else 1
            state, info = program.step(done.lanes, n)
            done = Point(done.update + n, state)
            note_failures(failed, sinks.names, state, batch)  # waits for the device, too
            now = time.monotonic()
            if done.update == start_update + 1:
                # Compilation is over: its objects need no visit by the garbage collector, and its time is no part of the rate.
                gc.collect()
                gc.freeze()
                start = now
            elif done.update > first:
                seconds_each = (now - start) / (done.update - first)
            rate = batch * n_lanes / seconds_each if done.update > first else 0.0
            if done.update % row_every == 0 or done.update == n_updates:
                sinks.write(state.learner, info, done.update * batch, now - start_at, rate / n_lanes, failed, lost + program.lost())
            evaluator.look(state, done.update * batch, last=done.update == n_updates)
            if now - last_report > REPORT_EVERY or done.update in (first, n_updates):
                tell()
                last_report = now
            if now - last_save > checkpoint_every and done.update % row_every == 0:
                save()
                last_save = now
        save()
    except BaseException as error:
        try:
            save()
            error.add_note("the run up to there is saved")
        except Exception as lost:
            error.add_note(f"the run up to there could not be saved ({lost}); the checkpoint before is whole")
        raise
    finally:
        with contextlib.ExitStack() as closing:
            for part in (program, sinks, evaluator):
                closing.callback(part.close)
    note_failures(failed, sinks.names, done.lanes, batch)
    return list(failed.values())


def note_failures(failed: dict[str, Failure], names: Sequence[str], lanes: Lanes, batch: int) -> None:
    """Add to `failed` the lanes that have stopped, after so many batches of `batch` steps."""
    if not lanes.going.all():
        for lane, going, updates in zip(names, lanes.going.tolist(), lanes.updates.tolist(), strict=True):
            if not going:
                failed.setdefault(lane, Failure(lane, updates * batch))


class Sinks:
    """The files figures go to: one CSV a lane, one TensorBoard run a variant (means over its seeds)."""

    def __init__(self, out: Path, run: Run, keep_steps: int) -> None:
        self.names = [lane_name(variant, seed) for variant, seed in lanes(run)]
        self._csv = [logs.CsvLog(out / name, keep_steps) for name in self.names]
        groups: list[str] = [str(Path(name).parent) for name in self.names]
        self._members = {group: [i for i, g in enumerate(groups) if g == group] for group in groups}
        self._tb = {group: logs.TensorBoardLog(out / "tb" / group, keep_steps + 1) for group in self._members}
        self.mean_return = np.nan

    def write(
        self, state: Any, info: TensorDict, steps: int, seconds: float, rate: float, failed: dict[str, Failure], lost: int
    ) -> None:
        columns: dict[str, Tensor] = {
            **{f"{name}Average": x for name, x in averages(state.episodes).items()},
            "Diagnostics/Episodes": state.episodes.count,
            **info.to_dict(),
        }
        figures = {name: x.cpu().numpy().astype(np.float64) for name, x in columns.items()}
        going = [name not in failed for name in self.names]
        clock = {logs.STEPS: steps, logs.TIME: round(seconds, 3), logs.RATE: round(rate, 1), logs.LOST: lost}
        for i, lane in enumerate(self._csv):
            if going[i]:
                lane.write({**clock, **{name: x[i] for name, x in figures.items()}})
        for group, members in self._members.items():
            members = [i for i in members if going[i]]
            if members:
                self._tb[group].write({**clock, **{name: x[members].mean() for name, x in figures.items()}})
        returns = figures["ReturnAverage"][going]
        self.mean_return = np.nan if np.isnan(returns).all() else float(np.nanmean(returns))

    def close(self) -> None:
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
    """

    def __init__(self, run: Run, acting: Callable[[Any], Any], out: Path, keep_steps: int, evaluated: int) -> None:
        self._acting = acting
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

    def make_up(self, lanes: Lanes) -> None:
        """Evaluate what an earlier part of the run has left."""
        for steps in self._owed:
            try:
                owed, _ = checkpoint.load(self._path(steps), self._acting(lanes.learner.algo))
            except checkpoint.CheckpointError as error:
                warnings.warn(f"{error}; the evaluation after {steps} steps is left out", stacklevel=3)
                self._path(steps).unlink()
                continue
            self._pending = steps, lanes.going.tolist(), self._evaluate(owed)
            self._collect()

    def _path(self, steps: int) -> Path:
        return self._folder / f"evaluation_{steps:012d}.safetensors"

    def _next(self) -> int:
        return (self.evaluated // self._every + 1) * self._every

    def due(self, steps: int, batch: int) -> int:
        """Updates until the next evaluation."""
        return max(1, -(-(self._next() - steps) // batch)) if self._every else 1 << 62

    def look(self, lanes: Lanes, steps: int, last: bool) -> None:
        """Evaluate this state if it is time to, and write down what has been found of the lanes that have not stopped."""
        if not self._every:
            return
        if steps >= self._next() or (last and steps > self.evaluated):
            self._collect()  # one at a time: training waits for an evaluation that is slower than itself
            acting = self._acting(lanes.learner.algo)
            checkpoint.save(self._path(steps), acting, {})
            self.evaluated = steps
            self._pending = steps, lanes.going.tolist(), self._evaluate(acting)
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
        for (lane, tensorboard), going, returns, lengths in zip(self._sinks, goings, *found.result(), strict=True):
            if not going:
                continue
            row: dict[str, Any] = {
                logs.STEPS: steps,
                "Evaluation/ReturnAverage": returns.mean(),
                "Evaluation/ReturnStd": returns.std(),
                "Evaluation/LengthAverage": lengths.mean(),
                "Evaluation/Episodes": len(returns),
            }
            lane.write(row)
            tensorboard.write(row)
        self._path(steps).unlink(missing_ok=True)

    def close(self) -> None:
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
