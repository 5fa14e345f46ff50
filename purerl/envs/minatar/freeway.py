"""Freeway of MinAtar (Young and Tian 2019): a chicken crosses eight lanes with a car each.

The chicken goes up or down, at most every third step, for a reward of 1 at the top, from where it starts again at the bottom while
all cars get new speeds. A car waits for one step to five between two moves, goes to the left or to the right, and comes back at the
other side. A chicken that is hit starts again at the bottom. An episode has 2501 steps. Nothing becomes harder with time.

Source: https://github.com/kenjyoung/MinAtar (version 1.0.15). Observation `[7, 10, 10]`: chicken, cars, and the trails behind the
cars in five channels, one for each speed.
"""

import torch
from torch import Tensor

from purerl import random
from purerl.base import Env
from purerl.envs.minatar.board import DOWN, SIZE, UP, cell, from_rows, integers, observe, render, spec, steer

SPEC = spec("Freeway", 7)
ACTIONS = (0, UP, DOWN)
CARS, COLUMN, SPEEDS, REST, LAST_STEP = 8, 4, 5, 3, 2500
BOTTOM = SIZE - 1


def draw(key: Tensor) -> Tensor:
    """`[8]` int32: for each car the steps between two moves, 1 to 5, negative for one that drives to the left."""
    speed = random.randint(key, (CARS,), 0, 2 * SPEEDS).to(torch.int32)
    return torch.where(speed < SPEEDS, speed + 1, SPEEDS - 1 - speed)


def reset(speed: Tensor) -> tuple[Tensor, Tensor]:
    """State `[27]` int32: chicken y, steps until it may move, steps left; for each car x, steps until it moves, and speed."""
    start = integers(BOTTOM, REST, LAST_STEP, *[0] * CARS, like=speed)
    state = torch.cat([start, speed.abs(), speed])
    return state, _observe(state)


def step(state: Tensor, action: Tensor, new_speed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
    """Move the chicken, then the cars."""
    (y, rest, left), (x, wait, speed) = state[:3].unbind(-1), state[3:].reshape(3, CARS).unbind(0)
    up, down = (action == UP) & (rest == 0), (action == DOWN) & (rest == 0)
    y, rest = steer(y, up, down), torch.where(up | down, REST, rest)

    across = y == 0
    speed = torch.where(across, new_speed, speed)
    wait = torch.where(across, speed.abs(), wait)
    y = torch.where(across, BOTTOM, y)

    moves = wait == 0
    next_x = x + torch.where(moves, torch.sign(speed), 0)
    next_x = torch.where(next_x < 0, SIZE - 1, torch.where(next_x >= SIZE, 0, next_x))
    in_lane = torch.arange(1, CARS + 1, dtype=torch.int32, device=state.device) == y
    hit = (in_lane & ((x == COLUMN) | (next_x == COLUMN))).any()
    y = torch.where(hit, BOTTOM, y)

    left = left - 1
    alone = torch.stack([y, (rest - 1).clamp(min=0), left])
    state = torch.cat([alone, next_x, torch.where(moves, speed.abs(), wait - 1), speed])
    over = left < 0
    return state, _observe(state), across.float(), over, torch.zeros_like(over), {}


def _observe(state: Tensor) -> Tensor:
    y, x, speed = state[0], state[3 : 3 + CARS], state[3 + 2 * CARS :]
    back = x - torch.sign(speed)
    back = torch.where(back < 0, SIZE - 1, torch.where(back >= SIZE, 0, back))
    here, behind = torch.ones_like(x) << x, torch.ones_like(x) << back
    rows = [here, *[torch.where(speed.abs() == steps, behind, 0) for steps in range(1, SPEEDS + 1)]]
    cars = from_rows(torch.nn.functional.pad(torch.stack(rows), (1, 1)))
    return observe(cell(y, COLUMN, state), *cars.unbind(0))


ENV = Env(SPEC, reset, step, draw, render)
