"""Space Invaders of MinAtar (Young and Tian 2019): a cannon below a block of aliens.

The block of 4 x 6 aliens goes to one side, and where one of them is at the edge, a row down and back again. Each alien that is shot
is rewarded with 1; the fewer are left, the more often they move. The alien nearest to the cannon shoots every ten steps. After the
last one a new block comes, which waits a step less between its moves where the difficulty ramps. A bullet or an alien at the cannon
ends the episode, and so does a block that would go down from the last row.

Source: https://github.com/kenjyoung/MinAtar (version 1.0.15). Observation `[6, 10, 10]`: cannon, aliens, aliens that go to the
left, aliens that go to the right, own bullets, enemy bullets.

Aliens are the bits of the block and where it is. There are never more than two own bullets and one of the enemy's, since a bullet
leaves the board in ten steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from purerl.base import Env
from purerl.envs.minatar.board import FIRE, LEFT, RIGHT, SIZE, cell, from_rows, integers, observe, render, spec, steer

SPEC = spec("SpaceInvaders", 6)
ACTIONS = (0, LEFT, RIGHT, FIRE)
HIGH, WIDE = 4, 6
ALIENS = (1 << HIGH * WIDE) - 1
COOL_DOWN, MOVE, FASTEST, SHOOT = 5, 12, 6, 10
BOTTOM, OUTSIDE = SIZE - 1, 2 * SIZE  # rows


def draw(key: Tensor) -> Tensor:
    """`[2]`: nothing is random here."""
    return key


def reset(noise: Tensor) -> tuple[Tensor, Tensor]:
    """State `[15]` int32.

    Cannon x, steps until it may shoot; aliens, y and x of their block, its way, steps between its moves, steps until the next,
    steps until the next shot; x and y of the enemy's bullet, and of both own ones. A bullet that is not there has a row outside.
    """
    state = integers(5, 0, ALIENS, 0, 2, -1, MOVE, MOVE, SHOOT, *[0, OUTSIDE] * 3, like=noise)
    return state, _observe(state)


def game(ramp: Callable) -> Env:
    """The game whose difficulty is `ramp` or `steady`."""

    def step(state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, dict]:
        cannon, rest, aliens, top, left, way, pace, until_move, until_shot, *bullets = state.unbind(-1)
        enemy_x, enemy_y, old_x, old_y, new_x, new_y = bullets

        fires = (action == FIRE) & (rest == 0)
        old_x, old_y = torch.where(fires, new_x, old_x), torch.where(fires, new_y, old_y)
        new_x, new_y = torch.where(fires, cannon, new_x), torch.where(fires, BOTTOM, new_y)
        rest = (torch.where(fires, COOL_DOWN, rest) - 1).clamp(min=0)
        cannon = steer(cannon, action == LEFT, action == RIGHT)

        old_y, new_y = _up(old_y), _up(new_y)
        enemy_y = torch.where(enemy_y < BOTTOM, enemy_y + 1, OUTSIDE)
        shot = (enemy_y == BOTTOM) & (enemy_x == cannon)

        rammed = _alien_at(aliens, top, left, BOTTOM, cannon) != 0
        moves = until_move == 0
        until_move = torch.where(moves, torch.minimum(_count(aliens), pace), until_move) - 1
        columns = _columns(aliens, left)
        turns = moves & torch.where(way < 0, columns & 1, columns >> SIZE - 1).bool()
        landed = turns & _in_last_row(aliens, top)
        way = torch.where(turns, -way, way)
        top = top + turns.int()
        left = left + torch.where(moves & ~turns, way, 0)
        rammed = rammed | (moves & (_alien_at(aliens, top, left, BOTTOM, cannon) != 0))

        shoots = until_shot == 0
        until_shot = torch.where(shoots, SHOOT, until_shot) - 1
        gunner_x = _nearest(_columns(aliens, left), cannon)
        enemy_x = torch.where(shoots, gunner_x, enemy_x)
        enemy_y = torch.where(shoots, _lowest(aliens, top, gunner_x - left), enemy_y)

        old_hit, new_hit = [_alien_at(aliens, top, left, y, x) for y, x in ((old_y, old_x), (new_y, new_x))]
        aliens = aliens & ~(old_hit | new_hit)
        old_y, new_y = torch.where(old_hit != 0, OUTSIDE, old_y), torch.where(new_hit != 0, OUTSIDE, new_y)
        reward = (old_hit != 0).float() + (new_hit != 0).float()

        cleared = aliens == 0
        aliens, top, left = torch.where(cleared, ALIENS, aliens), torch.where(cleared, 0, top), torch.where(cleared, 2, left)
        pace = torch.where(cleared, ramp(pace), pace)
        bullets = [enemy_x, enemy_y, old_x, old_y, new_x, new_y]
        state = integers(cannon, rest, aliens, top, left, way, pace, until_move, until_shot, *bullets, like=state)
        terminated = shot | rammed | landed
        return state, _observe(state), reward, terminated, torch.zeros_like(terminated), {}

    return Env(SPEC, reset, step, draw, render)


def ramp(pace: Tensor) -> Tensor:
    """The next block waits a step less."""
    return (pace - 1).clamp(min=FASTEST)


def steady(pace: Tensor) -> Tensor:
    """As it was."""
    return pace


def _up(y: Tensor) -> Tensor:
    return torch.where((y > 0) & (y < SIZE), y - 1, OUTSIDE)


def _count(aliens: Tensor) -> Tensor:
    """How many bits are set: sums of ever more neighbours, in place of the bits."""
    pairs = (aliens & 0x555555) + (aliens >> 1 & 0x555555)
    fours = (pairs & 0x333333) + (pairs >> 2 & 0x333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F
    return (eights + (eights >> 8) + (eights >> 16)) & 0xFF


def _columns(aliens: Tensor, left: Tensor) -> Tensor:
    """The columns of the board with aliens, as bits; the block may lie partly outside, where none is left."""
    block = (aliens | aliens >> WIDE | aliens >> 2 * WIDE | aliens >> 3 * WIDE) & ((1 << WIDE) - 1)
    return block << (left + WIDE) >> WIDE


def _alien_at(aliens: Tensor, top: Tensor, left: Tensor, y: Tensor | int, x: Tensor) -> Tensor:
    """The bit of the alien in a cell, 0 where there is none."""
    row, column = y - top, x - left
    row = torch.where(row < 0, row + SIZE, row)
    inside = (row < HIGH) & (column >= 0) & (column < WIDE)
    place = torch.where(inside, row * WIDE + column, 31)
    return aliens & (torch.ones_like(place) << place)


def _nearest(columns: Tensor, x: Tensor) -> Tensor:
    """The column nearest to `x` of those that are set, of two the left one."""
    every = torch.arange(SIZE, dtype=torch.int32, device=columns.device)
    distance = 2 * (every - x).abs() + (every > x).int()
    nearest = torch.where((columns >> every & 1) == 1, distance, 2 * SIZE).amin()
    return torch.where((nearest & 1) == 1, x + (nearest >> 1), x - (nearest >> 1))


def _lowest(aliens: Tensor, top: Tensor, column: Tensor) -> Tensor:
    """The row on the board of the lowest alien in a column of the block."""
    lowest = torch.zeros_like(top)
    for row in range(HIGH):
        y = torch.where(top + row < SIZE, top + row, top + row - SIZE)
        there = (aliens >> (column.clamp(0, WIDE - 1) + row * WIDE) & 1) == 1
        lowest = torch.where(there, torch.maximum(lowest, y), lowest)
    return lowest


def _in_last_row(aliens: Tensor, top: Tensor) -> Tensor:
    """Whether there are aliens in the last row of the board."""
    row = BOTTOM - top
    return (row < HIGH) & ((aliens >> (row.clamp(0, HIGH - 1) * WIDE) & ((1 << WIDE) - 1)) != 0)


def _observe(state: Tensor) -> Tensor:
    cannon, _, aliens, top, left, way, _, _, _, enemy_x, enemy_y, old_x, old_y, new_x, new_y = state.unbind(-1)
    row = torch.arange(SIZE, dtype=torch.int32, device=state.device) - top
    row = torch.where(row < 0, row + SIZE, row)  # a block that has landed shows its last row at the top
    block = torch.where(row < HIGH, aliens >> row.clamp(0, HIGH - 1) * WIDE & ((1 << WIDE) - 1), 0)
    alien = from_rows(block << (left + WIDE) >> WIDE)
    own = cell(old_y, old_x, state) | cell(new_y, new_x, state)
    to_left, to_right = torch.where(way < 0, alien, 0), torch.where(way > 0, alien, 0)
    return observe(cell(BOTTOM, cannon, state), alien, to_left, to_right, own, cell(enemy_y, enemy_x, state))


ENV = game(ramp)
