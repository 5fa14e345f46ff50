import subprocess
import sys
from pathlib import Path

import pytest

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
