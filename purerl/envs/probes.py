"""Probe environments: tasks so small that the right values and actions are known, each testing one part of an algorithm."""

import gymnasium as gym
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec

_OBS = gym.spaces.Box(-1.0, 1.0, (1,))


def _env(name: str, step: object, action_space: gym.Space | None = None, max_steps: int | None = None) -> Env:
    def reset(noise: Tensor) -> tuple[Tensor, Tensor]:
        return noise, noise

    spec = EnvSpec(f"probe/{name}", _OBS, action_space or gym.spaces.Discrete(2), max_steps)
    return Env(spec, reset, step, draw=lambda key: torch.sign(random.uniform(key, (1,), -1.0, 1.0)))  # type: ignore[arg-type]


def _ends(obs: Tensor) -> tuple[Tensor, Tensor]:
    yes = torch.ones((), dtype=torch.bool, device=obs.device)
    return yes, ~yes


def _constant(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    return state, state, torch.ones((), device=state.device), *_ends(state), {}


def _observed(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    return state, state, state[0], *_ends(state), {}


def _delayed(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    """Two steps: the first shows +-1, the second 0 and pays 1 at its end."""
    over = state[0] == 0
    obs = torch.zeros_like(state)
    return obs, obs, over.float(), over, torch.zeros_like(over), {}


def _bandit(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    return state, state, (action == 1).float(), *_ends(state), {}


def _match(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    return state, state, ((action == 1) == (state[0] > 0)).float(), *_ends(state), {}


def _target(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    return state, state, -((action[0] - 0.5 * state[0]) ** 2), *_ends(state), {}


def _endless(state: Tensor, action: Tensor, noise: Tensor) -> tuple:
    never = torch.zeros((), dtype=torch.bool, device=state.device)
    return state, state, torch.ones((), device=state.device), never, never, {}


CONSTANT = _env("constant", _constant)
"""One step, reward 1: V = 1."""
OBSERVED = _env("observed", _observed)
"""One step, the reward is the observation: V(s) = s."""
DELAYED = _env("delayed", _delayed)
"""Two steps, reward 1 at the end: V(0) = 1, V(+-1) = gamma."""
BANDIT = _env("bandit", _bandit)
"""One step, action 1 pays 1: pi(1) -> 1."""
MATCH = _env("match", _match)
"""One step, the action that matches the sign of the observation pays 1."""
TARGET = _env("target", _target, gym.spaces.Box(-1.0, 1.0, (1,)))
"""One step, the reward is minus the squared distance of the action from half the observation."""
ENDLESS = _env("endless", _endless, max_steps=5)
"""Reward 1 a step for ever, truncated every 5 steps: V = 1 / (1 - gamma), since truncation bootstraps."""
