import numpy as np
import pytest

from purerl import plot
from purerl.logs import STEPS, CsvLog


def fake_run(folder, seeds=4, variant=""):
    for seed in range(seeds):
        log = CsvLog(folder / variant / f"seed_{seed:03d}")
        for i in range(5):
            log.write({STEPS: i, "ReturnAverage": float("nan") if i == 0 else float(seed * i)})
        log.close()


def test_interquartile_mean_by_hand():
    centre, low, high = plot.interquartile_mean(np.array([[0.0], [1.0], [3.0], [100.0]]))
    assert centre == [2.0]
    assert low[0] <= 2.0 <= high[0]


def test_curves_and_picture(tmp_path):
    fake_run(tmp_path / "a")
    for variant in ("lr=0.1", "lr=0.2"):
        fake_run(tmp_path / "b", 3, variant)
    steps, values = plot.read_curves(tmp_path / "a", "ReturnAverage")[""]
    assert steps.tolist() == [1, 2, 3, 4]
    assert values[2].tolist() == [2, 4, 6, 8]
    assert list(plot.read_curves(tmp_path / "b", "ReturnAverage")) == ["lr=0.1", "lr=0.2"]
    plot.plot([tmp_path / "a", tmp_path / "b"], tmp_path / "c" / "curve.png")
    assert (tmp_path / "c" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match=r": no progress.csv with rows below it; the run has made no progress yet"):
        plot.plot([tmp_path], tmp_path / "x.png")
    fake_run(tmp_path)
    with pytest.raises(ValueError, match=r": no column 'Loss'; it has Diagnostics/CumSteps, ReturnAverage$"):
        plot.plot([tmp_path], tmp_path / "x.png", "Loss")
