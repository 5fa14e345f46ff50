"""DeepSea of bsuite (Osband et al. 2020): a treasure that is found only by whoever goes right at every step.

A diver starts at the top left of a square board and sinks a row each step, to the left or to the right. To the right costs
`0.01 / size`, but from the last column it pays 1 as well. So one way of `2 ** size` is worth 0.99 and all others nothing or less.
Which of the two actions goes right may differ from cell to cell.

Source: https://github.com/google-deepmind/bsuite (environments/deep_sea.py), deterministic. Observation `[size, size]`: 1 where the
diver is; below the last row, where the episode ends, it is not seen.
"""

import gymnasium as gym
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec
from purerl.envs.minatar.board import render


def make(size: int = 10, mapping_seed: int | None = None) -> Env:
    """The task of a size.

    Args:
        mapping_seed: of the random choice, for each cell, which action goes right; action 1 everywhere when omitted.

    Raises:
        ValueError: the size is less than 1.
    """
    if size < 1:
        raise ValueError(f"size = {size} is not at least 1")
    rightward = _rightward(size, mapping_seed)

    def reset(key: Tensor) -> tuple[Tensor, Tensor]:
        """State `[2]` int32: the diver's row and column."""
        state = torch.zeros(2, dtype=torch.int32, device=key.device)
        return state, observe(state)

    def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
        """Sink a row, to the left or to the right."""
        row, column = state.unbind(-1)
        here = rightward.to(state.device) & (places(state) == row * size + column)
        right = (action == 1) == here.any()
        found = right & (column == size - 1)
        reward = found.float() - right.float() * (0.01 / size)
        column = (column + 2 * right.to(torch.int32) - 1).clamp(0, size - 1)
        state = torch.stack([row + 1, column])
        over = state[0] == size
        return state, observe(state), reward, over, torch.zeros_like(over), {}

    def places(state: Tensor) -> Tensor:
        return torch.arange(size * size, dtype=torch.int32, device=state.device)

    def observe(state: Tensor) -> Tensor:
        return (places(state) == state[0] * size + state[1]).float().reshape(size, size)

    space = gym.spaces.Box(0.0, 1.0, (size, size))
    return Env(EnvSpec("bsuite/DeepSea-v0", space, gym.spaces.Discrete(2)), reset, step, render=lambda obs: render(obs[None]))


def _rightward(size: int, seed: int | None) -> Tensor:
    """`[size * size]` bool: in which cells action 1 goes right."""
    if seed is None:
        return torch.ones(size * size, dtype=torch.bool)
    return random.bernoulli(random.key(seed), 0.5, (size * size,))


MAKERS = {"bsuite/DeepSea-v0": make}
