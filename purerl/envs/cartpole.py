"""CartPole-v1 (Barto, Sutton and Anderson 1983), with Gymnasium's dynamics and Euler steps of 0.02 s."""

import math

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TOTAL_MASS, POLE_MOMENT = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
MAX_ANGLE, MAX_POSITION = 12 * 2 * math.pi / 360, 2.4

_BOUND = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)
SPEC = EnvSpec("CartPole-v1", gym.spaces.Box(-_BOUND, _BOUND), gym.spaces.Discrete(2), 500)


def draw(key: Tensor) -> Tensor:
    """`[4]` the start state."""
    return random.uniform(key, (4,), -0.05, 0.05)


def reset(start: Tensor) -> tuple[Tensor, Tensor]:
    """Start where the noise says."""
    return start, start


def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """State `[4]`: position, velocity, angle, angular velocity; action 0 pushes left, 1 right; reward 1 a step."""
    x, v, angle, spin = state.unbind(-1)
    force = torch.where(action == 1, FORCE, -FORCE)
    cos, sin = torch.cos(angle), torch.sin(angle)
    push = (force + POLE_MOMENT * spin * spin * sin) / TOTAL_MASS
    spin_rate = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos * cos / TOTAL_MASS))
    v_rate = push - POLE_MOMENT * spin_rate * cos / TOTAL_MASS
    state = torch.stack([x + TAU * v, v + TAU * v_rate, angle + TAU * spin, spin + TAU * spin_rate], -1)
    terminated = (state[..., 0].abs() > MAX_POSITION) | (state[..., 2].abs() > MAX_ANGLE)
    return state, state.float(), torch.ones_like(x).float(), terminated, torch.zeros_like(terminated), {}


ENV = Env(SPEC, reset, step, draw)
