import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from purerl import envs, make_ppo, random, tree
from purerl.evaluate import evaluate, record_video


class NoDisplay(CartPoleEnv):
    def render(self):
        raise OSError("no display found")


def test_video_where_nothing_can_be_drawn(tmp_path):
    gym.register("NoDisplay-v0", NoDisplay)
    env = envs.make("NoDisplay-v0")
    algo = make_ppo(env.spec)
    with pytest.raises(OSError, match=r"video: NoDisplay-v0 cannot be drawn \(no display found\)"):
        record_video(algo, env, algo.init(random.key(0)), str(tmp_path / "v.gif"), 0)


class Clock(gym.Env):
    """Episodes of 2 or 20 steps, by turns in every environment; each step is worth the episode's length."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)
    episode = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.episode = int(self.np_random.integers(2))
        self.n, self.end = 0, (2, 20)[self.episode % 2]
        self.episode += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n += 1
        return np.zeros(1, np.float32), float(self.end), self.n == self.end, False, {}


def test_short_episodes_are_not_favoured():
    """The first 40 episodes of 20 environments to end would nearly all be short; each environment plays its own to the end."""
    env = envs.host(Clock)
    algo = make_ppo(env.spec)
    states = tree.map(lambda x: x[None], algo.init(random.key(0)))
    found = evaluate(algo, env, states, 20, seed=0)
    assert sorted(set(found.lengths[0])) == [2, 20]
    assert len(found.lengths[0]) == 20
    longer = evaluate(algo, env, states, 20, seed=0, steps=2000)
    assert longer.lengths[0].sum() >= 2000
    assert 0.4 < (longer.lengths[0] == 20).mean() < 0.6
    np.testing.assert_array_equal(longer.returns[0], longer.lengths[0] ** 2)
