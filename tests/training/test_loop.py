import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial, wraps
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import common as time_limit
from tensordict import TensorDict
from worlds import Faulty

from purerl import algos, checkpoint, envs, logs, make_a2c, random, samplers, training, tree, vmap
from purerl.algos import A2CConfig
from purerl.evaluate import evaluate
from purerl.logs import RATE, TIME, read_rows

SMALL = {"hidden": (8,), "n_envs": 4, "n_steps": 8}

SCRIPT = """
import sys
from pathlib import Path
from purerl import training
out, algo, config = Path(sys.argv[1]), sys.argv[3], eval(sys.argv[4])
if sys.argv[2] == "start":
    training.prepare(out, training.plan(algo, "CartPole-v1", 2, 64_000, config))
training.train(training.load_run(out), out, resume=sys.argv[2] == "resume", checkpoint_every=0.0)
"""
REPLAY = {"capacity": 3000, "batch_size": 8, "replay_ratio": 0.25, "learning_starts": 64, "prioritized": True, "n_step": 3}


def start(out, mode, algo, config):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), mode, algo, repr({**SMALL, "lr": [1e-3, 1e-2], **config})])


def rows(out):
    """All rows of all lanes, without what a clock says."""
    paths = sorted(out.rglob("progress.csv"))
    return [{k: v for k, v in row.items() if k not in (TIME, RATE)} for path in paths for row in read_rows(path)[1]]


def final_state(out):
    run = training.load_run(out)
    return training.load_state(out, run, *training.build(run))


