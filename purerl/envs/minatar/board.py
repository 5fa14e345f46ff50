"""What the games of MinAtar share: a board of 10 x 10 cells, how it is seen, and the six actions.

Source: Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning Experiments"
(2019), and https://github.com/kenjyoung/MinAtar. The games are the same step for step; an observation has its channels first.

A board is two int64, the upper and the lower half of 50 bits each: the cell in column `x` of a half's row `y` is bit `10 y + x`.
What is many is moved by shifting bits, and only what is seen has a number for each cell.
"""

import math

import gymnasium as gym
import torch
from torch import Tensor

from purerl.base import EnvSpec

SIZE = 10
HALF = SIZE * SIZE // 2
ROW = (1 << SIZE) - 1  # the bits of a row that is full
PIXELS = 16  # of a cell's side in a picture
NOTHING, LEFT, UP, RIGHT, DOWN, FIRE = range(6)


def spec(game: str, n_channels: int) -> EnvSpec:
    """A game's name and spaces, with all six actions."""
    observation_space = gym.spaces.Box(0.0, 1.0, (n_channels, SIZE, SIZE))
    return EnvSpec(f"MinAtar/{game}-v0", observation_space, gym.spaces.Discrete(6))


def integers(*values: Tensor | int, like: Tensor) -> Tensor:
    """`[n]` int32 of numbers `[]`, where `like` lies."""
    zero = torch.zeros((), dtype=torch.int32, device=like.device)
    return torch.stack([zero + value if isinstance(value, int) else value.to(torch.int32) for value in values])


def cell(y: Tensor | int, x: Tensor | int, like: Tensor) -> Tensor:
    """`[2]` the board of one cell; empty where its row lies below the board."""
    place = y * SIZE + x - HALF * torch.arange(2, device=like.device)
    inside = (place >= 0) & (place < HALF)
    return torch.where(inside, torch.ones_like(place) << place.clamp(0, HALF - 1), 0)


def from_rows(rows: Tensor) -> Tensor:
    """`[..., 2]` boards from the bits of rows `[..., 10]`."""
    halves = rows.long().unflatten(-1, (2, SIZE // 2))
    return (halves << SIZE * torch.arange(SIZE // 2, device=rows.device)).sum(-1)


def steer(x: Tensor, less: Tensor, more: Tensor, low: int = 0, high: int = SIZE - 1) -> Tensor:
    """A coordinate one less or one more, within its bounds."""
    return (x + more.to(x.dtype) - less.to(x.dtype)).clamp(low, high)


def observe(*channels: Tensor) -> Tensor:
    """`[C, 10, 10]` float32 from boards `[2]`."""
    boards = torch.stack(channels)[..., None]
    bit = torch.arange(HALF, device=boards.device)
    halves = [(half >> bit & 1).float() for half in boards.unbind(1)]  # joined, they are in place before anything reads them
    return torch.cat(halves, -1).reshape(len(channels), SIZE, SIZE)


def render(obs: Tensor) -> Tensor:
    """`[16 H, 16 W, 3]` uint8: each channel `[C, H, W]` in a colour of its own, the last one in a cell above the others."""
    n = len(obs)
    number = (obs * torch.arange(1, n + 1, device=obs.device)[:, None, None]).amax(0).long()
    colours = torch.tensor([(0.0, 0.0, 0.0), *[cubehelix((i + 1) / (n + 1)) for i in range(n)]], device=obs.device)
    pixels = (colours[number] * 255).round().to(torch.uint8)
    return pixels.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)


def cubehelix(lightness: float) -> tuple[float, float, float]:
    """The colour of a lightness in [0, 1] on a helix around the greys (Green 2011), as the original's pictures have them."""
    angle, amplitude = 2 * math.pi * (1 / 6 - 1.5 * lightness), lightness * (1 - lightness) / 2
    cos, sin = amplitude * math.cos(angle), amplitude * math.sin(angle)
    parts = (-0.14861, 1.78277), (-0.29227, -0.90649), (1.97294, 0.0)
    red, green, blue = [min(max(lightness + a * cos + b * sin, 0.0), 1.0) for a, b in parts]
    return red, green, blue
