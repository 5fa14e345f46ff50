"""The page of results, `docs/results.md` with its pictures, of the runs that `examples/learn.py` has left in `runs/learn`.

`python examples/results.py "two cores of an AMD EPYC"` says on what they ran. Only what was run is shown, as far as it came.
"""

import json
import sys
from pathlib import Path

from purerl import plot
from purerl.logs import TIME, read_rows

RUNS, PAGE = Path("runs/learn"), Path("docs/results.md")
YOUNG = "DQN after 5M frames (Young and Tian 2019)"
GYMNAX = "PPO of gymnax"
CLEANRL = ("DQN of CleanRL", "C51 of CleanRL", "PQN of CleanRL", "PPO of CleanRL")
PUBLISHED: dict[str, dict[str, float]] = {  # by the folder of an environment; read off curves where a paper has no number
    "CartPole-v1": dict(zip(CLEANRL, (488.7, 481.2, 495.1, 490.0), strict=True)),
    "Acrobot-v1": dict(zip(CLEANRL, (-91.5, -87.7, -95.6, -86.4), strict=True)),
    "gymnax-Asterix": {GYMNAX: 15},
    "gymnax-Breakout": {GYMNAX: 28},
    "gymnax-Freeway": {GYMNAX: 58},
    "gymnax-SpaceInvaders": {GYMNAX: 131},
    "minatar-Asterix": {YOUNG: 17},
    "minatar-Breakout": {YOUNG: 10},
    "minatar-Freeway": {YOUNG: 50},
    "minatar-Seaquest": {YOUNG: 20},
    "minatar-SpaceInvaders": {YOUNG: 44},
    **{
        env: {"SAC after 200k steps (SimbaV2's baseline)": early, "SAC after 1M": late, "CrossQ after 200k": cross}
        for env, early, late, cross in (
            ("HalfCheetah-v5", 7679, 11506, 9578),
            ("Hopper-v5", 2342, 2448, 2898),
            ("Walker2d-v5", 1946, 4612, 5462),
            ("Ant-v5", 2296, 5816, 4958),
        )
    },
}
TITLES = {
    "gymnax": "MinAtar {}, gymnax's protocol: no sticky actions, no ramping, the actions that count, episodes cut",
    "minatar": "MinAtar {}, the original protocol: sticky actions, ramping difficulty, six actions",
}


def column(run: Path) -> str:
    """What is shown: the evaluations, if a run has them."""
    evaluated = any(read_rows(path)[1] for path in run.rglob("evaluation.csv"))
    return "Evaluation/ReturnAverage" if evaluated else "ReturnAverage"


def has_returns(run: Path) -> bool:
    """Whether episodes of all its seeds have ended."""
    begun = [bool(read_rows(path)[1]) for path in run.rglob("progress.csv")]
    return any(begun) and all(begun) and plot.read_curves(run, column(run))[""][1].size > 0


def row(run: Path) -> str:
    """A run's line in the table of its environment."""
    config = json.loads((run / "config.json").read_text())
    steps, values = plot.read_curves(run, column(run))[""]
    last = values[:, -1]
    seconds = [float(read_rows(path)[1][-1][TIME]) for path in run.rglob("progress.csv")]
    kind = "ten deterministic episodes" if column(run).startswith("Evaluation") else "the last 100 training episodes"
    ends = f"{plot.interquartile_mean(last[:, None])[0][0]:.1f} | {last.mean():.1f} | {last.min():.1f}"
    length = f"{steps[-1]:,.0f} of {config['steps']:,} | {len(last)}"
    return f"| {config['algo']} | {length} | {ends} | {kind} | {max(seconds) / 3600:.2f} |"


def section(place: Path) -> list[str]:
    """An environment's part of the page; draws its picture."""
    runs = [x.parent for x in sorted(place.glob("*/config.json")) if has_returns(x.parent)]
    if not runs:
        return []
    whole, axes = plot.figure()
    for name in sorted({column(run) for run in runs}):
        plot.draw(axes, [run for run in runs if column(run) == name], name)
    for i, (name, value) in enumerate(PUBLISHED.get(place.name, {}).items()):
        axes.axhline(value, color="grey", linestyle=("--", ":", "-.", (0, (1, 4)))[i % 4], linewidth=1, label=f"{name}: {value:g}")
    axes.legend(fontsize="small")
    picture = plot.save(whole, PAGE.with_suffix("") / f"{place.name}.png")
    protocol, _, game = place.name.partition("-")
    title = TITLES[protocol].format(game) if protocol in TITLES else place.name
    published = "; ".join(f"{name} {value:g}" for name, value in PUBLISHED.get(place.name, {}).items())
    return [
        f"## {title}\n",
        f"![{place.name}]({picture.relative_to(PAGE.parent)})\n",
        "| | steps | seeds | inter-quartile mean | mean | worst seed | of | hours |",
        "|---|---|---|---|---|---|---|---|",
        *map(row, runs),
        f"\nPublished: {published}.\n" if published else "",
    ]


def main(hardware: str) -> None:
    parts = [section(place) for place in sorted(RUNS.iterdir()) if place.is_dir()]
    PAGE.parent.mkdir(exist_ok=True)
    head = [
        "# Results\n",
        f"`python examples/learn.py` trained these, on {hardware}, and `python examples/results.py` made",
        "this page of what it left in `runs/learn`. Settings are the presets' but where `learn.py` says otherwise;",
        "hours are by the clock, for all seeds of a run, while others ran beside it. The grey lines are what others",
        "publish; protocols differ in details.\n",
    ]
    PAGE.write_text("\n".join([*head, *(line for part in parts for line in part)]).rstrip() + "\n")
    print(f"{PAGE}: {sum(map(bool, parts))} environments")


if __name__ == "__main__":
    if not RUNS.is_dir():
        sys.exit(f"{RUNS}: there are no runs yet; python examples/learn.py makes them")
    main(sys.argv[1] if len(sys.argv) > 1 else "one machine")
