"""What a run is: checked before any work is done, described in its folder, and read from there."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from purerl import algos, checkpoint, envs, logs, random, samplers
from purerl import config as cfg
from purerl.base import Algorithm, Env, EnvSpec
from purerl.episodes import check_infos
from purerl.storage import there
from purerl.training.room import Held, check_memory, held
from purerl.transforms import shapes


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
        checkpoint_replay: checkpoints hold the algorithm's donated memory, such as a replay; else it is empty after a resumption.
        replay_folder: where that memory lies in files; in memory if None.
        replay_from: the folder of the run with whose replay this one begins; None for an empty one.
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
    checkpoint_replay: bool = True
    replay_folder: str | None = None
    replay_from: str | None = None


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
    checkpoint_replay: bool = True,
    replay_folder: Path | None = None,
    replay_from: Path | None = None,
) -> Run:
    """Check a run before any work is done.

    Args:
        overrides: config fields; a list of values sweeps the field.

    Returns:
        The run, with `auto` replaced by the sampler chosen ("fused" for a pure environment).

    Raises:
        ValueError, ImportError: naming the field, its value and what is allowed.
        RoomError: the lanes' donated memory, such as a replay, is larger than what there is.
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
    run = Run(
        algo,
        env,
        seeds,
        steps,
        config,
        sweep,
        device,
        threads,
        env_options,
        evaluating=evaluating or Evaluating(),
        checkpoint_replay=checkpoint_replay,
        replay_folder=None if replay_folder is None else str(replay_folder.absolute()),
        replay_from=None if replay_from is None else str(replay_from.absolute()),
    )
    for variant in variants(run):  # all are of one batch
        its_config = make_config(run, variant)
        for name in overrides:
            cfg.check_needs(its_config, name)
        found = algos.make(algo, made.spec, its_config)
    memory = held(found)
    if not (checkpoint_replay or found.forget) and memory.most:
        raise ValueError(f"checkpoint_replay = no: {algo} cannot go on with an empty memory, its record has no `forget`")
    n = found.n_envs * found.n_steps
    if steps < n:
        raise ValueError(f"steps = {steps} is less than one batch of n_envs * n_steps = {found.n_envs} * {found.n_steps} = {n}")
    check_device(device)
    if replay_folder is not None:
        check_folder(algo, memory, device, replay_folder)
    if replay_from is not None:
        check_replay(run, found, replay_from)
    check_memory(memory, len(lanes(run)), device, run.replay_folder)
    return dataclasses.replace(run, collecting=choose(collecting or Collecting(), made, found.n_envs))


def check_folder(algo: str, memory: Held, device: str, folder: Path) -> None:
    """Raise a `ValueError` if an algorithm's memory cannot lie in files in this folder."""
    if not memory.most:
        raise ValueError(f"replay_folder = {folder}: {algo} has no donated memory, such as a replay, to lie there")
    if device != "cpu":
        raise ValueError(f"replay_folder = {folder} is for memory of the CPU, but device = {device!r}")
    if not there(folder).is_dir():
        raise ValueError(f"replay_folder = {folder} cannot be a folder: {there(folder)} is a file")


