"""The command line: flags from the config dataclasses, and nothing else."""

import dataclasses
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from purerl import algos, envs, plot, samplers
from purerl import train as training
from purerl.checkpoint import CheckpointError
from purerl.evaluate import evaluate, record_video

_USER_ERRORS = (ValueError, ImportError, CheckpointError, OSError, samplers.EnvError, samplers.WorkerError)
console = Console(stderr=True)


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


def _numbers(text: str) -> float | list[float]:
    """One number, or several, which sweep the field."""
    numbers = [float(part) for part in text.split(",")]
    return numbers[0] if len(numbers) == 1 else numbers


def _setting(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as JSON where it is some."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


NUMBERS = Parsed("number[,number...]", _numbers, "a number, nor several separated by commas")
WIDTHS = Parsed("int[,int...]", lambda text: tuple(map(int, _parts(text))), "a list of whole numbers such as 64,64")
NAMES = Parsed("name[,name...]", lambda text: tuple(_parts(text)))
SETTING = Parsed("name=value", _setting, "NAME=VALUE")


def _field_option(field: dataclasses.Field) -> click.Option:
    """The flag of a config field."""
    flag, help = f"--{field.name.replace('_', '-')}", f"{field.metadata['help']} [{field.default}]"
    if isinstance(field.default, bool):
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help)
    if "choices" in field.metadata:
        return click.Option([flag], type=click.Choice(field.metadata["choices"]), help=help)
    if isinstance(field.default, tuple):
        return click.Option([flag], type=NAMES if get_args(field.type)[0] is str else WIDTHS, help=help)
    return click.Option([flag], type=click.INT if isinstance(field.default, int) else NUMBERS, help=help)


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
    """One sub-command for each algorithm."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(algos.ALGORITHMS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        try:
            entry = algos.find(name)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        options = [
            click.Option(
                ["--env"],
                required=True,
                help="CartPole-v1 (pure where there is a port), gym:CartPole-v1, HalfCheetah-v5, ALE/Pong-v5, my_module:MyEnv-v0",
            ),
            click.Option(["--env-option", "env_options"], multiple=True, type=SETTING, help="for its constructor, as sticky=0.25"),
            click.Option(["--seeds"], type=int, default=1, show_default=True, help="seeds of each variant"),
            click.Option(["--steps"], type=int, help="environment steps of each lane [the preset's]"),
            click.Option(["--out"], type=click.Path(path_type=Path), required=True, help="folder of the run"),
            click.Option(["--device"], default="cpu", show_default=True),
            click.Option(
                ["--plot", "png"], type=click.Path(path_type=Path), help="draw the learning curve into this file at the end"
            ),
        ]
        records = (entry.config, training.Collecting, training.Evaluating)
        fields = [_field_option(f) for record in records for f in dataclasses.fields(record) if f.name != "total_steps"]

        def run(**values: Any) -> None:
            _train(name, **values)

        help = f"Train {name}. Several numbers separated by commas sweep a number; lanes = seeds x values."
        return click.Command(name, params=[*options, *fields], callback=_user_errors(run), help=help)


@click.group()
@click.version_option(package_name="purerl")
def main() -> None:
    """Deep reinforcement learning as pure functions in PyTorch."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for environments in modules of one's own


main.add_command(_Algorithms("train", help="Train an algorithm: purerl train ppo --env CartPole-v1 --seeds 16 --out runs/demo"))


def _train(
    algo: str,
    env: str,
    env_options: tuple[tuple[str, Any], ...],
    seeds: int,
    steps: int | None,
    out: Path,
    device: str,
    png: Path | None,
    **fields: Any,
) -> None:
    given = {name: value for name, value in fields.items() if value is not None}

    def take(record: Any) -> Any:
        return record(**{f.name: given.pop(f.name) for f in dataclasses.fields(record) if f.name in given})

    collecting, evaluating, options = take(training.Collecting), take(training.Evaluating), dict(env_options)
    if steps is None:
        steps = algos.find(algo).default_config(envs.make(env, **options).spec).total_steps
    run = training.plan(algo, env, seeds, steps, given, device, options, collecting, evaluating)
    training.prepare(out, run)
    _run(run, out, resume=False)
    if png is not None:
        plot.plot([out], png)
        console.print(f"curve: {png}")