@pytest.mark.parametrize(("algo", "config"), [("a2c", {}), ("dqn", REPLAY)])
def test_kill_9_and_resume_ends_with_the_same_bits(tmp_path, algo, config):
    """Killed twice: some rows into the run, and again after the resumption."""
    assert start(tmp_path / "whole", "start", algo, config).wait() == 0
    for i, mode in enumerate(("start", "resume")):
        child = start(tmp_path / "killed", mode, algo, config)
        csv = tmp_path / "killed" / "lr=0.001" / "seed_001" / "progress.csv"
        deadline = time.monotonic() + 300
        while child.poll() is None and time.monotonic() < deadline:
            if csv.exists() and csv.read_text().count("\n") > 20 + 60 * i:
                os.kill(child.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        assert child.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed", "resume", algo, config).wait() == 0
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

    def poisoned(run, algo, env):
        state = original(run, algo, env)
        state.learner.algo.hyper["vf_coef"][1] = float("nan")
        return state

    monkeypatch.setattr(training.loop, "initial_state", poisoned)
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
    longer = dataclasses.replace(run, steps=960)
    training.train(longer, tmp_path, resume=True)
    _, table = read_rows(tmp_path / "seed_000" / "progress.csv")
    assert [int(row["Diagnostics/CumSteps"]) for row in table] == list(range(32, 961, 32))


PPO = {"hidden": (8,), "n_envs": 4, "n_steps": 8, "n_minibatches": 2, "epochs": 2}
DQN = {"hidden": (8,), "n_envs": 4, "n_steps": 4, "capacity": 200, "batch_size": 8, "replay_ratio": 1.0, "learning_starts": 32}


@pytest.mark.parametrize("sampler", ["serial", "parallel"])
@pytest.mark.parametrize(("algo", "env", "config"), [("ppo", "HalfCheetah-v5", PPO), ("dqn", "gym:CartPole-v1", DQN)])
def test_environments_of_the_outside_world_go_on_where_they_were(tmp_path, uncompiled, monkeypatch, algo, env, config, sampler):
    """A run that is interrupted twice ends with the bits of one that is not."""
    monkeypatch.setattr(training.loop, "REPORT_EVERY", 1e-9)
    collecting = training.Collecting(sampler=sampler, n_workers=2 if sampler == "parallel" else 0)
    run = training.plan(algo, env, 2, 480, config, collecting=collecting)
    for name in ("whole", "cut"):
        training.prepare(tmp_path / name, run)
    training.train(run, tmp_path / "whole")
    interrupt(run, tmp_path / "cut", 160)
    interrupt(run, tmp_path / "cut", 320, resume=True)
    training.train(run, tmp_path / "cut", resume=True)
    assert_trees_equal(final_state(tmp_path / "cut")[0], final_state(tmp_path / "whole")[0])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert len({row["ReturnAverage"] for row in rows(tmp_path / "whole")}) > 1 or algo == "ppo"


def test_what_is_known_of_environments_is_kept_until_they_are_there(tmp_path, small_run):
    run = small_run(tmp_path, "gym:CartPole-v1")
    algo, env = training.build(run)
    for known in ({"opened": 3, "environments": b"state"}, {}, None):
        runner = training.make_runner(run, algo, env, training.initial_state(run, algo, env), 7, known)
        assert runner.environments() == (known or {})
        runner.close()


def test_environments_that_cannot_be_saved_are_named(tmp_path, small_run, monkeypatch):
    run = small_run(tmp_path, "ALE/Pong-v5", steps=64)
    said = r"^ALE/Pong-v5: the state of its environments cannot be saved \(TypeError: cannot pickle 'ALEVectorInterface' object\)"
    with pytest.warns(UserWarning, match=said) as told:
        training.train(run, tmp_path)
    assert len(told) == 1
    assert "environments" not in training.load_state(tmp_path, run, *training.build(run))[1]
    longer = dataclasses.replace(run, steps=96)
    with pytest.warns(UserWarning, match=said) as told:
        training.train(longer, tmp_path, resume=True)
    assert len(told) == 1


def test_a_run_that_ends_while_its_environments_are_stepped_begins_new_episodes(tmp_path, small_run, monkeypatch):
    run = small_run(tmp_path, "gym:CartPole-v1", collecting=training.Collecting(sampler="serial"))
    step, calls = CartPoleEnv.step, []

    def fail(self, action):
        calls.append(action)
        if len(calls) == 200:
            raise ZeroDivisionError("the world ended")
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(CartPoleEnv, "step", fail)
        with pytest.raises(samplers.EnvError, match="the world ended"):
            training.train(run, tmp_path)
    meta = training.load_state(tmp_path, run, *training.build(run))[1]
    assert meta["update"] == 6
    assert "environments" not in meta
    with pytest.warns(UserWarning, match="gym:CartPole-v1: the checkpoint is without the state of its environments; new"):
        training.train(run, tmp_path, resume=True)


def test_environments_that_cannot_be_restored_begin_new_episodes(tmp_path, small_run, monkeypatch):
    run = small_run(tmp_path, "gym:CartPole-v1", collecting=training.Collecting(sampler="serial"))
    interrupt(run, tmp_path, 320)
    monkeypatch.delattr(time_limit, "TimeLimit")
    with pytest.warns(
        UserWarning, match=r"gym:CartPole-v1: environment 0: its restoring raised AttributeError: .*; new episodes begin"
    ):
        training.train(run, tmp_path, resume=True)
    assert final_state(tmp_path)[1]["update"] == 20


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


@pytest.fixture
def small_run(uncompiled):
    """Prepares a small run, which is not compiled."""

    def prepare(out, env="CartPole-v1", steps=640, overrides=None, **kwargs):
        run = training.plan("a2c", env, 1, steps, {**SMALL, **(overrides or {})}, **kwargs)
        training.prepare(out, run)
        return run

    return prepare


def interrupt(run, out, steps, error=KeyboardInterrupt, resume=False):
    """Train up to about so many steps, and raise."""

    def report(progress):
        if progress.steps >= steps:
            raise error

    with mock.patch.object(training.loop, "REPORT_EVERY", 1e-9), pytest.raises(error):  # or a fast run ends before it
        training.train(run, out, resume, report)


def test_a_lane_that_has_stopped_stands_still(tmp_path, monkeypatch, small_run):
    """One update takes it to infinity and the next one would take it back: it does not go on with that."""
    original = algos.ALGORITHMS["a2c"]

    @wraps(original)
    def make(spec, config=None):
        algo = original(spec, config)

        def update(state, batch):
            state, info = algo.update(state, batch)
            hit = (batch.inputs.obs.amax() == 23.0) & (state.hyper["lr"] > 5e-3)  # the third batch
            reward_scale = tree.map(lambda x: torch.where(hit, torch.inf, torch.ones_like(x)), state.reward_scale)
            return tree.replace(state, reward_scale=reward_scale), info

        return algo._replace(update=update)

    monkeypatch.setitem(algos.ALGORITHMS, "a2c", make)
    run = small_run(tmp_path, "worlds:Fixed-v0", overrides={"lr": [1e-3, 1e-2]})
    seen = []
    failures = training.train(run, tmp_path, report=lambda progress: seen.append((progress.steps, progress.failed)))
    assert failures == [training.Failure("lr=0.01/seed_000", 64)]
    assert seen[-1][1] == tuple(failures)
    lanes, _ = training.load_state(tmp_path, run, *training.build(run))
    assert lanes.going.tolist() == [True, False]
    assert lanes.learner.algo.steps.tolist() == [640, 64]
    assert len(read_rows(tmp_path / "lr=0.01" / "seed_000" / "progress.csv")[1]) == 2
    longer = dataclasses.replace(run, steps=960)  # nor does it after a break
    assert training.train(longer, tmp_path, resume=True) == failures
    assert training.load_state(tmp_path, run, *training.build(run))[0].learner.algo.steps.tolist() == [960, 64]


@pytest.mark.parametrize("bad", ["params", "moments", None])
def test_the_guard_looks_at_the_whole_state_of_the_algorithm(bad):
    def state(**numbers):
        algo = TensorDict({name: torch.tensor([1.0, numbers.get(name, 2.0)]) for name in ("params", "moments", "clip")})
        algo["clip"][1] = torch.inf  # as it was from the start
        return training.HostState(algo=algo, episodes=TensorDict(sums=torch.full((2,), torch.nan)), key=random.key(0))

    example = state()
    new = state(**{bad: float("inf")} if bad else {"params": 3.0})
    guarded = training.guard(lambda state: (new, TensorDict(figure=torch.tensor(torch.nan))), example)
    before = tree.pack(example)[0]
    after, going, updates, _ = guarded(before, torch.tensor(True), torch.tensor(7))
    assert going == (bad is None)
    assert updates == (7 if bad else 8)
    assert_trees_equal(after, before if bad else tree.pack(new)[0])
    _, going, updates, _ = guarded(before, torch.tensor(False), torch.tensor(7))
    assert not going
    assert updates == 7


def test_a_full_disk_ends_the_run_and_its_workers(tmp_path, small_run, monkeypatch):
    run = small_run(tmp_path, "worlds:Fixed-v0", 6400, collecting=training.Collecting(sampler="parallel", n_workers=2))
    write, rows = logs.CsvLog.write, []

    def fill(self, row):
        rows.append(row)
        if len(rows) > 2:
            raise OSError(28, "No space left on device", str(self._path))
        write(self, row)

    def fail(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs.CsvLog, "write", fill)
    monkeypatch.setattr(logs.CsvLog, "close", fail)
    with pytest.raises(OSError, match="No space"):
        training.train(run, tmp_path)
    assert not multiprocessing.active_children()
    assert checkpoint.newest_meta(tmp_path / "checkpoints")["update"] > 0


@pytest.mark.parametrize("name", ["progress.csv", "evaluation.csv"])
def test_a_row_that_cannot_be_written_keeps_no_other_from_its_file(tmp_path, small_run, monkeypatch, name):
    run = small_run(tmp_path, overrides={"lr": [1e-3, 1e-2]}, evaluating=training.Evaluating(eval_every=320, eval_episodes=1))
    full, write = tmp_path / "lr=0.001" / "seed_000" / name, logs.CsvLog.write

    def fill(self, row):
        if self._path == full and row[logs.STEPS] == 320:
            raise OSError(28, "No space left on device", str(self._path))
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(logs.CsvLog, "write", fill)
        with pytest.raises(OSError, match=f"No space left on device: '{full}'"):
            training.train(run, tmp_path)
    assert read_rows(tmp_path / "lr=0.01" / "seed_000" / name)[1][-1][logs.STEPS] == "320"
    training.train(run, tmp_path, resume=True)


def test_a_folder_with_checkpoints_is_no_place_for_a_new_run(tmp_path, small_run):
    run = small_run(tmp_path)
    training.train(run, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="holds the checkpoints of a run; resume it, or train into another"):
        training.train(run, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds the checkpoints of a run whose config\.json is gone"):
        training.prepare(tmp_path, run)


def test_an_environment_that_goes_to_another_folder(tmp_path, small_run, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"folder": str(tmp_path / "elsewhere")}
    run = small_run(Path("run"), "worlds:Wandering-v0", 320, env_options=options)
    training.train(run, Path("run"))
    assert checkpoint.newest_meta(tmp_path / "run" / "checkpoints")["update"] == 10
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_infinite_observation_leaves_the_normaliser_alone(tmp_path, small_run):
    (tmp_path / "flag").write_text("")
    options = {"flag": str(tmp_path / "flag"), "event": "inf"}
    run = small_run(tmp_path / "run", "worlds:Fixed-v0", 6400, {"normalize_obs": True}, env_options=options)
    with pytest.raises(samplers.EnvError, match=r"environment [0-3]: observation is inf after step 6 of 8 of the batch"):
        training.train(run, tmp_path / "run")
    lanes, meta = training.load_state(tmp_path / "run", run, *training.build(run))
    assert meta["update"] * 32 == lanes.learner.algo.steps.item() > 0
    assert torch.isfinite(lanes.learner.algo.obs_moments.variance).all()
    training.train(run, tmp_path / "run", resume=True)


def test_what_begins_anew_begins_at_zero_after_a_resume(tmp_path, small_run):
    run = small_run(tmp_path, "worlds:Fixed-v0", 32 * 100)
    interrupt(run, tmp_path, 32 * 20)
    training.train(run, tmp_path, resume=True)
    lengths = [float(row["LengthAverage"]) for row in read_rows(tmp_path / "seed_000" / "progress.csv")[1]]
    assert set(lengths[60:]) == {200.0}


def test_what_begins_anew_begins_at_zero_after_a_worker_was_replaced(tmp_path, small_run):
    (tmp_path / "flag").write_text("")
    collecting = training.Collecting(sampler="parallel", n_workers=2)
    options = {"flag": str(tmp_path / "flag")}
    run = small_run(tmp_path / "run", "worlds:Fixed-v0", 32 * 100, env_options=options, collecting=collecting)
    with pytest.warns(UserWarning, match="it is replaced, a fragment is lost"):
        training.train(run, tmp_path / "run")
    table = read_rows(tmp_path / "run" / "seed_000" / "progress.csv")[1]
    assert {float(row["LengthAverage"]) for row in table[60:]} == {200.0}
    assert {float(row["ReturnAverage"]) for row in table[60:]} == {200.0}
    longer = dataclasses.replace(run, steps=32 * 110)
    training.train(longer, tmp_path / "run", resume=True)  # what was lost stays counted
    table = read_rows(tmp_path / "run" / "seed_000" / "progress.csv")[1]
    assert [table[0][logs.LOST], table[-1][logs.LOST]] == ["0", "1"]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("which", "error"), [(1, KeyboardInterrupt), (2, ZeroDivisionError), (4, KeyboardInterrupt)])
def test_an_evaluation_that_was_interrupted_is_made_up(tmp_path, monkeypatch, background, which, error, small_run):
    """The first, the second, or the last one of all, before a figure of it is written."""
    evaluating = training.Evaluating(eval_every=200, eval_episodes=2, eval_background=background)
    run = small_run(tmp_path / "whole", evaluating=evaluating)
    training.train(run, tmp_path / "whole")
    training.prepare(tmp_path / "cut", run)
    collect, calls = training.Evaluator._collect, []

    def collect_or_raise(self):
        if self._pending is not None:
            calls.append(self._pending[0])
            if len(calls) == which:
                raise error
        collect(self)

    monkeypatch.setattr(training.Evaluator, "_collect", collect_or_raise)
    with pytest.raises(error) as raised:
        training.train(run, tmp_path / "cut")
    assert raised.value.__notes__ == ["the run up to there is saved"]
    assert not training.finished(tmp_path / "cut", run)
    training.train(run, tmp_path / "cut", resume=True)
    assert training.finished(tmp_path / "cut", run)
    assert read_evaluations(tmp_path / "cut" / "seed_000") == read_evaluations(tmp_path / "whole" / "seed_000")
    assert [steps for steps, *_ in read_evaluations(tmp_path / "cut" / "seed_000")] == [224, 416, 608, 640]
    assert not list((tmp_path / "cut" / "checkpoints").glob("evaluation_*"))


def test_an_evaluation_is_made_up_for_the_lanes_that_went_on_then(tmp_path, monkeypatch, small_run):
    run = small_run(tmp_path, overrides={"lr": [1e-3, 1e-2]}, evaluating=training.Evaluating(eval_every=32))
    learner = training.HostState(algo=torch.zeros(2), episodes=TensorDict(), key=torch.zeros(2, 2, dtype=torch.int32))
    tile = training.Lanes(learner=learner, going=torch.tensor([True, False]), updates=torch.tensor([10, 7]))  # the second stopped
    runner = training.Runner(training.programs.Program(lambda tile, n: iter(())), [tile], 10)
    (tmp_path / "checkpoints").mkdir()
    for steps in (224, 256):
        checkpoint.save(tmp_path / "checkpoints" / f"evaluation_{steps:012d}.safetensors", [learner.algo], {})
    monkeypatch.setattr(training.reports, "evaluate_run", lambda run, acting: (np.ones((2, 3)), np.ones((2, 3))))
    evaluator = training.Evaluator(run, lambda algo: algo, tmp_path, 320, 320, 32)
    evaluator.make_up(runner)
    evaluator.close()
    runner.close()
    found = [[steps for steps, *_ in read_evaluations(tmp_path / f"lr={lr}" / "seed_000")] for lr in ("0.001", "0.01")]
    assert found == [[224, 256], [224]]


def test_an_evaluation_that_was_not_even_begun_is_made_up(tmp_path, monkeypatch, small_run):
    evaluating = training.Evaluating(eval_every=200, eval_episodes=2)
    run = small_run(tmp_path, evaluating=evaluating)
    look = training.Evaluator.look

    def look_or_raise(self, algo, steps, last):
        if steps == 224 and not failed:
            failed.append(True)
            raise KeyboardInterrupt
        look(self, algo, steps, last)

    failed = []
    monkeypatch.setattr(training.Evaluator, "look", look_or_raise)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, tmp_path)
    training.train(run, tmp_path, resume=True)
    assert [steps for steps, *_ in read_evaluations(tmp_path / "seed_000")] == [224, 416, 608, 640]


