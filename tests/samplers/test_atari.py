"""Atari games through every arrangement."""

from functools import partial
from importlib import metadata

import numpy as np
import pytest
import torch
from conftest import assert_trees_equal

from purerl import envs, make_a2c, make_ppo, nets, random, samplers
from purerl.algos import A2CConfig
from purerl.algos.a2c import default_config as a2c_default
from purerl.algos.ppo import default_config as ppo_default
from purerl.episodes import averages, init_episodes, record_episodes
from purerl.evaluate import evaluate, record_video


def collect(kind, env, n_batches, n_envs=4, n_steps=16, **options):
    algo = make_a2c(env.spec, A2CConfig(n_envs=n_envs, n_steps=n_steps, shared_torso=True))
    with kind(env, algo, n_envs, n_steps, random.key(0), **options) as feed:
        feed.publish(algo.init(random.key(1)))
        return [next(feed) for _ in range(n_batches)]


def test_the_preprocessing_and_the_presets():
    env = envs.make("ALE/Pong-v5")
    assert (env.spec.observation_space.shape, env.spec.observation_space.dtype) == ((4, 84, 84), np.uint8)
    assert env.spec.action_space.n == 6
    assert nets.is_image(env.spec.observation_space)
    config = ppo_default(env.spec)
    cleanrl = {"n_envs": 8, "n_steps": 128, "epochs": 4, "n_minibatches": 4, "lr": 2.5e-4, "gamma": 0.99, "gae_lambda": 0.95}
    cleanrl |= {"clip": 0.1, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5, "total_steps": 10_000_000}
    assert {name: getattr(config, name) for name in cleanrl} == cleanrl
    assert a2c_default(env.spec).n_envs == 16
    assert envs.make("ALE/Pong-v5", full_action_space=True).spec.action_space.n == 18


def test_every_arrangement_gives_the_same_batches():
    env = envs.make("ALE/Breakout-v5", max_frames=400)
    first, *others = [
        collect(kind, env, 3, n_steps=40)
        for kind in (
            samplers.native,
            samplers.serial,
            partial(samplers.parallel, n_workers=2),
            partial(samplers.central, n_workers=2),
            partial(samplers.alternating, n_workers=2),
        )
    ]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert_trees_equal(a, b)
    assert first[0].inputs.obs.dtype == torch.uint8
    assert sum(int(batch.terminated.sum()) for batch in first) > 0
    assert sum(int(batch.truncated.sum()) for batch in first) > 0


def test_lives_are_episodes_and_games_are_records():
    env = envs.make("ALE/Breakout-v5", noop_max=0)
    batches = collect(samplers.native, env, 20, n_envs=2, n_steps=50)
    records, lives = init_episodes(2), 0
    for batch in batches:
        records = record_episodes(records, batch)
        lives += int(batch.terminated.sum())
        assert set(batch.reward.unique().tolist()) <= {-1.0, 0.0, 1.0}
        over = batch.episode["game_end"]
        assert torch.equal(~batch.valid[1:], over[:-1])  # only a finished game costs a step that resets
        assert torch.equal(batch.inputs.first[1:], (batch.terminated & ~over)[:-1] | batch.episode["game_start"][1:])
    assert lives >= 4 * records.count > 0


def test_raw_scores_are_recorded():
    """A game of Pong is lost by 21 points, clipped or not; in MsPacman a dot counts 10."""
    batches = collect(samplers.native, envs.make("ALE/MsPacman-v5", max_frames=800), 6, n_envs=2, n_steps=60)
    records = init_episodes(2)
    for batch in batches:
        records = record_episodes(records, batch)
    assert records.count > 0
    means = averages(records)
    assert means["Return"] >= 10 * means["NonzeroRewards"] > 0


def test_asynchronous_batches():
    """Every environment's course is the one that the serial arrangement gives it for the same actions."""
    env = envs.make("ALE/Breakout-v5", max_frames=300)
    batches = collect(samplers.native, env, 4, n_envs=4, n_steps=30, batch_size=2)
    seeds = random.randint(random.fold_in(random.key(0), 0), (4,), 0, 1 << 31)
    vec = env.make_vec(4, 1)
    obs, _ = vec.reset(seed=seeds.tolist())
    for batch in batches:
        assert batch.reward.shape == (30, 4)
        for t in range(30):
            np.testing.assert_array_equal(batch.inputs.obs[t].numpy(), obs)
            obs, reward, terminated, truncated, _ = vec.step(batch.action[t].numpy())
            np.testing.assert_array_equal(batch.reward[t].numpy(), reward)
            np.testing.assert_array_equal(batch.terminated[t].numpy(), terminated)
            np.testing.assert_array_equal(batch.truncated[t].numpy(), truncated)
        np.testing.assert_array_equal(batch.last.obs.numpy(), obs)
    assert sum(int(batch.truncated.sum()) for batch in batches) > 0
    vec.close()


def test_evaluation_plays_full_games(tmp_path):
    env = envs.make("ALE/Breakout-v5", max_frames=2000)
    algo = make_ppo(env.spec)
    state = algo.init(random.key(0))
    batched = torch.vmap(lambda key: algo.init(key))(random.split(random.key(0), 1))
    found = evaluate(algo, env, batched, 2, seed=0)
    assert found.lengths[0].shape == (2,)
    assert (found.lengths[0] > 100).all()  # five lives, or 500 steps
    pytest.importorskip("moviepy")
    record_video(algo, env._replace(evaluation=envs.make("ALE/Breakout-v5", max_frames=120)), state, str(tmp_path / "v.gif"), 0)
    assert (tmp_path / "v.gif").stat().st_size > 1000


def test_names_and_options_that_do_not_exist():
    with pytest.raises(ValueError, match=r"environment: 'ALE/Pung-v5' is not known; did you mean ALE/Pong-v5"):
        envs.make("ALE/Pung-v5")
    with pytest.raises(ValueError, match=r"'ALE/Pong-v5' does not take these options: .*stickyness"):
        envs.make("ALE/Pong-v5", stickyness=0.25)


def test_ale_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    with pytest.raises(ImportError, match=r'needs ale-py; install it with: pip install "purerl\[atari\]"'):
        envs.make("ALE/Pong-v5")


def test_the_ale_that_is_asked_for_does_not_hang_at_a_partial_reset():
    assert any(wanted.startswith("ale-py>=0.12.1") for wanted in metadata.requires("purerl"))
    assert collect(samplers.native, envs.make("ALE/Breakout-v5"), 1, n_steps=4, decorrelate=20)[0].valid.any()
