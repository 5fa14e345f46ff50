import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from purerl.logs import STEPS, TIME, CsvLog

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("gym_loop", ["3"]),
        ("many_seeds", ["3", "4"]),
        ("sweep", ["3"]),
        ("own_network", ["3"]),
        ("own_env", ["3"]),
        ("own_loss", ["3"]),
        ("own_loop", ["functional", "3"]),
        ("own_loop", ["autograd", "3"]),
        ("recorded", ["3"]),
    ],
)
def test_runs_and_prints_a_return(name, args, tmp_path):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 100
    result = subprocess.run([sys.executable, str(path), *args], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "return" in result.stdout


def test_the_page_of_results_shows_what_was_run(tmp_path):
    for place, algo, returns in (
        ("CartPole-v1", "ppo", [100, 200, 400]),
        ("minatar-Breakout", "pqn", []),
        ("Ant-v5", "sac", [1, 2]),
    ):
        run = tmp_path / "runs" / "learn" / place / algo
        for seed, value in enumerate(returns):
            log = CsvLog(run / f"seed_{seed:03d}")
            for steps in (10, 20):
                log.write({STEPS: steps, TIME: 180.0 * steps, "ReturnAverage": float(value)})
            log.close()
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps({"algo": algo, "steps": 1000}))

    def made():
        command = [sys.executable, str(EXAMPLES / "results.py"), "an abacus"]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout

    assert made() == "docs/results.md: 2 environments\n"
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "on an abacus" in page
    assert "| ppo | 20 of 1,000 | 3 | 233.3 | 233.3 | 100.0 | the last 100 training episodes | 1.00 |" in page
    assert "SAC after 200k steps (SimbaV2's baseline) 2296" in page
    assert "Breakout" not in page
    for name in ("CartPole-v1", "Ant-v5"):
        assert f"](results/{name}.png)" in page
        assert (tmp_path / "docs" / "results" / f"{name}.png").exists()
    shutil.rmtree(tmp_path / "runs" / "learn" / "CartPole-v1")  # what it has shown stays
    assert made() == "docs/results.md: 2 environments\n"
    assert (tmp_path / "docs" / "results.md").read_text() == page
