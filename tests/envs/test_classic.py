"""The ports against Gymnasium's own environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from purerl import envs, random

IDS = list(envs.PURE)


def actions_for(env, n):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(n)]


def as_tensor(action):
    return torch.as_tensor(action, dtype=torch.float32 if isinstance(action, np.ndarray) else torch.int64)


@pytest.mark.parametrize("id", IDS)
def test_a_thousand_steps_of_the_same_trajectory(id):
    """From the same state and actions, in the original's own precision; episodes go on from where Gymnasium resets to."""
    original, port = gym.make(id), envs.PURE[id]
    obs, _ = original.reset(seed=0)
    state = torch.as_tensor(np.asarray(original.unwrapped.state), dtype=torch.float64)
    for action in actions_for(original, 1200):
        obs, reward, terminated, truncated, _ = original.step(action)
        state, our_obs, our_reward, our_terminated, our_truncated, _ = port.step(
            state, as_tensor(action).double() if isinstance(action, np.ndarray) else as_tensor(action), None
        )
        np.testing.assert_allclose(our_obs.numpy(), obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(our_reward.item(), reward, rtol=1e-5, atol=1e-5)
        assert our_terminated.item() == terminated
        assert not our_truncated
        if terminated or truncated:
            original.reset()
            state = torch.as_tensor(np.asarray(original.unwrapped.state), dtype=torch.float64)


@pytest.mark.parametrize("id", IDS)
def test_every_step_is_right_to_float32(id):
    original, port = gym.make(id), envs.PURE[id]
    original.reset(seed=1)
    for action in actions_for(original, 1000):
        before = torch.as_tensor(np.asarray(original.unwrapped.state), dtype=torch.float32)
        obs, reward, terminated, truncated, _ = original.step(action)
        _, our_obs, our_reward, *_ = port.step(before, as_tensor(action), None)
        np.testing.assert_allclose(our_obs.numpy(), obs, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(our_reward.item(), reward, rtol=1e-4, atol=1e-3)
        if terminated or truncated:
            original.reset()


@pytest.mark.parametrize("id", IDS)
def test_spec_is_gymnasiums(id):
    original, env = gym.make(id), envs.make(id)
    assert env.spec.observation_space == original.observation_space
    assert env.spec.action_space == original.action_space
    assert env.spec.max_episode_steps == original.spec.max_episode_steps


@pytest.mark.parametrize("id", IDS)
def test_resets_come_from_gymnasiums_distribution(id):
    env, original = envs.make(id), gym.make(id)
    _, obs = torch.vmap(env.reset)(random.split(random.key(0), 4000))
    theirs = np.stack([original.reset(seed=0)[0]] + [original.reset()[0] for _ in range(2000)])
    np.testing.assert_allclose(obs.mean(0), theirs.mean(0), atol=0.06)
    np.testing.assert_allclose(obs.std(0), theirs.std(0), atol=0.06)


def test_time_limit_truncates_and_keys_serve_as_noise():
    env = envs.make("Pendulum-v1")
    state, obs = env.reset(random.key(3))
    assert torch.equal(obs, env.reset(env.draw(random.key(3)))[1])
    for t in range(200):
        state, obs, _, terminated, truncated, _ = env.step(state, torch.zeros(1), random.key(t))
        assert truncated.item() == (t == 199)
        assert not terminated
