from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from worlds import Faulty, Outside, Painted

from purerl import envs, make_ppo, random, tree
from purerl.evaluate import _film, evaluate, record_video
from purerl.samplers import EnvError


class NoDisplay(CartPoleEnv):
    def render(self):
        raise OSError("no display found")


def test_video_where_nothing_can_be_drawn(tmp_path):
    gym.register("NoDisplay-v0", NoDisplay)
    env = envs.make("NoDisplay-v0")
    algo = make_ppo(env.spec)
    with pytest.raises(OSError, match=r"video: NoDisplay-v0 cannot be drawn \(no display found\)"):
        record_video(algo, env, algo.init(random.key(0)), str(tmp_path / "v.gif"), 0)


def test_a_film_makes_its_folder(tmp_path):
    env = envs.make("worlds:Painted-v0", size=(16, 16), loud=False)
    algo = make_ppo(env.spec)
    for name in ("v.gif", "v.mp4"):
        record_video(algo, env, algo.init(random.key(0)), str(tmp_path / "new" / name), 0)
        assert (tmp_path / "new" / name).stat().st_size > 0


def test_a_pure_environment_that_draws_itself_is_filmed():
    env = envs.make("MinAtar/Breakout-v1")
    algo = make_ppo(env.spec)
    frames, total, fps = _film(algo, env, algo.acting(algo.init(random.key(0))), 0)
    assert fps == 15
    assert total >= 0
    assert len(frames) > 6
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((160, 160, 3), "uint8")}
    assert (frames[0] != frames[1]).any()


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


def test_the_task_that_was_trained_is_filmed_frame_by_frame():
    """With its options, and although it draws into the same array again."""
    env = envs.make("worlds:Painted-v0", size=(3, 4), loud=False)
    algo = make_ppo(env.spec)
    frames, total, fps = _film(algo, env, algo.acting(algo.init(random.key(0))), 0)
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 40, 80, 120, 160, 200]
    assert (total, fps) == (5.0, 10)


def test_an_environment_from_a_function_is_filmed_if_it_draws():
    make = partial(Painted, loud=False, render_mode="rgb_array")
    env = envs.host(make)
    algo = make_ppo(env.spec)
    assert len(_film(algo, env, algo.acting(algo.init(random.key(0))), 0)[0]) == 6
    silent = envs.host(partial(Painted, loud=False))
    with pytest.raises(OSError, match=r"^video: partial cannot be drawn: it is not made with render_mode='rgb_array'$"):
        _film(algo, silent, algo.acting(algo.init(random.key(0))), 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"^evaluation: step raised ZeroDivisionError: the world ended$"),
        ("reward", r"^evaluation: reward of environment 1 of lane 0 is nan, not finite$"),
        ("infinite reward", r"^evaluation: reward of environment 1 of lane 0 is -inf, not finite$"),
        ("nan", r"^evaluation: observation of environment 1 of lane 0 is nan, not finite$"),
        ("inf", r"^evaluation: observation of environment 1 of lane 0 is inf, not finite$"),
        ("shape", r"^evaluation: step raised ValueError: "),
        ("word", r"^evaluation: step raised ValueError: could not convert string to float"),
    ],
)
def test_an_environment_that_does_wrong_in_an_evaluation_is_named(fault, message, tmp_path):
    made = []

    def make():
        made.append(None)  # the first is only looked at
        return Faulty(fault if len(made) == 3 else "none", at=2, longest=9, terminal=False)

    env = envs.host(make)
    algo = make_ppo(env.spec)
    states = tree.map(lambda x: x[None], algo.init(random.key(0)))
    with pytest.raises(EnvError, match=message):
        evaluate(algo, env, states, 2, seed=3, steps=100)


def test_discrete_observations_outside_their_space_are_named_in_an_evaluation():
    env = envs.host(partial(Outside, "nested"))
    algo = make_ppo(env.spec)
    states = tree.map(lambda x: x[None], algo.init(random.key(0)))
    with pytest.raises(EnvError, match=r"^evaluation: observation\['n'\] of environment 0 of lane 0 is 4, not in Discrete"):
        evaluate(algo, env, states, 2, seed=0)


@pytest.mark.parametrize("info", [None, {"x": None}, {"path": np.zeros(3)}, {"d": {1: "a"}}])
def test_infos_are_of_no_consequence_in_an_evaluation(info):
    class Told(Clock):
        def reset(self, seed=None, options=None):
            return super().reset(seed=seed)[0], info

        def step(self, action):
            return *super().step(action)[:4], info if self.n % 2 else {"path": np.zeros(self.n)}

    env = envs.host(Told)
    algo = make_ppo(env.spec)
    states = tree.map(lambda x: x[None], algo.init(random.key(0)))
    assert len(evaluate(algo, env, states, 3, seed=0).returns[0]) == 3
