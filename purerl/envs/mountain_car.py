"""MountainCar-v0 (Moore 1990) and MountainCarContinuous-v0, with Gymnasium's dynamics."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec

MIN_POSITION, MAX_POSITION, MAX_SPEED = -1.2, 0.6, 0.07
GRAVITY, FORCE, POWER = 0.0025, 0.001, 0.0015
GOAL, CONTINUOUS_GOAL = 0.5, 0.45

_OBS = gym.spaces.Box(np.array([MIN_POSITION, -MAX_SPEED], np.float32), np.array([MAX_POSITION, MAX_SPEED], np.float32))
SPEC = EnvSpec("MountainCar-v0", _OBS, gym.spaces.Discrete(3), 200)
CONTINUOUS_SPEC = EnvSpec("MountainCarContinuous-v0", _OBS, gym.spaces.Box(-1.0, 1.0, (1,)), 999)


def draw(key: Tensor) -> Tensor:
    """`[2]` the start state, at rest in the valley."""
    position = random.uniform(key, (), -0.6, -0.4)
    return torch.stack([position, torch.zeros_like(position)])


def reset(start: Tensor) -> tuple[Tensor, Tensor]:
    """Start where the noise says."""
    return start, start


def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """State `[2]`: position, velocity; actions 0, 1, 2 push left, not, right; reward -1 a step."""
    state, terminated = _drive(state, (action - 1) * FORCE, GOAL)
    reward = torch.full_like(state[..., 0], -1.0)
    return state, state.float(), reward.float(), terminated, torch.zeros_like(terminated), {}


def continuous_step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """State `[2]`; action `[1]`, a push in [-1, 1]; reward 100 at the goal less a tenth of the squared action."""
    push = action[..., 0]
    state, terminated = _drive(state, torch.clamp(push, -1.0, 1.0) * POWER, CONTINUOUS_GOAL)
    reward = torch.where(terminated, 100.0, 0.0) - 0.1 * push**2
    return state, state.float(), reward.float(), terminated, torch.zeros_like(terminated), {}


def _drive(state: Tensor, push: Tensor, goal: float) -> tuple[Tensor, Tensor]:
    position, velocity = state.unbind(-1)
    velocity = torch.clamp(velocity + push - GRAVITY * torch.cos(3 * position), -MAX_SPEED, MAX_SPEED)
    position = torch.clamp(position + velocity, MIN_POSITION, MAX_POSITION)
    velocity = torch.where((position == MIN_POSITION) & (velocity < 0), 0.0, velocity)
    return torch.stack([position, velocity], -1), (position >= goal) & (velocity >= 0.0)


ENV = Env(SPEC, reset, step, draw)
CONTINUOUS_ENV = Env(CONTINUOUS_SPEC, reset, continuous_step, draw)
