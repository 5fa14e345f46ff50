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

from purerl import envs, logs, make_a2c, random, samplers, vmap
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
        state.learner.algo.hyper["vf_coef"][1] = float("nan")
        return state

    monkeypatch.setattr(training, "initial_state", poisoned)
    run = nan_plan(tmp_path)
    failures = training.train(run, tmp_path / "run")
    assert failures == [training.Failure("lr=0.001/seed_001", 0)]
    state, _ = training.load_state(tmp_path / "run", run, *training.build(run))
    assert state.learner.algo.steps.tolist() == [3200, 0, 3200, 3200]
    assert torch.isfinite(state.learner.algo.params["critic.weight"]).all()
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
    longer = training.dataclasses.replace(run, steps=960)
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


def read_evaluations(folder):
    _, rows = logs.read_rows(folder / "evaluation.csv")
    return [
        (int(row["Diagnostics/CumSteps"]), float(row["Evaluation/ReturnAverage"]), int(row["Evaluation/Episodes"])) for row in rows
    ]


def test_evaluation_while_training_in_front_or_behind(tmp_path):
    found = []
    for background in (False, True):
        evaluating = training.Evaluating(eval_every=200, eval_episodes=3, eval_background=background)
        run = training.plan("a2c", "CartPole-v1", 2, 640, SMALL, evaluating=evaluating)
        out = tmp_path / str(background)
        training.prepare(out, run)
        training.train(run, out)
        found.append([read_evaluations(out / f"seed_00{i}") for i in range(2)])
    assert found[0] == found[1]
    assert [steps for steps, *_ in found[0][0]] == [224, 416, 608, 640]
    assert all(episodes == 3 and 8 <= mean <= 500 for lane in found[0] for _, mean, episodes in lane)


@pytest.mark.parametrize("sampler", ["serial", "parallel", "central", "alternating", "buffered"])
def test_a_run_through_any_sampler(tmp_path, sampler):
    collecting = training.Collecting(sampler=sampler, n_workers=0 if sampler == "serial" else 2, infos=("depth",))
    run = training.plan("a2c", "worlds:Walk-v0", 2, 320, SMALL, env_options={"longest": 5}, collecting=collecting)
    training.prepare(tmp_path, run)
    assert training.load_run(tmp_path).collecting == run.collecting
    training.train(run, tmp_path)
    _, rows = read_rows(tmp_path / "seed_000" / "progress.csv")
    last = rows[-1]
    for column in ("ReturnAverage", "LengthAverage", "DiscountedReturnAverage", "NonzeroRewardsAverage", "depthAverage"):
        assert np.isfinite(float(last[column])), column
    assert 1 <= float(last["LengthAverage"]) <= 5
    assert last["Diagnostics/LostFragments"] == "0"


def faulty(tmp_path, fault, restarts):
    (tmp_path / "flag").write_text("")
    options = {"fault": fault, "at": 30, "flag": str(tmp_path / "flag")}
    collecting = training.Collecting(sampler="parallel", n_workers=2, restarts=restarts)
    run = training.plan("a2c", "worlds:Faulty-v0", 1, 640, SMALL, env_options=options, collecting=collecting)
    training.prepare(tmp_path / "run", run)
    return run


def test_training_goes_on_without_a_worker_that_died(tmp_path):
    run = faulty(tmp_path, "die", restarts=1)
    with pytest.warns(UserWarning, match="it is replaced, a fragment is lost"):
        training.train(run, tmp_path / "run")
    _, rows = read_rows(tmp_path / "run" / "seed_000" / "progress.csv")
    assert rows[-1]["Diagnostics/LostFragments"] == "1"
    assert rows[-1]["Diagnostics/CumSteps"] == "640"


@pytest.mark.parametrize(("fault", "error"), [("die", samplers.WorkerError), ("raise", samplers.EnvError)])
def test_what_cannot_go_on_leaves_a_whole_checkpoint(tmp_path, fault, error):
    run = faulty(tmp_path, fault, restarts=0)
    with pytest.raises(error):
        training.train(run, tmp_path / "run")
    state, meta = training.load_state(tmp_path / "run", run, *training.build(run))
    assert state.learner.algo.steps.item() == meta["update"] * 32
    training.train(run, tmp_path / "run", resume=True)  # the flag is gone: nothing goes wrong again
    _, rows = read_rows(tmp_path / "run" / "seed_000" / "progress.csv")
    assert rows[-1]["Diagnostics/CumSteps"] == "640"


def test_the_sampler_suits_the_environment():
    def chosen(env, **options):
        return training.plan("ppo", env, 1, 10_000, options).collecting.sampler

    assert chosen("CartPole-v1") == "fused"
    assert chosen("ALE/Pong-v5") == "native"
    assert chosen("HalfCheetah-v5", n_envs=1) == "serial"
    assert samplers.suggest(envs.host("gym:CartPole-v1"), 2) in ("serial", "parallel")
    assert samplers.suggest(envs.host("gym:CartPole-v1"), 4, n_workers=2) == "parallel"
