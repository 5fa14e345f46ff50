"""Environments for the tests of samplers, importable by worker processes."""

import os
import signal
import time

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import register

BOX, PAIR = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.MultiDiscrete([2, 3])
SPACES = {
    "plain": (BOX, gym.spaces.Discrete(3, start=1)),
    "continuous": (BOX, gym.spaces.Box(-1.0, 1.0, (2,), np.float32)),
    "nested": (
        gym.spaces.Dict(x=BOX, pair=gym.spaces.Tuple([gym.spaces.Discrete(4), gym.spaces.Box(0, 255, (2, 2), np.uint8)])),
        gym.spaces.Dict(move=gym.spaces.Discrete(3), aim=gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,)), PAIR])),
    ),
}


class Walk(gym.Env):
    """A state that actions push; episodes of random length up to `longest`: even ones terminate, odd ones are cut."""

    def __init__(self, kind="plain", longest=9, terminal=True):
        self.kind, self.longest, self.terminal = kind, longest, terminal
        self.observation_space, self.action_space = SPACES[kind]

    def _obs(self):
        x = self.x.astype(np.float32)
        if self.kind != "nested":
            return x
        return {"pair": (self.n % 4, np.full((2, 2), self.n % 256, np.uint8)), "x": x}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.n, self.end = 0, int(self.np_random.integers(1, self.longest + 1))
        self.x = self.np_random.normal(size=3)
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        push = np.sum([np.sum(leaf) for leaf in leaves(action)])
        self.n += 1
        self.x = 0.9 * self.x + push * np.array([1.0, -0.5, 0.1])
        over = self.n >= self.end
        terminated = over and self.end % 2 == 0 and self.terminal
        info = {"depth": float(self.x[0])} if over else {}
        return self._obs(), float(self.x.sum()), terminated, over and not terminated, info


def leaves(x):
    if isinstance(x, dict):
        return [leaf for part in x.values() for leaf in leaves(part)]
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, tuple) else [x]


class Faulty(Walk):
    """Goes wrong at its step `at` (0: in reset), if `here` says so: the file `flag` exists, or there is none to look for."""

    def __init__(self, fault, at=5, flag=None, **kwargs):
        super().__init__(**kwargs)
        self.fault, self.at, self.flag, self.steps = fault, at, flag, 0

    def reset(self, seed=None, options=None):
        if self.at == 0:
            self._go_wrong()
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        result = super().step(action)
        if self.steps != self.at or (self.flag is not None and not self._take_flag()):
            return result
        obs, reward, *rest = result
        wrong = self._go_wrong()
        return (wrong.get("obs", obs), wrong.get("reward", reward), *rest)

    def _take_flag(self):
        """Whether the flag was still there: it is taken away, so that only one environment goes wrong once."""
        try:
            os.remove(self.flag)
        except FileNotFoundError:
            return False
        return True

    def _go_wrong(self):
        match self.fault:
            case "raise":
                raise ZeroDivisionError("the world ended")
            case "hang":
                time.sleep(1000)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "shape":
                return {"obs": np.zeros(4, np.float32)}
            case "dtype":
                return {"obs": np.zeros(3, np.complex64)}
            case "nan":
                return {"obs": np.array([0.0, np.nan, 0.0], np.float32)}
            case "reward":
                return {"reward": float("nan")}
            case "word":
                return {"reward": "much"}
        return {}


register("Walk-v0", Walk, max_episode_steps=6)
register("Faulty-v0", Faulty)
