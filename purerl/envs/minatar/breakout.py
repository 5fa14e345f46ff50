"""Breakout of MinAtar (Young and Tian 2019): a ball, a paddle and three rows of bricks.

The ball moves one cell along a diagonal each step. It comes back from the walls and the ceiling, from a brick, which it breaks for
a reward of 1, and from the paddle. It goes on through the bricks that it meets directly after one that it broke. When all are
broken, new ones come as soon as the ball is down. A ball that misses the paddle ends the episode. Nothing becomes harder with time.

Source: https://github.com/kenjyoung/MinAtar (version 1.0.15). Observation `[4, 10, 10]`: paddle, ball, where the ball was, bricks.
"""

import torch
from torch import Tensor

from purerl import random, tree
from purerl.base import Env
from purerl.envs.minatar.board import LEFT, RIGHT, SIZE, cell, integers, observe, render, spec, steer

SPEC = spec("Breakout", 4)
ACTIONS = (0, LEFT, RIGHT)
TOP, BOTTOM = 1, 3  # the rows of bricks
BRICKS = (1 << (BOTTOM - TOP + 1) * SIZE) - 1


def draw(key: Tensor) -> Tensor:
    """`[]` bool: the ball starts at the right."""
    return random.bernoulli(key, 0.5)


def reset(right: Tensor) -> tuple[Tensor, Tensor]:
    """State `[9]` int32: ball x and y, its way in x and y, paddle x, whether it is in a brick, last ball x and y, brick bits."""
    starts = [integers(x, 3, dx, 1, 4, 0, x, 3, BRICKS, like=right) for x, dx in ((SIZE - 1, -1), (0, 1))]
    state, obs = tree.where(right, *[(start, _observe(start)) for start in starts])
    return state, obs


def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """Move the paddle, then the ball."""
    x, y, dx, dy, paddle, struck, _, _, bricks = state.unbind(-1)
    paddle = steer(paddle, action == LEFT, action == RIGHT)
    next_x, next_y = x + dx, y + dy
    dx = torch.where((next_x < 0) | (next_x >= SIZE), -dx, dx)
    next_x, ceiling = next_x.clamp(0, SIZE - 1), next_y < 0

    place = ((next_y - TOP) * SIZE + next_x).clamp(0, 31)
    on_brick = (next_y >= TOP) & (next_y <= BOTTOM) & ((bricks >> place) & 1 == 1)
    breaks = on_brick & (struck == 0)
    bottom = next_y == SIZE - 1
    remaining = torch.where(bottom & (bricks == 0), BRICKS, bricks & ~(breaks.to(torch.int32) << place))

    flat = bottom & (x == paddle)
    edge = bottom & ~flat & (next_x == paddle)
    back = breaks | flat | edge
    state = integers(
        next_x,
        torch.where(back, y, next_y.clamp(min=0)),
        torch.where(edge, -dx, dx),
        torch.where(back | ceiling, -dy, dy),
        paddle,
        on_brick,
        x,
        y,
        remaining,
        like=state,
    )
    return state, _observe(state), breaks.float(), bottom & ~back, torch.zeros_like(bottom), {}


def _observe(state: Tensor) -> Tensor:
    x, y, _, _, paddle, _, last_x, last_y, bricks = state.unbind(-1)
    upper = bricks.long() << TOP * SIZE
    wall = torch.stack([upper, torch.zeros_like(upper)])
    return observe(cell(SIZE - 1, paddle, state), cell(y, x, state), cell(last_y, last_x, state), wall)


ENV = Env(SPEC, reset, step, draw, render)