class Fails(Exception):
    """Of a kind that nobody has heard of."""


@pytest.mark.parametrize("error", [Fails, ValueError, MemoryError, SystemExit, StopIteration])
def test_whatever_is_raised_the_last_good_state_is_saved(tmp_path, error, small_run):
    run = small_run(tmp_path / "whole")
    training.train(run, tmp_path / "whole")
    training.prepare(tmp_path / "cut", run)
    interrupt(run, tmp_path / "cut", 320, error)
    lanes, meta = training.load_state(tmp_path / "cut", run, *training.build(run))
    assert lanes.learner.algo.steps.item() == meta["update"] * 32 >= 320
    training.train(run, tmp_path / "cut", resume=True)
    assert_trees_equal(final_state(tmp_path / "cut")[0], final_state(tmp_path / "whole")[0])


def test_an_environment_that_fails_in_an_evaluation(tmp_path, monkeypatch, small_run):
    evaluating = training.Evaluating(eval_every=320, eval_episodes=2)
    run = small_run(tmp_path, "worlds:Walk-v0", evaluating=evaluating)
    original = envs.to_vector

    def to_vector(host, n):
        monkeypatch.setattr(envs, "to_vector", original)
        return original(envs.host(partial(Faulty, "raise", at=2, terminal=False)), n)

    monkeypatch.setattr(envs, "to_vector", to_vector)
    with pytest.raises(samplers.EnvError, match=r"^evaluation: step raised ZeroDivisionError: the world ended") as raised:
        training.train(run, tmp_path)
    assert raised.value.__notes__ == ["the run up to there is saved"]
    training.train(run, tmp_path, resume=True)
    assert [steps for steps, *_ in read_evaluations(tmp_path / "seed_000")] == [320, 640]


