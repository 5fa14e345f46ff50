"""Catch of bsuite (Osband et al. 2020): a ball falls, and a paddle below is to be there.

The ball starts in the top row, in any column, and falls a row each step. Where it reaches the last row the episode ends, with a
reward of 1 if the paddle is below it and -1 if not.

Source: https://github.com/google-deepmind/bsuite (environments/catch.py). Observation `[rows, columns]`: 1 where ball or paddle is.
"""

import gymnasium as gym
import torch
from torch import Tensor

from purerl import random
from purerl.base import Env, EnvSpec
from purerl.envs.minatar.board import render


def make(rows: int = 10, columns: int = 5) -> Env:
    """The game on a board of any size.

    Raises:
        ValueError: fewer than two rows, or no column.
    """
    if rows < 2 or columns < 1:
        raise ValueError(f"a board of rows = {rows} and columns = {columns} has no room for ball and paddle")

    def draw(key: Tensor) -> Tensor:
        """`[]` the ball's column."""
        return random.randint(key, (), 0, columns).to(torch.int32)

    def reset(column: Tensor) -> tuple[Tensor, Tensor]:
        """State `[3]` int32: ball x and y, paddle x."""
        zero = torch.zeros_like(column)
        state = torch.stack([column, zero, zero + columns // 2])
        return state, observe(state)

    def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
        """Action 0 goes left, 1 stays, 2 goes right."""
        ball, y, paddle = state.unbind(-1)
        y, paddle = y + 1, (paddle + action.to(torch.int32) - 1).clamp(0, columns - 1)
        state, over = torch.stack([ball, y, paddle]), y == rows - 1
        reward = torch.where(over, torch.where(ball == paddle, 1.0, -1.0), 0.0)
        return state, observe(state), reward, over, torch.zeros_like(over), {}

    def observe(state: Tensor) -> Tensor:
        ball, y, paddle = state.unbind(-1)
        place = torch.arange(rows * columns, dtype=torch.int32, device=state.device)
        seen = (place == y * columns + ball) | (place == (rows - 1) * columns + paddle)
        return seen.float().reshape(rows, columns)

    space = gym.spaces.Box(0.0, 1.0, (rows, columns))
    return Env(EnvSpec("bsuite/Catch-v0", space, gym.spaces.Discrete(3)), reset, step, draw, lambda obs: render(obs[None]))


MAKERS = {"bsuite/Catch-v0": make}
