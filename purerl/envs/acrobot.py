"""Acrobot-v1 (Sutton 1996), with the book's dynamics as Gymnasium has them: one Runge-Kutta step of 0.2 s an action."""

import math

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec

DT, GRAVITY, MASS, LENGTH, CENTRE, INERTIA = 0.2, 9.8, 1.0, 1.0, 0.5, 1.0
MAX_SPIN_1, MAX_SPIN_2 = 4 * math.pi, 9 * math.pi

_BOUND = np.array([1, 1, 1, 1, MAX_SPIN_1, MAX_SPIN_2], np.float32)
SPEC = EnvSpec("Acrobot-v1", gym.spaces.Box(-_BOUND, _BOUND), gym.spaces.Discrete(3), 500)


def draw(key: Tensor) -> Tensor:
    """`[4]` the start state."""
    return random.uniform(key, (4,), -0.1, 0.1)


def reset(start: Tensor) -> tuple[Tensor, Tensor]:
    """Start where the noise says."""
    return start, _observe(start)


def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """State `[4]`: two joint angles, two angular velocities; the action is a torque of -1, 0 or 1; reward -1 until the top."""
    torque = (action - 1).to(state.dtype)
    k1 = _derivative(state, torque)
    k2 = _derivative(state + DT / 2 * k1, torque)
    k3 = _derivative(state + DT / 2 * k2, torque)
    k4 = _derivative(state + DT * k3, torque)
    angle1, angle2, spin1, spin2 = (state + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)
    state = torch.stack(
        [
            _wrap(angle1),
            _wrap(angle2),
            torch.clamp(spin1, -MAX_SPIN_1, MAX_SPIN_1),
            torch.clamp(spin2, -MAX_SPIN_2, MAX_SPIN_2),
        ],
        -1,
    )
    terminated = -torch.cos(state[..., 0]) - torch.cos(state[..., 1] + state[..., 0]) > 1.0
    reward = torch.where(terminated, 0.0, -1.0)
    return state, _observe(state), reward, terminated, torch.zeros_like(terminated), {}


def _derivative(state: Tensor, torque: Tensor) -> Tensor:
    angle1, angle2, spin1, spin2 = state.unbind(-1)
    cos2, sin2 = torch.cos(angle2), torch.sin(angle2)
    d1 = MASS * CENTRE**2 + MASS * (LENGTH**2 + CENTRE**2 + 2 * LENGTH * CENTRE * cos2) + 2 * INERTIA
    d2 = MASS * (CENTRE**2 + LENGTH * CENTRE * cos2) + INERTIA
    phi2 = MASS * CENTRE * GRAVITY * torch.cos(angle1 + angle2 - math.pi / 2)
    phi1 = (
        -MASS * LENGTH * CENTRE * spin2**2 * sin2
        - 2 * MASS * LENGTH * CENTRE * spin2 * spin1 * sin2
        + (MASS * CENTRE + MASS * LENGTH) * GRAVITY * torch.cos(angle1 - math.pi / 2)
        + phi2
    )
    rate2 = (torque + d2 / d1 * phi1 - MASS * LENGTH * CENTRE * spin1**2 * sin2 - phi2) / (MASS * CENTRE**2 + INERTIA - d2**2 / d1)
    rate1 = -(d2 * rate2 + phi1) / d1
    return torch.stack([spin1, spin2, rate1, rate2], -1)


def _wrap(angle: Tensor) -> Tensor:
    """Into [-pi, pi]; one step moves an angle by less than two turns."""
    for _ in range(2):
        angle = torch.where(angle > math.pi, angle - 2 * math.pi, angle)
        angle = torch.where(angle < -math.pi, angle + 2 * math.pi, angle)
    return angle


def _observe(state: Tensor) -> Tensor:
    angle1, angle2, spin1, spin2 = state.unbind(-1)
    return torch.stack([torch.cos(angle1), torch.sin(angle1), torch.cos(angle2), torch.sin(angle2), spin1, spin2], -1).float()


ENV = Env(SPEC, reset, step, draw)
