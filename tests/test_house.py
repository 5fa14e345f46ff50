"""What docs/house.md says is so."""

import re
import subprocess
import sys
from pathlib import Path

from purerl import training
from purerl.logs import read_rows

PAGE = Path(__file__).parents[1] / "docs" / "house.md"


def block(beginning: str) -> str:
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if code.startswith(beginning)]
    return found


def test_the_page_about_donation_runs():
    exec(compile(block("import torch"), "house.md", "exec"), {"__name__": "page"})


def test_an_algorithm_in_one_file_trains_sweeps_evaluates_and_resumes(tmp_path):
    (tmp_path / "reinforce.py").write_text(block('"""REINFORCE'))
    words = (
        "train reinforce:make_reinforce --env CartPole-v1 --lr 1e-3,3e-3 --steps 204800 --hidden 32 --eval-every 102400 --out run"
    )

    def purerl(words):
        return subprocess.run([sys.executable, "-m", "purerl", *words.split()], cwd=tmp_path, capture_output=True, text=True)

    done = purerl(words)
    assert done.returncode == 0, done.stderr
    returns = [
        float(read_rows(tmp_path / "run" / f"lr={lr}" / "seed_000" / "progress.csv")[1][-1]["ReturnAverage"])
        for lr in ("0.001", "0.003")
    ]
    assert min(returns) > 60  # it learns: a random policy reaches 22
    assert len(read_rows(tmp_path / "run" / "lr=0.001" / "seed_000" / "evaluation.csv")[1]) == 2
    assert "finished" in purerl("resume run").stderr
    assert "return" in purerl("eval run --episodes 2").stdout


def test_the_floors_of_the_page_are_the_rooms_there_are():
    table = PAGE.read_text().split("## The floors")[1].split("## The way")[0]
    named = set(re.findall(r"`(\w+)`", table))
    rooms = {
        path.stem for path in Path(training.__file__).parents[1].iterdir() if path.suffix in (".py", "") and path.name[0] != "_"
    }
    assert rooms <= named