def test_a_full_disk_is_told_and_the_checkpoint_before_is_whole(tmp_path, monkeypatch, small_run):
    run = small_run(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:

        def report(progress):
            patch.setattr(checkpoint, "save", full)
            raise Fails

        with pytest.raises(Fails) as raised:
            training.train(run, tmp_path, report=report)
    assert raised.value.__notes__ == [
        "the run up to there could not be saved ([Errno 28] No space left on device); the checkpoint before is whole"
    ]
    training.train(run, tmp_path, resume=True)


def test_checkpoints_that_are_gone_are_no_reason_to_begin_anew(tmp_path, small_run):
    run = small_run(tmp_path)
    training.train(run, tmp_path)
    before = (tmp_path / "seed_000" / "progress.csv").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints: the checkpoints are gone; .*To begin anew, train into"):
        training.train(run, tmp_path, resume=True)
    assert (tmp_path / "seed_000" / "progress.csv").read_text() == before


def test_a_run_that_never_began_gives_its_folder_to_another(tmp_path, small_run, monkeypatch):
    def fail(self, n):
        raise ZeroDivisionError

    run = small_run(tmp_path, overrides={"lr": [1e-3, 1e-2]})
    with monkeypatch.context() as patch:
        patch.setattr(training.Runner, "step", fail)
        with pytest.raises(ZeroDivisionError):
            training.train(run, tmp_path)
    other = small_run(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r": another run has been prepared here meanwhile$"):
        training.train(run, tmp_path)
    training.train(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints", "config.json", "seed_000", "tb"]
    for gone in ("checkpoints", "seed_000"):
        with pytest.raises(ValueError, match="already holds a run"):
            small_run(tmp_path)
        shutil.rmtree(tmp_path / gone)
    small_run(tmp_path)  # neither a state nor a figure is left


def test_a_run_whose_algorithm_has_another_code_by_now(tmp_path, small_run, monkeypatch):
    run = small_run(tmp_path)
    training.train(run, tmp_path)
    with pytest.raises(ValueError, match=r"^a2c has no config field depth any more, which the run's config.json has$"):
        training.train(dataclasses.replace(run, config={**run.config, "depth": 3}), tmp_path, resume=True)
    make = training.run.make_config
    monkeypatch.setattr(training.run, "make_config", lambda *args: dataclasses.replace(make(*args), hidden=(9,)))
    with pytest.raises(checkpoint.StructureError, match=r"changed since: .*actor.weight is F32 \[1, 2, 8\], not F32 \[1, 2, 9\]"):
        training.train(run, tmp_path, resume=True)


LEAVES = """
import gc, os, sys
from pathlib import Path
import torch
from purerl import training

def size():
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")

training.train(training.load_run(Path(sys.argv[1])), Path(sys.argv[1]))
assert (gc.get_freeze_count(), gc.isenabled()) == (0, True)
before, gigabyte = size(), 1 << 30
large = torch.empty(gigabyte, dtype=torch.uint8)
assert size() - before > gigabyte / 2
del large
assert size() - before < gigabyte / 2
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system tells no size")
def test_training_leaves_the_process_as_it_was(tmp_path, small_run):
    """A gigabyte, which no hole in the heap of a young process serves, comes from the system and goes back to it."""
    small_run(tmp_path)
    done = subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TEAMS = """
import os
import torch
from purerl.training.loop import _one_thread

def n_threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
before = n_threads()
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
assert n_threads() == before + 1
with _one_thread():
    assert (n_threads(), torch.get_num_threads()) == (before, 1)
assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system tells no threads")
def test_the_main_thread_gives_back_its_threads():
    """OpenMP lets all sleep between two tasks where they are more than the cores."""
    done = subprocess.run([sys.executable, "-c", TEAMS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("hidden", "threads"), [((8,), 1), ((256, 256), 2)])
@pytest.mark.parametrize("name", ["CartPole-v1", "gym:CartPole-v1"])
def test_large_networks_learn_in_several_threads(tmp_path, small_run, hidden, threads, name):
    run = small_run(tmp_path, overrides={"hidden": hidden}, env=name)
    algo, env = training.build(run)
    if name.startswith("gym:"):
        program = training.programs.host_program(algo, env, 0, run, threads=2)
    else:
        program = training.programs.pure_program(algo, env, 2)
    assert program.threads == threads


def test_two_cannot_train_the_same_run(tmp_path, small_run):
    run = small_run(tmp_path)

    def report(progress):
        training.train(run, tmp_path, resume=True)

    with pytest.raises(checkpoint.CheckpointError, match=r": another process is training this run"):
        training.train(run, tmp_path, report=report)
    training.train(run, tmp_path, resume=True)


def test_a_run_that_was_only_prepared_begins_when_resumed(tmp_path, small_run):
    run = small_run(tmp_path)
    training.train(run, tmp_path, resume=True)
    assert training.finished(tmp_path, run)


@pytest.mark.parametrize("values", [[0.9999995, 0.9999998], [1e-3, 0.0010001, 0.00100011], [0.1, 0.30000001]])
def test_names_tell_values_apart(tmp_path, values, small_run):
    run = small_run(tmp_path, overrides={"gae_lambda": values})
    names = [training.lane_name(*lane) for lane in training.lanes(run)]
    assert len(set(names)) == len(values)
    assert [float(name.partition("/")[0].removeprefix("gae_lambda=")) for name in names] == values
    assert len(list(tmp_path.rglob("params.json"))) == len(values)


@pytest.mark.parametrize("values", [[1e-3, 0.001], [0.5, 0.25, 0.5], [0.1, 0.1 + 1e-12]])
def test_equal_values_are_refused(values):
    with pytest.raises(ValueError, match=r"^lr = \[.*\] holds a number twice"):
        training.plan("a2c", "CartPole-v1", 1, 640, {**SMALL, "lr": values})


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        (("Return",), r"^infos = 'Return' is reserved for the records' own figures \(Return, Length, "),
        (("depth", "DiscountedReturn"), r"^infos = 'DiscountedReturn' is reserved"),
        (("game_end",), r"^infos = 'game_end' is reserved"),
        (("depth", "depth"), r"^infos = 'depth' is named twice$"),
    ],
)
def test_infos_that_would_stand_for_something_else(infos, message):
    with pytest.raises(ValueError, match=message):
        training.Collecting(infos=infos)
    algo = make_a2c(envs.make("gym:CartPole-v1").spec)
    with pytest.raises(ValueError, match=message):
        samplers.serial("gym:CartPole-v1", algo, 4, 5, random.key(0), infos=infos)


def test_plan_gives_each_variant_its_lanes():
    run = training.plan("ppo", "CartPole-v1", 2, 1024, {"lr": [1e-3, 1e-4], "clip": 0.3})
    names = [training.lane_name(*lane) for lane in training.lanes(run)]
    assert names == ["lr=0.001/seed_000", "lr=0.001/seed_001", "lr=0.0001/seed_000", "lr=0.0001/seed_001"]
    assert training.run.make_config(run, {"lr": 1e-3}).clip == 0.3
    both = training.plan("ppo", "CartPole-v1", 1, 1024, {"clip": [0.1], "lr": [1e-3]})
    assert training.lane_name(*training.lanes(both)[0]) == "lr=0.001,clip=0.1/seed_000"  # as the config has them


def test_a_full_disk_at_the_first_checkpoint(tmp_path, monkeypatch, small_run):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left") as raised:
        training.train(small_run(tmp_path), tmp_path)
    said = "the run up to there could not be saved ([Errno 28] No space left on device); there is none before"
    assert raised.value.__notes__ == [said]


def test_a_run_goes_on_with_what_it_has_been_trained_with(tmp_path, small_run):
    run = small_run(tmp_path)
    training.train(run, tmp_path)
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    described["config"]["lr"] = 0.5
    path.write_text(json.dumps(described))
    with pytest.raises(
        checkpoint.CheckpointError,
        match=f"config.json has lr = 0.5, but the run has been trained with {run.config['lr']}, and goes",
    ):
        training.train(training.load_run(tmp_path), tmp_path, resume=True)


def test_a_run_within_a_run_is_refused(tmp_path, small_run):
    training.train(small_run(tmp_path), tmp_path)
    with pytest.raises(ValueError, match=f"^out: {tmp_path}/deep/er lies within the run {tmp_path}, whose figures it would be"):
        small_run(tmp_path / "deep" / "er")


def test_load_run_of_a_folder_without_one(tmp_path):
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "config.json").write_text("3")
    with pytest.raises(ValueError, match=r": holds no run that can be read, its config.json is damaged \("):
        training.load_run(tmp_path / "three")
    with pytest.raises(ValueError, match=r": holds no run, there is no config.json in it"):
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