def _run(run: training.Run, out: Path, resume: bool) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps  {task.fields[figures]}"),
    )
    lanes = len(training.lanes(run))
    if run.collecting.sampler != "fused":
        console.print(f"sampler: {run.collecting.sampler}")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("compiling (once; up to a minute)", total=run.steps, figures=f"{lanes} lanes")

        def report(p: training.Progress) -> None:
            figures = f"{p.rate:,.0f} steps/s  return {p.mean_return:.1f}  {p.left:.0f} s left"
            bar.update(task, description="training", completed=p.steps, total=p.total, figures=figures)

        try:
            failures = training.train(run, out, resume, report)
        except KeyboardInterrupt:
            raise click.ClickException(f"interrupted; go on with: purerl resume {out}") from None
        except (samplers.EnvError, samplers.WorkerError) as error:
            raise click.ClickException(f"{error}\nthe run up to there is saved; go on with: purerl resume {out}") from None
    for failure in failures:
        console.print(
            f"lane {failure.lane} stopped after {failure.steps} steps: its loss was not finite; its last good state is kept"
        )
    console.print(f"run: {out}")
    if failures:
        sys.exit(1)


@main.command("resume")
@click.argument("folder", type=click.Path(path_type=Path))
@_user_errors
def _resume(folder: Path) -> None:
    """Go on with a run that was interrupted, exactly where its last checkpoint stands."""
    _run(training.load_run(folder), folder, resume=True)


@main.command("eval")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(min=1), default=10, show_default=True, help="for each lane")
@click.option("--steps", type=click.IntRange(min=0), default=0, help="play so many steps in each lane, and each episode to its end")
@click.option("--seed", type=int, default=0, show_default=True, help="of the environments")
@click.option("--video", type=click.Path(path_type=Path), help="film one episode of the best lane (.mp4 or .gif)")
@_user_errors
def _eval(folder: Path, episodes: int, steps: int, seed: int, video: Path | None) -> None:
    """Play whole episodes with the mode of each lane's policy."""
    run = training.load_run(folder)
    algo, env = training.build(run)
    state, _ = training.load_state(folder, run, algo, env)
    returns, lengths = evaluate(algo, env, state.algo, episodes, seed, steps)
    for (variant, lane_seed), r, n in zip(training.lanes(run), returns, lengths, strict=True):
        click.echo(f"{training.lane_name(variant, lane_seed)}  return {r.mean():.1f} +- {r.std():.1f}  length {n.mean():.1f}")
    click.echo(f"all  return {np.concatenate(returns).mean():.1f}  ({sum(map(len, returns))} episodes)")
    if video is not None:
        best = int(np.argmax([x.mean() for x in returns]))
        total = record_video(algo, env, state.algo[best], str(video), seed)
        click.echo(f"video: {video} (return {total:.1f})")


@main.command("plot")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="the picture [FOLDER/curve.png]")
@click.option("--column", default="ReturnAverage", show_default=True, help="of progress.csv, or of evaluation.csv")
@_user_errors
def _plot(folders: tuple[Path, ...], out: Path | None, column: str) -> None:
    """Draw learning curves of one or several runs."""
    out = out or folders[0] / "curve.png"
    plot.plot(list(folders), out, column)
    click.echo(f"curve: {out}")


@main.command("list")
def _list() -> None:
    """The algorithms, and the environments that are pure."""
    click.echo("algorithms:   " + " ".join(algos.ALGORITHMS))
    click.echo("pure environments:   " + " ".join(envs.PURE))
    click.echo("and every environment that Gymnasium can make, by its id (gym:ID forces Gymnasium's own)")


warnings.filterwarnings("default", module="purerl")
