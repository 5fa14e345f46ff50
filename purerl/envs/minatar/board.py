"""What the games of MinAtar share: a board of 10 x 10 cells, how it is seen, and the six actions.

Source: Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning Experiments" (2019),
and https://github.com/kenjyoung/MinAtar. The games are the same step for step; an observation has its channels first.

Cells that are many are kept as the bits of an integer: moving them all is a shift, and a step costs few operations.
"""

import gymnasium as gym
import torch
from torch import Tensor

from purerl.base import EnvSpec

SIZE = 10
ROW = (1 << SIZE) - 1  # the bits of a row that is full
NOTHING, LEFT, UP, RIGHT, DOWN, FIRE = range(6)


def spec(game: str, n_channels: int) -> EnvSpec:
    """A game's name and spaces, with all six actions."""
    observation_space = gym.spaces.Box(0.0, 1.0, (n_channels, SIZE, SIZE))
    return EnvSpec(f"MinAtar/{game}-v0", observation_space, gym.spaces.Discrete(6))


def integers(*values: Tensor | int, like: Tensor) -> Tensor:
    """`[n]` int32 of numbers `[]`, where `like` lies."""
    zero = torch.zeros((), dtype=torch.int32, device=like.device)
    return torch.stack([zero + value if isinstance(value, int) else value.to(torch.int32) for value in values])


def cells(like: Tensor) -> Tensor:
    """`[100]` int32: the numbers of the cells, row by row."""
    return torch.arange(SIZE * SIZE, dtype=torch.int32, device=like.device)


def only(y: Tensor | int, x: Tensor, cells: Tensor) -> Tensor:
    """`[100]` bool: the cell in row `y` and column `x`, or none where they lie outside."""
    return cells == y * SIZE + x


def steer(x: Tensor, less: Tensor, more: Tensor, low: int = 0, high: int = SIZE - 1) -> Tensor:
    """A coordinate one less or one more, within its bounds."""
    return (x + more.to(x.dtype) - less.to(x.dtype)).clamp(low, high)


def observe(*channels: Tensor) -> Tensor:
    """`[C, 10, 10]` float32 from channels `[100]` bool."""
    return torch.stack([channel.float() for channel in channels]).reshape(len(channels), SIZE, SIZE)
