"""DDPG, TD3 and SAC as runs: evaluated, interrupted and resumed, alone and in lanes, from pure environments and simulators."""

import pytest
import torch
from click.testing import CliRunner
from conftest import assert_trees_equal
from training.test_loop import final_state, interrupt, read_evaluations, rows

from purerl import cli, training

SMALL = {"capacity": 512, "batch_size": 16, "learning_starts": 32, "hidden": (8,), "n_envs": 4, "n_steps": 2, "utd": 0.25}


def plan(algo, env, **kwargs):
    return training.plan(algo, env, 2, 320, SMALL, evaluating=training.Evaluating(eval_every=160, eval_episodes=2), **kwargs)


@pytest.mark.parametrize(
    ("algo", "env", "sampler"),
    [
        ("ddpg", "Pendulum-v1", "auto"),
        ("td3", "Pendulum-v1", "auto"),
        ("sac", "Pendulum-v1", "auto"),
        ("sac", "HalfCheetah-v5", "serial"),
        ("td3", "gym:Pendulum-v1", "parallel"),
    ],
)
def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path, uncompiled, monkeypatch, algo, env, sampler):
    monkeypatch.setattr(training.loop, "REPORT_EVERY", 1e-9)
    options = {} if sampler == "auto" else {"max_episode_steps": 50}
    run = plan(
        algo, env, env_options=options, collecting=training.Collecting(sampler=sampler, n_workers=2 if sampler == "parallel" else 0)
    )
    for name in ("whole", "cut"):
        training.prepare(tmp_path / name, run)
    training.train(run, tmp_path / "whole")
    interrupt(run, tmp_path / "cut", 120)
    interrupt(run, tmp_path / "cut", 240, resume=True)
    training.train(run, tmp_path / "cut", resume=True)
    assert_trees_equal(final_state(tmp_path / "cut")[0], final_state(tmp_path / "whole")[0])
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for seed in ("seed_000", "seed_001"):
        both = [read_evaluations(tmp_path / name / seed) for name in ("whole", "cut")]
        assert [steps for steps, *_ in both[0]] == [160, 320]
        assert both[0] == both[1]
    shown = CliRunner().invoke(cli.main, ["eval", str(tmp_path / "cut"), "--episodes", "1"])
    assert shown.exit_code == 0, shown.output
    assert "all  return" in shown.output


def test_a_reward_that_is_no_number_stops_its_lane(tmp_path, uncompiled):
    run = training.plan("sac", "worlds:make_flaky", 4, 320, SMALL)
    training.prepare(tmp_path, run)
    failures = training.train(run, tmp_path)
    stopped = {failure.lane: failure.steps for failure in failures}
    assert 0 < len(stopped) < 4
    state, updates = final_state(tmp_path)[0], final_state(tmp_path)[0].updates.tolist()
    assert all(torch.isfinite(x).all() for x in state.learner.algo.params.values(True, True))
    for seed, n in enumerate(updates):
        assert n * 8 == stopped.get(f"seed_{seed:03d}", 320)