def faulty(tmp_path, monkeypatch, fault, restarts):
    monkeypatch.setattr(samplers.saving, "STEPS", 5)  # a trial shall not come so far
    (tmp_path / "flag").write_text("")
    options = {"fault": fault, "at": 30, "flag": str(tmp_path / "flag")}
    collecting = training.Collecting(sampler="parallel", n_workers=2, restarts=restarts)
    run = training.plan("a2c", "worlds:Faulty-v0", 1, 640, SMALL, env_options=options, collecting=collecting)
    training.prepare(tmp_path / "run", run)
    return run


def test_training_goes_on_without_a_worker_that_died(tmp_path, monkeypatch):
    run = faulty(tmp_path, monkeypatch, "die", restarts=1)
    with pytest.warns(UserWarning, match="it is replaced, a fragment is lost"):
        training.train(run, tmp_path / "run")
    _, rows = read_rows(tmp_path / "run" / "seed_000" / "progress.csv")
    assert rows[-1]["Diagnostics/LostFragments"] == "1"
    assert rows[-1]["Diagnostics/CumSteps"] == "640"


@pytest.mark.parametrize(("fault", "error"), [("die", samplers.WorkerError), ("raise", samplers.EnvError)])
def test_what_cannot_go_on_leaves_a_whole_checkpoint(tmp_path, monkeypatch, fault, error):
    run = faulty(tmp_path, monkeypatch, fault, restarts=0)
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


