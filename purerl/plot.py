"""Learning curves: the inter-quartile mean over seeds with its bootstrap confidence band (Agarwal et al. 2021)."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from purerl.extras import how_to_install
from purerl.logs import STEPS, read_rows


def read_curves(folder: Path, column: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves below a run's folder, by variant; those of a column `Evaluation/...` are in `evaluation.csv`.

    Returns:
        For each variant, steps `[N]` and values `[seeds, N]`, cut to the steps that all its seeds have reached.

    Raises:
        ValueError: no such folder, no `progress.csv` with rows below it, or no such column.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    groups = defaultdict(list)
    name = "evaluation.csv" if column.startswith("Evaluation/") else "progress.csv"
    for path in sorted(folder.rglob(name)):
        header, rows = read_rows(path)
        if rows and column not in header:
            raise ValueError(f"{path}: no column {column!r}; it has {', '.join(header)}")
        if rows:
            variant = str(path.parent.parent.relative_to(folder))
            curve = [(float(row[STEPS]), float(row[column])) for row in rows]
            groups["" if variant == "." else variant].append(np.array(curve))
    if not groups and name == "evaluation.csv":
        raise ValueError(f"{folder}: no evaluation.csv with rows below it; --eval-every says how often a run is evaluated")
    if not groups:
        raise ValueError(f"{folder}: no {name} with rows below it; the run has made no progress yet, or it is another folder's")
    curves = {}
    for variant, seeds in groups.items():
        n = min(len(seed) for seed in seeds)
        values = np.stack([seed[:n, 1] for seed in seeds])
        known = ~np.isnan(values).any(0)
        curves[variant] = seeds[0][:n, 0][known], values[:, known]
    return curves


def interquartile_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inter-quartile mean over seeds `[seeds, N] -> [N]`, and the ends of its 95 % bootstrap interval."""
    from scipy import stats

    centre = stats.trim_mean(values, 0.25, axis=0)
    if len(values) < 2:
        return centre, centre, centre
    band = stats.bootstrap(
        (values,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), axis=0, n_resamples=500, method="percentile", rng=0
    ).confidence_interval
    return centre, band.low, band.high


def figure() -> tuple[Any, Any]:
    """A figure to draw curves into, and its axes.

    Raises:
        ImportError: the `plot` extra is not installed.
    """
    try:
        import scipy  # noqa: F401
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot: {error}; install what it needs with: {how_to_install('plot')}") from None
    whole = Figure(figsize=(8, 5), layout="constrained")
    return whole, whole.subplots()


def draw_curve(axes: Any, name: str, seeds: int, steps: Any, centre: Any, low: Any, high: Any) -> None:
    """Draw one curve `[N]`, of so many seeds, and the band between `low` `[N]` and `high` `[N]`; one of a single point is a dot."""
    label = f"{name} ({seeds} seeds)" if seeds > 1 else name
    (line,) = axes.plot(steps, centre, label=label, marker="o" if len(steps) == 1 else None)
    axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def draw(axes: Any, folders: list[Path], column: str = "ReturnAverage") -> None:
    """Draw the curves of one or several runs.

    Raises:
        ValueError: as `read_curves`.
    """
    for folder in folders:
        for variant, (steps, values) in read_curves(folder, column).items():
            name = " ".join(filter(None, [folder.name if len(folders) > 1 else "", variant])) or folder.name
            draw_curve(axes, name, len(values), steps, *interquartile_mean(values))
    finish(axes, "return, mean of the last 100 episodes" if column == "ReturnAverage" else column)


def finish(axes: Any, what: str) -> None:
    """Title, labels, grid and legend of a picture whose curves are drawn; `what` is on the vertical axis."""
    axes.set(xlabel="environment steps", ylabel=what, title="inter-quartile mean over seeds, 95 % bootstrap band")
    axes.grid(alpha=0.3)
    axes.legend()


def save(whole: Any, out: Path) -> Path:
    """Write a figure; a path without an ending becomes `.png`. Returns the picture's path."""
    out = out if out.suffix else out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    whole.savefig(out, dpi=120)
    return out


def plot(folders: list[Path], out: Path, column: str = "ReturnAverage") -> Path:
    """Draw the curves of one or several runs into one picture; a path without an ending becomes `.png`.

    Returns:
        The picture's path.

    Raises:
        ValueError: as `read_curves`.
        ImportError: the `plot` extra is not installed.
    """
    whole, axes = figure()
    draw(axes, folders, column)
    return save(whole, out)
