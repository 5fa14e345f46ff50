"""Environments of the benchmarks, for workers to import."""

import time

import gymnasium as gym
import numpy as np


class Timed(gym.Env):
    """Steps that cost so many seconds, at work or asleep, and show a vector or an image; episodes of 200 steps."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, seconds: float, asleep: bool, image: bool = False) -> None:
        vector, picture = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.observation_space = picture if image else vector
        self.seconds, self.asleep = seconds, asleep
        self.obs = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.n = 0
        return self.obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.asleep:
            time.sleep(self.seconds)
        else:
            until = time.perf_counter() + self.seconds
            while time.perf_counter() < until:
                pass
        self.n += 1
        return self.obs, 1.0, self.n == 200, False, {}


def pong() -> gym.Env:
    """Pong as wrappers of single environments make it."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    env = gym.wrappers.AtariPreprocessing(env, frame_skip=4, terminal_on_life_loss=True)
    return gym.wrappers.FrameStackObservation(env, 4)
