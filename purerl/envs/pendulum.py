"""Pendulum-v1, with Gymnasium's dynamics: a torque-limited swing-up that never terminates."""

import math

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec

MAX_SPEED, MAX_TORQUE, DT, GRAVITY, MASS, LENGTH = 8.0, 2.0, 0.05, 10.0, 1.0, 1.0

_BOUND = np.array([1, 1, MAX_SPEED], np.float32)
SPEC = EnvSpec("Pendulum-v1", gym.spaces.Box(-_BOUND, _BOUND), gym.spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,)), 200)


def draw(key: Tensor) -> Tensor:
    """`[2]` the start state: any angle, a slow spin."""
    angle, spin = random.uniform(key, (2,), -1.0, 1.0).unbind(-1)
    return torch.stack([math.pi * angle, spin], -1)


def reset(start: Tensor) -> tuple[Tensor, Tensor]:
    """Start where the noise says."""
    return start, _observe(start)


def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """State `[2]`: angle (upright is 0), angular velocity; action `[1]`, a torque in [-2, 2]; the reward is minus a cost."""
    angle, spin = state.unbind(-1)
    torque = torch.clamp(action[..., 0], -MAX_TORQUE, MAX_TORQUE)
    normal_angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    cost = normal_angle**2 + 0.1 * spin**2 + 0.001 * torque**2
    rate = 3 * GRAVITY / (2 * LENGTH) * torch.sin(angle) + 3.0 / (MASS * LENGTH**2) * torque
    spin = torch.clamp(spin + rate * DT, -MAX_SPEED, MAX_SPEED)
    state = torch.stack([angle + spin * DT, spin], -1)
    never = torch.zeros_like(spin, dtype=torch.bool)
    return state, _observe(state), -cost.float(), never, never, {}


def _observe(state: Tensor) -> Tensor:
    angle, spin = state.unbind(-1)
    return torch.stack([torch.cos(angle), torch.sin(angle), spin], -1).float()


ENV = Env(SPEC, reset, step, draw)
