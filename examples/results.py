"""The page of results, `docs/results.md` with its pictures, of the runs that `examples/learn.py` has left in `runs/learn`.

`python examples/results.py "two cores of an AMD EPYC"` says on what they ran. Only what was run is shown, as far as it came.
A run's curve is kept in `docs/results/ENVIRONMENT.json`, and is shown after its folder is gone, until the same is run again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from purerl import plot
from purerl.logs import TIME, read_rows

RUNS, PAGE = Path("runs/learn"), Path("docs/results.md")
POINTS = 200  # of a curve, at most
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


Record = dict[str, Any]


def column(run: Path) -> str:
    """What is shown: the evaluations, if a run has them."""
    evaluated = any(read_rows(path)[1] for path in run.rglob("evaluation.csv"))
    return "Evaluation/ReturnAverage" if evaluated else "ReturnAverage"


def has_returns(run: Path) -> bool:
    """Whether episodes of all its seeds have ended."""
    begun = [bool(read_rows(path)[1]) for path in run.rglob("progress.csv")]
    return any(begun) and all(begun) and plot.read_curves(run, column(run))[""][1].size > 0


def record(run: Path) -> Record:
    """What the page says of a run: its ends, and its curve with the band around it."""
    steps, values = plot.read_curves(run, column(run))[""]
    shown = np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))
    curve = zip(("centre", "low", "high"), plot.interquartile_mean(values[:, shown]), strict=True)
    last = values[:, -1]
    seconds = [float(read_rows(path)[1][-1][TIME]) for path in run.rglob("progress.csv")]
    return {
        "of": json.loads((run / "config.json").read_text())["steps"],
        "seeds": len(last),
        "mean": round(float(last.mean()), 2),
        "worst": round(float(last.min()), 2),
        "evaluated": column(run) != "ReturnAverage",
        "hours": round(max(seconds) / 3600, 2),
        "steps": steps[shown].astype(int).tolist(),
        **{name: np.round(values, 2).tolist() for name, values in curve},
    }


def row(algo: str, it: Record) -> str:
    """A run's line in the table of its environment."""
    ends = f"{it['centre'][-1]:.1f} | {it['mean']:.1f} | {it['worst']:.1f}"
    kind = "ten deterministic episodes" if it["evaluated"] else "the last 100 training episodes"
    return f"| {algo} | {it['steps'][-1]:,} of {it['of']:,} | {it['seeds']} | {ends} | {kind} | {it['hours']:.2f} |"


def draw(place: str, records: dict[str, Record]) -> None:
    """An environment's picture: its curves, and what others publish as grey lines."""
    whole, axes = plot.figure()
    for algo, it in records.items():
        plot.draw_curve(axes, algo, *(it[key] for key in ("seeds", "steps", "centre", "low", "high")))
    for i, (name, value) in enumerate(PUBLISHED.get(place, {}).items()):
        axes.axhline(value, color="grey", linestyle=("--", ":", "-.", (0, (1, 4)))[i % 4], linewidth=1, label=f"{name}: {value:g}")
    kinds = {"ten deterministic" if it["evaluated"] else "the last 100" for it in records.values()}
    plot.finish(axes, f"return, mean of {' or '.join(sorted(kinds))} episodes")
    axes.legend(fontsize="small")
    plot.save(whole, PAGE.with_suffix("") / f"{place}.png")


def section(place: str, records: dict[str, Record]) -> list[str]:
    """An environment's part of the page."""
    protocol, _, game = place.partition("-")
    title = TITLES[protocol].format(game) if protocol in TITLES else place
    published = "; ".join(f"{name} {value:g}" for name, value in PUBLISHED.get(place, {}).items())
    return [
        f"## {title}\n",
        f"![{place}]({PAGE.stem}/{place}.png)\n",
        "| | steps | seeds | inter-quartile mean | mean | worst seed | of | hours |",
        "|---|---|---|---|---|---|---|---|",
        *(row(algo, records[algo]) for algo in records),
        f"\nPublished: {published}.\n" if published else "",
    ]


def main(hardware: str) -> None:
    kept = PAGE.with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)
    for place in sorted(RUNS.glob("*/")):
        new = {x.parent.name: record(x.parent) for x in place.glob("*/config.json") if has_returns(x.parent)}
        if new:
            path = kept / f"{place.name}.json"
            records = dict(sorted({**(json.loads(path.read_text()) if path.exists() else {}), **new}.items()))
            path.write_text("{\n" + ",\n".join(f"{json.dumps(algo)}: {json.dumps(it)}" for algo, it in records.items()) + "\n}\n")
            draw(place.name, records)
    parts = [section(path.stem, json.loads(path.read_text())) for path in sorted(kept.glob("*.json"))]
    head = [
        "# Results\n",
        f"`python examples/learn.py` trained these, on {hardware}, and `python examples/results.py` made",
        "this page of what it left in `runs/learn`. Settings are the presets' but where `learn.py` says otherwise;",
        "hours are by the clock, for all seeds of a run, while others ran beside it. The grey lines are what others",
        "publish; protocols differ in details. A dot is the end of a run whose curve was not kept.\n",
    ]
    PAGE.write_text("\n".join([*head, *(line for part in parts for line in part)]).rstrip() + "\n")
    print(f"{PAGE}: {len(parts)} environments")


if __name__ == "__main__":
    if not RUNS.is_dir():
        sys.exit(f"{RUNS}: there are no runs yet; python examples/learn.py makes them")
    main(sys.argv[1] if len(sys.argv) > 1 else "one machine")
