from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal, peak_growth

from purerl import envs, make_a2c, make_dqn, make_ppo, random, samplers, tree, vmap
from purerl.algos import A2CConfig, DQNConfig, PPOConfig
from purerl.rollout import draw_ahead


class Nested(gym.Env):
    """Dict and Tuple observations, MultiDiscrete actions; counts to 7, then terminates or is truncated in turn."""

    observation_space = gym.spaces.Dict(
        n=gym.spaces.Discrete(8), pair=gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,)), gym.spaces.MultiDiscrete([2, 3])])
    )
    action_space = gym.spaces.MultiDiscrete([2, 3])
    turn = 0

    def _obs(self):
        return {"n": self.n, "pair": (np.full(2, self.n / 10, np.float32), np.array([self.n % 2, self.n % 3]))}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.n += 1
        over = self.n == 7
        self.turn += over
        return self._obs(), float(self.n), over and self.turn % 2 == 0, over and self.turn % 2 == 1, {}


def nested_host():
    return envs.host(Nested)


def test_batches_follow_the_contract_with_nested_spaces():
    host = nested_host()
    algo = make_ppo(host.spec, PPOConfig(n_envs=2, n_steps=16, hidden=(8,), n_minibatches=2))
    state = algo.init(random.key(0))
    with samplers.serial(host, algo, 2, 16, random.key(1)) as feed:
        feed.publish(state)
        first, second = next(feed), next(feed)
    n = torch.cat([first.inputs.obs["n"], second.inputs.obs["n"]])
    assert n[:, 0].tolist() == [i % 8 for i in range(32)]
    batch = first
    assert batch.terminated[14].all()
    assert batch.truncated[6].all()
    assert not batch.valid[7].any()
    assert batch.inputs.first[8].all()
    assert torch.equal(batch.reward[:, 0], torch.tensor([float(i % 8 + 1) if i % 8 < 7 else 0.0 for i in range(16)]))
    assert torch.equal(batch.last.obs["n"], second.inputs.obs["n"][0])
    assert batch.inputs.obs["pair", "0"].shape == (16, 2, 2)
    assert torch.equal(batch.inputs.prev_action[1], batch.action[0])
    _, info = algo.update(state, batch)
    assert torch.isfinite(info["loss"])


@pytest.mark.parametrize("id", ["gym:CartPole-v1", "gym:Pendulum-v1"])
def test_draws_are_those_of_the_key(id):
    """Actions are the policy's for the observations in the batch, with the noise that the key gives."""
    host = envs.make(id)
    algo = make_a2c(host.spec, A2CConfig(n_envs=2, n_steps=12, hidden=(8,)))
    state = algo.init(random.key(0))
    with samplers.serial(host, algo, 2, 12, random.key(1)) as feed:
        feed.publish(state)
        batch = next(feed)
    (noise,) = draw_ahead((algo.draw,), random.fold_in(random.key(1), 1), 12, 2)
    for t in range(12):
        action, extras, _ = algo.act(algo.acting(state), tree.index(batch.inputs, t), algo.carry(2), noise[t])
        torch.testing.assert_close(action, batch.action[t], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(extras["log_prob"], batch.extras["log_prob"][t], rtol=1e-4, atol=1e-4)


def test_seeds_do_not_disturb_each_other():
    host = envs.make("gym:CartPole-v1")
    algo = make_a2c(host.spec, A2CConfig(n_envs=2, n_steps=20, hidden=(8,)))
    keys = random.split(random.key(3), 3)
    states = vmap(algo.init)(keys)
    with samplers.serial(host, algo, 2, 20, keys) as feed:
        feed.publish(states)
        together = [next(feed) for _ in range(2)]
    with samplers.serial(host, algo, 2, 20, keys[1]) as feed:
        feed.publish(algo.init(keys[1]))
        alone = [next(feed) for _ in range(2)]
    for many, one in zip(together, alone, strict=True):
        assert_trees_equal(many[1], one, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
def test_a_feed_makes_no_memory_of_the_policy():
    """Such as a replay, which the learner has and acting does not need."""
    host = envs.make("gym:CartPole-v1")
    algo = make_dqn(host.spec, DQNConfig(capacity=4_000_000))

    def collect(algo):
        with samplers.serial(host, algo, 1, 4, random.key(1)) as feed:
            feed.publish(small.init(random.key(0)))
            return next(feed)

    small = make_dqn(host.spec, DQNConfig())
    collect(small)
    grown, _ = peak_growth(lambda: collect(algo))
    assert grown < 40e6  # of 150


def test_misuse():
    host = envs.make("gym:CartPole-v1")
    algo = make_a2c(host.spec)
    with (
        samplers.serial(host, algo, 4, 5, random.key(0)) as feed,
        pytest.raises(RuntimeError, match=r"^feed: publish\(state\) before the first batch$"),
    ):
        next(feed)
    with pytest.raises(ValueError, match=r"^Pendulum-v1: observation_space is Box.*, but the algorithm was made for Box"):
        samplers.serial("gym:Pendulum-v1", algo, 4, 5, random.key(0))
