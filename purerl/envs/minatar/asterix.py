"""Asterix of MinAtar (Young and Tian 2019): gold is collected between enemies.

The player moves through the eight inner rows. Every so often an enemy or, one time in three, gold enters a free row at a side
and crosses the board. To meet gold is rewarded with 1, to meet an enemy ends the episode. They come and move faster with time,
where the difficulty ramps.

Source: https://github.com/kenjyoung/MinAtar (version 1.0.15). Observation `[4, 10, 10]`: player, enemies, the trails behind enemies
and gold, gold.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from purerl import random
from purerl.base import Env
from purerl.envs.minatar.board import DOWN, LEFT, RIGHT, ROW, SIZE, UP, cell, from_rows, integers, observe, render, spec, steer

SPEC = spec("Asterix", 4)
ACTIONS = (0, LEFT, UP, RIGHT, DOWN)
ROWS = 8  # the first below the top, each with one place
SPAWN, MOVE, RAMP = 10, 5, 100  # steps between two of a kind at the start
NOBODY, ENEMY, GOLD = 0, 1, 2


def draw(key: Tensor) -> Tensor:
    """`[3]` float32 in (0, 1): from which side something comes, what it is, and in which of the free rows."""
    return random.uniform(key, (3,))


def reset(noise: Tensor) -> tuple[Tensor, Tensor]:
    """State `[32]` int32.

    Player x and y, the steps from one entrance to the next and those that are left, the same of moves, steps until it becomes
    harder, how often it became so; then for each row what is there, its x, and its way.
    """
    rows = *[NOBODY] * ROWS, *[0] * ROWS, *[1] * ROWS
    state = integers(5, 5, SPAWN, SPAWN, MOVE, MOVE, RAMP, 0, *rows, like=noise)
    return state, _observe(state)


def game(ramp: Callable) -> Env:
    """The game whose difficulty is `ramp` or `steady`."""

    def step(state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
        (player_x, player_y, spawn, until_spawn, move, until_move, *climb), (kind, x, way) = _parts(state)
        row = torch.arange(ROWS, dtype=torch.int32, device=state.device)

        spawns, moves = until_spawn == 0, until_move == 0
        enters = spawns & _one_of(kind == NOBODY, noise[2], row)
        kind = torch.where(enters, torch.where(noise[1] < 1 / 3, GOLD, ENEMY), kind)
        x = torch.where(enters, torch.where(noise[0] < 0.5, 0, SIZE - 1), x)
        way = torch.where(enters, torch.where(noise[0] < 0.5, 1, -1), way)

        player_x = steer(player_x, action == LEFT, action == RIGHT)
        player_y = steer(player_y, action == UP, action == DOWN, 1, ROWS)
        next_x = torch.where(moves, x + way, x)
        met = (row == player_y - 1) & ((x == player_x) | (next_x == player_x))
        won, lost = met & (kind == GOLD), met & (kind == ENEMY)
        kind = torch.where(won | (next_x < 0) | (next_x >= SIZE), NOBODY, kind)

        until_spawn, until_move = torch.where(spawns, spawn, until_spawn) - 1, torch.where(moves, move, until_move) - 1
        spawn, move, *climb = ramp(spawn, move, *climb)
        alone = integers(player_x, player_y, spawn, until_spawn, move, until_move, *climb, like=state)
        state, terminated = torch.cat([alone, kind.int(), next_x.int(), way.int()]), lost.any()
        return state, _observe(state), won.any().float(), terminated, torch.zeros_like(terminated), {}

    return Env(SPEC, reset, step, draw, render)


def ramp(spawn: Tensor, move: Tensor, wait: Tensor, climbed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every 102 steps entrances come a step sooner, every second time moves as well, until there is one of each every step."""
    climbing = (spawn > 1) | (move > 1)
    now = climbing & (wait < 0)
    faster = now & (move > 1) & (climbed % 2 == 1)
    wait = torch.where(now, RAMP, wait - climbing.int())
    return spawn - (now & (spawn > 1)).int(), move - faster.int(), wait, climbed + now.int()


def steady(*difficulty: Tensor) -> tuple[Tensor, ...]:
    """As it was."""
    return difficulty


def _one_of(free: Tensor, u: Tensor, row: Tensor) -> Tensor:
    """`[8]` bool: the one of the free rows that `u` in (0, 1) chooses; none where none is free."""
    before = (free & (row < row[:, None])).sum(-1, dtype=torch.int32)
    return free & (before == (u * free.sum(dtype=torch.int32)).int())


def _parts(state: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    alone = state[: -3 * ROWS].unbind(-1)
    return alone, state[-3 * ROWS :].reshape(3, ROWS).unbind(0)


def _observe(state: Tensor) -> Tensor:
    (player_x, player_y, *_), (kind, x, way) = _parts(state)
    here = torch.ones_like(x) << x.clamp(0, SIZE - 1)
    behind = torch.where(way > 0, here >> 1, here << 1 & ROW)
    rows = [torch.where(kind == ENEMY, here, 0), torch.where(kind != NOBODY, behind, 0), torch.where(kind == GOLD, here, 0)]
    enemy, trail, gold = from_rows(torch.nn.functional.pad(torch.stack(rows), (1, 1))).unbind(0)
    return observe(cell(player_y, player_x, state), enemy, trail, gold)


ENV = game(ramp)