def check_replay(run: Run, algo: Algorithm, folder: Path) -> None:
    """Raise a `ValueError` if a run cannot begin with the replay that the run in a folder has saved."""
    start, other = f"replay_from = {folder}", load_run(folder)
    theirs, env = build(other)
    if algo.replay is None or theirs.replay is None:
        name = run.algo if algo.replay is None else f"its algorithm {other.algo}"
        raise ValueError(f"{start}: {name} has no replay that another run could begin with, its record has no `replay`")
    if env.spec.id != algo.spec.id:
        raise ValueError(f"{start} is a run in {env.spec.id}, not in {algo.spec.id}")
    if not (other.checkpoint_replay and checkpoint.newest_meta(folder / "checkpoints")):
        raise ValueError(f"{start} has no checkpoint that holds a replay")
    n, many = len(lanes(run)), len(lanes(other))
    if many not in (1, n):
        raise ValueError(f"{start} has {many} lanes, but this run has {n}: there may be as many, or one for all")
    found, wanted = (read(shapes(init, random.key(0))) for read, init in ((theirs.replay, theirs.init), (algo.replay, algo.init)))
    names = algo.config and sorted(f.name for f in dataclasses.fields(algo.config) if "leaf" not in f.metadata)
    pairs = [(name, other.config.get(name), run.config.get(name)) for name in names or ()]
    shaping = ", ".join(f"{name} = {theirs}, here {ours}" for name, theirs, ours in pairs if theirs != ours and theirs is not None)
    different = checkpoint.differences(*(checkpoint.kinds(checkpoint.named(replay)) for replay in (found, wanted)))
    if different:
        raise ValueError(f"{start} has a replay of another kind{f' ({shaping})' if shaping else ''}: {different}")


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
            (declared,) = (f.metadata for f in dataclasses.fields(config) if f.name == name)
            shapes = declared and "leaf" not in declared
            why = "it shapes the program" if shapes else "it is not in the algorithm's hyper"
            raise ValueError(f"{name} = {values} cannot be swept: {why}; {allowed}")
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
    """The algorithm's config of one variant; None if it takes none.

    Raises:
        ValueError: the run was planned with fields that the config no longer has.
    """
    config_class, values = algos.config_class(run.algo), {**run.config, **variant}
    gone = values.keys() - {f.name for f in (dataclasses.fields(config_class) if config_class else ())}
    if gone:
        raise ValueError(f"{run.algo} has no config field {', '.join(sorted(gone))} any more, which the run's config.json has")
    return config_class and config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def prepare(out: Path, run: Run) -> None:
    """Make the run's folder and describe the run in it, in the place of one that never came beyond its first state.

    Raises:
        ValueError: the folder holds a run already, or cannot be written.
    """
    _refuse_a_run(out)
    try:
        with checkpoint.locked(out):
            _refuse_a_run(out)  # another process may have been faster
            _clear(out)
            _describe(out, run)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written ({error.strerror})") from None


def _refuse_a_run(out: Path) -> None:
    for folder in out.absolute().parents:
        if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
            raise ValueError(f"out: {out} lies within the run {folder}, whose figures it would be taken for; choose another folder")
    if (out / "config.json").exists():
        if _begun(out):
            raise ValueError(f"out: {out} already holds a run; choose another folder, or continue it with: purerl resume {out}")
    elif any((out / "checkpoints").glob("*.safetensors")):
        raise ValueError(
            f"out: {out} holds the checkpoints of a run whose config.json is gone; choose another folder, or delete it"
        )


def _begun(out: Path) -> bool:
    """Whether a folder's run has come beyond its first state, or cannot be read: else there is nothing to lose."""
    try:
        further = any(path.stem != "step_000000000000" for path in (out / "checkpoints").glob("*.safetensors"))
        return further or rows_written(out, load_run(out))
    except ValueError:
        return True


def _clear(out: Path) -> None:
    """Delete what a run that has not begun has left."""
    if (out / "config.json").exists():
        for name in {"tb", "checkpoints", *(lane_name(*lane).split("/")[0] for lane in lanes(load_run(out)))}:
            shutil.rmtree(out / name, ignore_errors=True)
        (out / "error.log").unlink(missing_ok=True)


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
        ValueError: the folder holds no run, or its config.json is damaged.
    """
    if not (out / "config.json").is_file():
        raise ValueError(f"{out}: holds no run, there is no config.json in it")
    try:
        found = json.loads((out / "config.json").read_text())
        collecting, evaluating = found.pop("collecting"), found.pop("evaluating")
        collecting["infos"] = tuple(collecting["infos"])
        return Run(**found, collecting=Collecting(**collecting), evaluating=Evaluating(**evaluating))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{out}: holds no run that can be read, its config.json is damaged ({said})") from None


def trained_with(run: Run) -> dict[str, Any]:
    """What a checkpoint's state follows from, besides the steps taken."""
    return {**run.config, **run.sweep, "algo": run.algo, "env": run.env, "seeds": run.seeds, "env_options": run.env_options}


def build(run: Run) -> tuple[Algorithm, Env | envs.HostEnv]:
    """The run's algorithm and environment."""
    env = envs.make(run.env, **run.env_options)
    return algos.make(run.algo, env.spec, make_config(run, variants(run)[0])), env


def rows_written(out: Path, run: Run) -> bool:
    """Whether the run's lanes have written down any figures yet."""
    paths = [out / lane_name(*lane) / logs.PROGRESS for lane in lanes(run)]
    return any(path.exists() and logs.read_rows(path)[1] for path in paths)