def test_a_damaged_evaluation_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, small_run):
    evaluating = training.Evaluating(eval_every=200, eval_episodes=2)
    run = small_run(tmp_path, evaluating=evaluating)
    monkeypatch.setattr(training.reports, "evaluate_run", lambda run, algo: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.train(run, tmp_path)
    monkeypatch.undo()
    (owed,) = (tmp_path / "checkpoints").glob("evaluation_*")
    owed.write_bytes(owed.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"truncated.*; the evaluation after 224 steps is left out"):
        training.train(run, tmp_path, resume=True)
    assert [steps for steps, *_ in read_evaluations(tmp_path / "seed_000")] == [416, 608, 640]


def test_a_damaged_last_checkpoint_is_no_end(tmp_path, small_run):
    run = small_run(tmp_path)
    training.train(run, tmp_path)
    last = max((tmp_path / "checkpoints").iterdir())
    data = bytearray(last.read_bytes())
    data[-5] ^= 1
    last.write_bytes(bytes(data))
    assert not training.finished(tmp_path, run)
    with pytest.warns(UserWarning, match="trying the one before"):
        training.train(run, tmp_path, resume=True)
    assert training.finished(tmp_path, run)


@pytest.mark.parametrize("text", ["Diagnostics/CumSteps,x\n1x0,3\n", "a,b\n1,2\n", "\udcff\n"])
def test_damaged_figures_are_named(tmp_path, small_run, text):
    run = small_run(tmp_path)
    training.train(run, tmp_path)
    path = tmp_path / "seed_000" / "progress.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        ValueError, match=r"progress.csv: damaged \(.*\); mend it or delete it, the run itself is in its checkpoints"
    ):
        training.train(run, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 1.5}, r"^seeds = 1.5 is not an integer$"),
        ({"steps": "640"}, r"^steps = '640' is not an integer$"),
        ({"threads": "2"}, r"^threads = '2' is not an integer$"),
        ({"overrides": {"lr": []}}, r"^lr = \[\] names no value to sweep$"),
        ({"overrides": {"lr": [1e-3, "x"]}}, r"^A2CConfig.lr = 'x' is not a number at least 0.0$"),
        ({"overrides": {"lr": np.float32(1e-3)}}, r"^lr = np.float32\(0.001\) cannot be kept in config.json"),
        ({"env": "gym:CartPole-v1", "env_options": {"x": {1}}}, r"^env_options = \{'x': \{1\}\} cannot be kept in config.json"),
    ],
)
def test_what_a_run_cannot_be_is_said_before_any_work(options, message):
    asked = {"algo": "a2c", "env": "CartPole-v1", "seeds": 1, "steps": 640, "overrides": {}, **options}
    with pytest.raises(ValueError, match=message):
        training.plan(**asked)


def test_an_interrupt_after_an_update_loses_no_row(tmp_path, small_run, monkeypatch):
    run, step = small_run(tmp_path), training.Runner.step

    def interrupted(self, n):
        step(self, n)
        if self.update in (7, 20):
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Runner, "step", interrupted)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            training.train(run, tmp_path, resume=resume)
    training.train(run, tmp_path, resume=True)
    _, table = read_rows(tmp_path / "seed_000" / "progress.csv")
    assert [int(row["Diagnostics/CumSteps"]) for row in table] == list(range(32, 641, 32))


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path, small_run):
    run = small_run(tmp_path)
    scratch = tmp_path / "checkpoints" / ".step_000000000032.safetensors.4711"
    scratch.parent.mkdir()
    scratch.write_bytes(b"half")
    training.train(run, tmp_path)
    assert not scratch.exists()
