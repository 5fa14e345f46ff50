"""The command line: flags from the config dataclasses, and nothing else."""

import ast
import atexit
import contextlib
import dataclasses
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from purerl import algos, envs, plot, samplers, training
from purerl.base import EnvSpec
from purerl.checkpoint import CheckpointError, write_atomically
from purerl.evaluate import check_video, evaluate, record_video
from purerl.storage import RoomError

_USER_ERRORS = (ValueError, ImportError, CheckpointError, OSError, samplers.EnvError, samplers.WorkerError)
COMPILING = "compiling, or loading what was compiled before; up to a minute"
ONCE = 0.2  # seconds within which a signal sent twice, as `timeout` sends it to a process and to its group, counts once
SAY_EVERY = 30.0  # seconds between two lines where there is no terminal
console = Console(stderr=True)


def _say(line: str) -> None:
    """Print a line above the progress bar; a long path in it stays one word."""
    console.print(line, soft_wrap=True)


class Parsed(click.ParamType):
    """What a function makes of a flag's text; a `ValueError` of its own says that the text is not `what`."""

    def __init__(self, name: str, parse: Callable[[str], Any], what: str = "") -> None:
        self.name, self._parse, self._what = name, parse, what

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{value!r} is not {self._what}", param, ctx)


def _parts(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _numbers(text: str, one: Callable[[str], float] = float) -> float | list[float]:
    """One number, or several, which sweep the field."""
    numbers = [one(part) for part in text.split(",")]
    return numbers[0] if len(numbers) == 1 else numbers


def _setting(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as JSON or Python spells it (`true` or `True`, `[1, 2]`, `null` or `None`), or else a word."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return name, parse(value)
    return name, value


def _count(text: str) -> int:
    """A whole number, as `1000000`, `1_000_000` or `1e6`."""
    if not float(text).is_integer():
        raise ValueError
    return int(float(text)) if "e" in text.lower() else int(text)


COUNT = Parsed("int", _count, "a valid integer")
WIDTHS = Parsed("int[,int...]", lambda text: tuple(map(int, _parts(text))), "a list of whole numbers such as 64,64")
NAMES = Parsed("name[,name...]", lambda text: tuple(_parts(text)))
SETTING = Parsed("name=value", _setting, "NAME=VALUE")


def _field_option(field: dataclasses.Field, is_swept: bool) -> click.Option:
    """The flag of a config field, whose help says whether several numbers sweep it: a plain field's says nothing, as only the
    algorithm knows."""
    flag, help = f"--{field.name.replace('_', '-')}", f"{field.metadata.get('help', '')} [{field.default}]".strip()
    if isinstance(field.default, bool):
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help)
    if "choices" in field.metadata:
        return click.Option([flag], type=click.Choice(field.metadata["choices"]), help=help)
    if isinstance(field.default, str):
        return click.Option([flag], help=help)
    if isinstance(field.default, tuple):
        return click.Option([flag], type=NAMES if get_args(field.type)[0] is str else WIDTHS, help=help)
    name, one, what = ("int", _count, "a valid integer") if isinstance(field.default, int) else ("number", float, "a number")
    if is_swept:
        name, what = f"{name}[,{name}...]", f"{what}, nor several separated by commas"
    return click.Option([flag], type=Parsed(name, functools.partial(_numbers, one=one), what), help=help)


def _user_errors(f: Callable) -> Callable:
    """A user's mistake ends in one line, without a traceback."""

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except _USER_ERRORS as error:
            raise click.ClickException(str(error)) from None

    return wrapped


class _Algorithms(click.Group):
    """One sub-command for each algorithm; `my_module:make_mine` is one too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(algos.ALGORITHMS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        try:
            config = algos.config_class(name)
        except (ValueError, ImportError) as error:
            raise click.ClickException(str(error)) from None
        options = [
            click.Option(
                ["--env"],
                required=True,
                help="CartPole-v1 (pure where there is a port), gym:CartPole-v1, HalfCheetah-v5, ALE/Pong-v5, my_module:MyEnv-v0",
            ),
            click.Option(["--env-option", "env_options"], multiple=True, type=SETTING, help="for its constructor, as sticky=0.25"),
            click.Option(["--seeds"], type=COUNT, default=1, show_default=True, help="seeds of each variant"),
            click.Option(["--steps"], type=COUNT, help="environment steps of each lane [the preset's]"),
            click.Option(["--out"], type=click.Path(path_type=Path), required=True, help="folder of the run"),
            click.Option(["--device"], default="cpu", show_default=True),
            click.Option(["--threads"], type=int, default=0, help="CPU threads of the updates [as many as there are cores]"),
            click.Option(
                ["--checkpoint-replay"],
                type=click.BOOL,
                default=True,
                help="whether checkpoints hold the replay; a run without it goes on with an empty one when resumed [yes]",
            ),
            click.Option(
                ["--replay-folder"],
                type=click.Path(path_type=Path, resolve_path=True),
                help="let the replay lie in files in this folder, and be larger than memory [in memory]",
            ),
            click.Option(
                ["--replay-from"],
                type=click.Path(path_type=Path, resolve_path=True),
                help="begin with the replay of this run's last checkpoint, each lane with its own or all with its only one",
            ),
            click.Option(
                ["--plot", "png"], type=click.Path(path_type=Path), help="draw the learning curve into this file at the end"
            ),
        ]
        records = [record for record in (config, training.Collecting, training.Evaluating) if record is not None]
        fields = [
            _field_option(f, record is config and "leaf" in f.metadata)
            for record in records
            for f in dataclasses.fields(record)
            if f.name != "total_steps"
        ]

        flags = [option.name for option in (*options, *fields)]
        for flag in flags:
            if flags.count(flag) > 1:
                raise click.ClickException(
                    f"algorithm: {name!r} has a config field {flag!r}, but purerl train has that flag itself"
                )

        def run(**values: Any) -> None:
            _train(name, **values)

        help = f"Train {name}. Several numbers separated by commas sweep a flag that takes them; lanes = seeds x values."
        return click.Command(name, params=[*options, *fields], callback=_user_errors(run), help=help)


@click.group()
@click.version_option(package_name="purerl")
def main() -> None:
    """Deep reinforcement learning as pure functions in PyTorch."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `purerl/__init__.py` has set it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.formatwarning = lambda message, category, *rest: f"{category.__name__}: {message}\n"  # without a line of the source
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for environments and algorithms in modules of one's own
    atexit.register(gc.freeze)  # the interpreter would look through all of torch for garbage before it ends


main.add_command(_Algorithms("train", help="Train an algorithm: purerl train ppo --env CartPole-v1 --seeds 16 --out runs/demo"))


def _train(
    algo: str,
    env: str,
    env_options: tuple[tuple[str, Any], ...],
    seeds: int,
    steps: int | None,
    out: Path,
    device: str,
    threads: int,
    checkpoint_replay: bool,
    replay_folder: Path | None,
    replay_from: Path | None,
    png: Path | None,
    **fields: Any,
) -> None:
    given = {name: value for name, value in fields.items() if value is not None}
    place, curve = out.absolute(), png and png.absolute()  # an environment may go to another folder

    def take(record: Any) -> Any:
        return record(**{f.name: given.pop(f.name) for f in dataclasses.fields(record) if f.name in given})

    for name, _ in env_options:
        if [other for other, _ in env_options].count(name) > 1:
            raise ValueError(f"--env-option {name} is given twice")
    collecting, evaluating, options = take(training.Collecting), take(training.Evaluating), dict(env_options)
    options = training.as_json("env_options", options)
    if steps is None:
        steps = _default_steps(algo, envs.make(env, **options).spec)
    replay: tuple = checkpoint_replay, replay_folder, replay_from
    run = training.plan(algo, env, seeds, steps, given, device, threads, options, collecting, evaluating, *replay)
    training.prepare(place, run)
    _run(run, place, out, resume=False)
    if curve is not None:
        _say(f"curve: {plot.plot([place], curve)}")


def _default_steps(algo: str, spec: EnvSpec) -> int:
    config = algos.default_config(algo, spec)
    if not hasattr(config, "total_steps"):
        raise ValueError(f"steps: the config of {algo} has no total_steps to go by; say how many with --steps")
    return config.total_steps


def _run(run: training.Run, place: Path, out: Path, resume: bool) -> None:
    """Train in the folder `place`, which the user calls `out`."""
    if run.collecting.sampler != "fused":
        _say(f"sampler: {run.collecting.sampler}")
    said: set[str] = set()

    def say(failures: Iterable[training.Failure]) -> None:
        for lane, steps in failures:
            if lane not in said:
                said.add(lane)
                _say(f"lane {lane} stopped after {steps} steps: its state was not finite; the last good one is kept")

    show, others = _bar if console.is_terminal else _lines, set(threading.enumerate())
    try:
        with show(run) as tell, _ending_politely():

            def report(progress: training.Progress) -> None:
                say(progress.failed)
                tell(progress)

            failures = training.train(run, place, resume, report)
    except KeyboardInterrupt:
        _end(f"interrupted; go on with: purerl resume {out}", others)
    except (CheckpointError, RoomError):
        raise
    except Exception as error:
        message = str(error) if isinstance(error, _USER_ERRORS) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            write_atomically(place / "error.log", traceback.format_exc().encode())
            message += f"\nits traceback is in {out / 'error.log'}"
        notes = getattr(error, "__notes__", [])
        _end("\n".join([message, *(f"{note}; go on with: purerl resume {out}" for note in notes)]), others)
    say(failures)
    _say(f"run: {out}")
    if failures:
        sys.exit(1)


@contextlib.contextmanager
def _bar(run: training.Run) -> Iterator[Callable[[training.Progress], None]]:
    """A live bar."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps  {task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(COMPILING, total=run.steps, figures=_lanes(run))

        def report(p: training.Progress) -> None:
            bar.update(task, description="training", completed=p.steps, total=p.total, figures=_figures(p))

        yield report


@contextlib.contextmanager
def _lines(run: training.Run) -> Iterator[Callable[[training.Progress], None]]:
    """Lines for a log file: at the start, when everything is compiled, every so often, and at the end."""
    start, last = time.monotonic(), None
    click.echo(f"{run.algo} on {run.env}: {_lanes(run)} of {run.steps:,} steps; {COMPILING}", err=True)

    def report(p: training.Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None:
            last = now
            click.echo(f"ready after {now - start:.0f} s", err=True)
        if now - last > SAY_EVERY or p.steps == p.total:
            last = now
            click.echo(f"{p.steps:,}/{p.total:,} steps  {_figures(p)}", err=True)

    yield report


def _lanes(run: training.Run) -> str:
    n = len(training.lanes(run))
    return f"{n} lane{'s' * (n > 1)}"


def _figures(p: training.Progress) -> str:
    return f"{p.rate:,.0f} steps/s  return {p.mean_return:.1f}  {p.left:.0f} s left"


@contextlib.contextmanager
def _ending_politely() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM says what happens now and raises a KeyboardInterrupt; the second ends the process at once."""

    ending = 0.0

    def first(number: int, frame: Any) -> None:
        nonlocal ending
        ending = time.monotonic()
        for n in handled:
            signal.signal(n, second)
        os.write(2, b"\nending: saving the last good state; once more ends at once\n")
        raise KeyboardInterrupt

    def second(number: int, frame: Any) -> None:
        if time.monotonic() - ending > ONCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
    handled = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for n in handled:
        signal.signal(n, first)
    try:
        yield
    finally:
        for n, before in handled.items() if not ending else ():
            signal.signal(n, before)


def _end(message: str, others: Set[threading.Thread]) -> NoReturn:
    """End in one line, now: a thread that still compiles is not waited for, unless it is one of `others`, which are not ours."""
    error = click.ClickException(message)
    ours = [thread for thread in threading.enumerate() if thread not in others and not thread.daemon]
    for thread in ours:
        thread.join(0.2)
    if any(thread.is_alive() for thread in ours):
        error.show()
        sys.stderr.flush()
        os._exit(error.exit_code)
    raise error


@main.command("resume")
@click.argument("folder", type=click.Path(path_type=Path))
@_user_errors
def _resume(folder: Path) -> None:
    """Go on with a run that was interrupted, exactly where its last checkpoint stands."""
    place = folder.absolute()
    run = training.load_run(place)
    if training.finished(place, run):
        _say(f"run: {folder} is finished, all its {run.steps:,} steps are taken; another --out and more --steps train longer")
        return
    _run(run, place, folder, resume=True)


@main.command("eval")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(min=1), default=10, show_default=True, help="for each lane")
@click.option("--steps", type=click.IntRange(min=0), default=0, help="play so many steps in each lane, and each episode to its end")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="of the environments")
@click.option("--video", type=click.Path(path_type=Path), help="film one episode of the best lane (.mp4 or .gif)")
@_user_errors
def _eval(folder: Path, episodes: int, steps: int, seed: int, video: Path | None) -> None:
    """Play whole episodes with the mode of each lane's policy."""
    folder, film = folder.absolute(), video and video.absolute()
    run = training.load_run(folder)
    if film is not None:
        check_video(str(film))
    if run.device != "cpu" and not torch.cuda.is_available():
        run = dataclasses.replace(run, device="cpu")  # trained elsewhere
    algo, env = training.build(run)
    lanes, meta = training.load_state(folder, run, algo, env, lambda lanes: algo.acting(lanes.learner.algo))
    states = lanes.learner.algo
    click.echo(f"after {meta['update'] * algo.n_envs * algo.n_steps:,} steps:")
    returns, lengths = evaluate(algo, env, states, episodes, seed, steps)
    for (variant, lane_seed), r, n in zip(training.lanes(run), returns, lengths, strict=True):
        click.echo(f"{training.lane_name(variant, lane_seed)}  return {r.mean():.1f} +- {r.std():.1f}  length {n.mean():.1f}")
    click.echo(f"all  return {np.concatenate(returns).mean():.1f}  ({sum(map(len, returns))} episodes)")
    if film is not None:
        best = int(np.argmax([x.mean() for x in returns]))
        total = record_video(algo, env, states[best], str(film), seed)
        click.echo(f"video: {video} (return {total:.1f})")


@main.command("plot")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="the picture [FOLDER/curve.png]")
@click.option("--column", default="ReturnAverage", show_default=True, help="of progress.csv, or of evaluation.csv")
@_user_errors
def _plot(folders: tuple[Path, ...], out: Path | None, column: str) -> None:
    """Draw learning curves of one or several runs."""
    out = plot.plot(list(folders), out or folders[0] / "curve.png", column)
    click.echo(f"curve: {out}")


@main.command("list")
def _list() -> None:
    """The algorithms, and the environments that are pure."""
    click.echo("algorithms:   " + " ".join(algos.ALGORITHMS) + "   and my_module:make_mine, which makes one of your own")
    click.echo("pure environments:   " + " ".join([*envs.PURE, *envs.MAKERS]))
    click.echo("and every environment that Gymnasium can make, by its id (gym:ID forces Gymnasium's own)")


warnings.filterwarnings("default", module="purerl")
