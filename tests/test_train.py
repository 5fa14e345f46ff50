import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_trees_equal

from purerl import envs, make_a2c, random, vmap
from purerl import train as training
from purerl.algos import A2CConfig
from purerl.evaluate import evaluate
from purerl.logs import RATE, TIME, read_rows

SMALL = {"hidden": (8,), "n_envs": 4, "n_steps": 8}

SCRIPT = """
import sys
from pathlib import Path
from purerl import train as training
out = Path(sys.argv[1])
if sys.argv[2] == "start":
    run = training.plan("a2c", "CartPole-v1", 2, 64_000, {"hidden": (8,), "n_envs": 4, "n_steps": 8, "lr": [1e-3, 1e-2]})
    training.prepare(out, run)
training.train(training.load_run(out), out, resume=sys.argv[2] == "resume", checkpoint_every=0.0)
"""


def start(out, mode):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), mode])


def rows(out):
    """All rows of all lanes, without what a clock says."""
    paths = sorted(out.rglob("progress.csv"))
    return [{k: v for k, v in row.items() if k not in (TIME, RATE)} for path in paths for row in read_rows(path)[1]]


def final_state(out):
    run = training.load_run(out)
    return training.load_state(out, run, *training.build(run))


def test_kill_9_and_resume_ends_with_the_same_bits(tmp_path):
    """Killed twice: some rows into the run, and again after the resumption."""
    assert start(tmp_path / "whole", "start").wait() == 0
    for i, mode in enumerate(("start", "resume")):
        child = start(tmp_path / "killed", mode)
        csv = tmp_path / "killed" / "lr=0.001" / "seed_001" / "progress.csv"
        deadline = time.monotonic() + 300
        while child.poll() is None and time.monotonic() < deadline:
            if csv.exists() and csv.read_text().count("\n") > 20 + 60 * i:
                os.kill(child.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        assert child.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed", "resume").wait() == 0
    assert_trees_equal(final_state(tmp_path / "killed")[0], final_state(tmp_path / "whole")[0])
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 4 * 100


def nan_plan(tmp_path):
    run = training.plan("a2c", "CartPole-v1", 2, 3_200, {**SMALL, "lr": [1e-3, 1e-2]})
    training.prepare(tmp_path / "run", run)
    return run


def test_nan_stops_its_lane_alone(tmp_path, monkeypatch):
    """One lane's hyper-parameters are NaN: it stands still, the others go on, and its last good state is kept."""
    original = training.initial_state

    def poisoned(run, program):
        state = original(run, program)
        state.algo.hyper["vf_coef"][1] = float("nan")
        return state

    monkeypatch.setattr(training, "initial_state", poisoned)
    run = nan_plan(tmp_path)
    failures = training.train(run, tmp_path / "run")
    assert failures == [training.Failure("lr=0.001/seed_001", 0)]
    state, _ = training.load_state(tmp_path / "run", run, *training.build(run))
    assert state.algo.steps.tolist() == [3200, 0, 3200, 3200]
    assert torch.isfinite(state.algo.params["critic.weight"]).all()
    assert read_rows(tmp_path / "run" / "lr=0.001" / "seed_001" / "progress.csv")[1] == []
    assert len(read_rows(tmp_path / "run" / "lr=0.01" / "seed_001" / "progress.csv")[1]) == 100


def test_host_run_logs_resumes_and_evaluates(tmp_path):
    run = training.plan("a2c", "gym:CartPole-v1", 2, 640, SMALL)
    training.prepare(tmp_path, run)
    reports = []
    assert training.train(run, tmp_path, report=reports.append) == []
    assert reports[-1].steps == 640
    assert json.loads((tmp_path / "seed_001" / "params.json").read_text())["seed"] == 1
    assert list((tmp_path / "tb").rglob("events*"))
    longer = training.Run(**{**training.dataclasses.asdict(run), "steps": 960})
    training.train(longer, tmp_path, resume=True)
    _, table = read_rows(tmp_path / "seed_000" / "progress.csv")
    assert [int(row["Diagnostics/CumSteps"]) for row in table] == list(range(32, 961, 32))


def test_evaluate_plays_whole_episodes():
    for id in ("CartPole-v1", "gym:CartPole-v1"):
        env = envs.make(id)
        algo = make_a2c(env.spec, A2CConfig(hidden=(8,)))
        states = vmap(algo.init)(random.split(random.key(0), 2))
        returns, lengths = (np.stack(x) for x in evaluate(algo, env, states, 3, seed=0))
        assert returns.shape == (2, 3)
        np.testing.assert_array_equal(returns, lengths)
        assert (lengths >= 8).all()
        np.testing.assert_array_equal(returns, np.stack(evaluate(algo, env, states, 3, seed=0).returns))


def test_plan_gives_each_variant_its_lanes():
    run = training.plan("ppo", "CartPole-v1", 2, 1024, {"lr": [1e-3, 1e-4], "clip": 0.3})
    names = [training.lane_name(*lane) for lane in training.lanes(run)]
    assert names == ["lr=0.001/seed_000", "lr=0.001/seed_001", "lr=0.0001/seed_000", "lr=0.0001/seed_001"]
    assert training.make_config(run, {"lr": 1e-3}).clip == 0.3


def test_load_run_of_a_folder_without_one(tmp_path):
    with pytest.raises(ValueError, match=r": holds no run \("):
        training.load_run(Path(tmp_path))
