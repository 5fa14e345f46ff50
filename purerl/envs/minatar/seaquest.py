"""Seaquest of MinAtar (Young and Tian 2019): a submarine picks up divers between fish and enemy submarines.

Enemies enter at the sides of the eight inner rows and cross them; submarines also shoot, every eleven steps. Each that is shot is
rewarded with 1. Divers cross more slowly, and up to six are taken aboard when touched. Oxygen lasts for 200 steps below the
surface. To surface takes a diver; with six, all of them, for up to 10 as a reward, according to the oxygen that is left. Each time,
enemies come and move faster where the difficulty ramps. An enemy, its bullet, no oxygen, or surfacing without a diver ends the
episode.

Source: https://github.com/kenjyoung/MinAtar (version 1.0.15). Observation `[10, 10, 10]`: front and back of the submarine, own
bullets, the trails behind enemies and divers, enemy bullets, fish, enemy submarines, oxygen, divers aboard, divers. As in the
original, who surfaces with six divers has one less than none aboard.

What moves in a row are bits of an int64, and there is one for each of the eight rows. An enemy in column `x`, `t` steps before
its next move, is bit `10 t + x`: with each step bits go down by ten, and those of `t = 0` go a cell further and up again to the
steps of the next move. That loses nothing, because two enemies of a row go the same way and are at least a step apart. Of two in a
cell, the first that came moves first, and has the lower bit. There are never more than two own bullets, since a bullet leaves the
board in ten steps, and divers all move at once, since they come every thirty steps.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import random
from purerl.base import Env
from purerl.envs.minatar.board import (
    DOWN,
    FIRE,
    HALF,
    LEFT,
    RIGHT,
    ROW,
    SIZE,
    UP,
    cell,
    from_rows,
    integers,
    observe,
    render,
    spec,
    steer,
)

SPEC = spec("Seaquest", 10)
ACTIONS = (0, LEFT, UP, RIGHT, DOWN, FIRE)
ROWS, OXYGEN, CREW, SPAWN, DIVER, MOVE, COOL_DOWN = 8, 200, 6, 20, 30, 5, 5
ENEMY_SHOT, DIVER_MOVE = 11, 6  # steps from one to the next
KINDS = 6  # of rows of enemies
OUTSIDE = 2 * SIZE  # the row of a bullet that is not there
ANY_TIME = sum(1 << SIZE * t for t in range(MOVE + 1))  # the bits of column 0, whenever it moves


def draw(key: Tensor) -> Tensor:
    """`[5]` float32 in (0, 1): of an enemy its side, what it is, and its row; of a diver its side and its row."""
    return random.uniform(key, (5,))


def reset(noise: Tensor) -> tuple[TensorDict, Tensor]:
    """State `alone [19]` int32 and `rows [11, 8]` int64.

    Alone are: submarine x and y, whether it looks right, whether it is at the surface, oxygen, divers aboard, steps until it may
    shoot; steps from one enemy to the next and those that are left, steps until the next diver, steps an enemy waits between moves,
    how often it became harder, a clock of enemy shots; x, y and way of both own bullets. In rows are: fish, submarines, those whose
    time to shoot has the first to fourth bit, whether a row's enemies go to the right, divers that go left and right, enemy bullets
    that go left and right.
    """
    alone = integers(5, 0, 0, 1, OXYGEN, 0, 0, SPAWN, SPAWN, DIVER, MOVE, 0, 0, *[0, OUTSIDE, 0] * 2, like=noise)
    state = TensorDict(alone=alone, rows=torch.zeros(KINDS + 5, ROWS, dtype=torch.int64, device=noise.device))
    return state, _observe(state)


def game(ramp: Callable) -> Env:
    """The game whose difficulty is `ramp` or `steady`."""

    def step(state: TensorDict, action: Tensor, noise: Tensor) -> tuple[TensorDict, Tensor, Tensor, Tensor, Tensor, dict]:
        x, y, right, surfaced, oxygen, crew, rest, *times = state["alone"].unbind(-1)
        spawn, until_enemy, until_diver, move, climbed, clock, *own = times
        enemies, (rightward, *crossing) = state["rows"][:KINDS], state["rows"][KINDS:].unbind(0)

        enters = until_enemy == 0
        enemies, rightward = _enter(enemies, rightward, enters, noise[:3], move, clock)
        diver_enters = until_diver == 0
        until_diver = torch.where(diver_enters, DIVER, until_diver)
        divers = [ways | new for ways, new in zip(crossing[:2], _new_diver(diver_enters, noise[3:]), strict=True)]

        fires = (action == FIRE) & (rest == 0)
        rest = (torch.where(fires, COOL_DOWN, rest) - 1).clamp(min=0)
        old = [torch.where(fires, new, old) for new, old in zip(own[3:], own[:3], strict=True)]
        new = [torch.where(fires, now, new) for now, new in zip((x, y, 2 * right - 1), own[3:], strict=True)]
        right = torch.where(action == LEFT, 0, torch.where(action == RIGHT, 1, right))
        x, y = steer(x, action == LEFT, action == RIGHT), steer(y, action == UP, action == DOWN, 0, ROWS)
        here = _cell(x, y)

        bullets = [_fly(*old), _fly(*new)]
        enemies, bullets, shot = _shoot(enemies, bullets)
        divers, crew = _pick_up(divers, until_diver % DIVER_MOVE == 1, here, x, crew)
        rammed = ((enemies[0] | enemies[1]) & (here * ANY_TIME)).any()
        enemies, landed = _advance(enemies, rightward == 1, move)
        rammed = rammed | (landed & here).any()
        firing = _columns(_on_time(enemies, clock))
        enemies, bullets, shot_later = _meet(enemies, bullets, landed, move)

        enemy_bullets = [
            crossing[2] | torch.where(rightward == 1, 0, firing),
            crossing[3] | torch.where(rightward == 1, firing, 0),
        ]
        hit = ((enemy_bullets[0] | enemy_bullets[1]) & here).any()
        enemy_bullets = _cross(enemy_bullets)
        hit = hit | ((enemy_bullets[0] | enemy_bullets[1]) & here).any()

        up = (y == 0) & (surfaced == 0)
        rises = up & (crew != 0)
        terminated = rammed | hit | (oxygen <= 0) | (up & (crew == 0))
        bonus = torch.where(rises & (crew == CREW), torch.div(oxygen * 10, OXYGEN, rounding_mode="floor"), 0)
        crew = torch.where(rises, torch.where(crew == CREW, 0, crew) - 1, crew)
        oxygen = torch.where(rises, OXYGEN, oxygen - (y > 0).int())
        until_enemy = torch.where(enters, spawn, until_enemy) - 1
        harder = ramp(spawn, move, climbed)
        spawn, move, climbed = [torch.where(rises, b, a) for a, b in zip((spawn, move, climbed), harder, strict=True)]
        clock = torch.where(clock == ENEMY_SHOT - 1, 0, clock + 1)

        ship = x, y, right, torch.where(y > 0, 0, torch.where(rises, 1, surfaced)), oxygen, crew, rest
        times = spawn, until_enemy, until_diver - 1, move, climbed, clock
        alone = integers(*ship, *times, *bullets[0], *bullets[1], like=state["alone"])
        rows = torch.cat([enemies, torch.stack([rightward, *divers, *enemy_bullets])])
        state = TensorDict(alone=alone, rows=rows)
        return state, _observe(state), (shot + shot_later + bonus).float(), terminated, torch.zeros_like(terminated), {}

    return Env(SPEC, reset, step, draw, render)


def ramp(spawn: Tensor, move: Tensor, climbed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """After each time at the surface enemies come a step sooner, and after every second time move a step sooner."""
    climbing = (spawn > 1) | (move > 2)
    faster = (move > 2) & (climbed % 2 == 1)
    return (spawn - 1).clamp(min=1), move - faster.int(), climbed + climbing.int()


def steady(*difficulty: Tensor) -> tuple[Tensor, ...]:
    """As it was."""
    return difficulty


def _one(x: Tensor, bit: Tensor) -> Tensor:
    """A bit `[]` as an int64, on the device of `x`."""
    return torch.ones((), dtype=torch.int64, device=x.device) << bit.long()


def _row(y: Tensor) -> Tensor:
    """`[8]` bool: the row of a `y` on the board."""
    return torch.arange(1, ROWS + 1, dtype=torch.int32, device=y.device) == y


def _cell(x: Tensor, y: Tensor) -> Tensor:
    """`[8]` the bit of a cell in its row."""
    return torch.where(_row(y), _one(x, x), 0)


def _columns(rows: Tensor) -> Tensor:
    """Bits of columns, whenever they move."""
    rows = rows | rows >> 3 * SIZE
    return (rows | rows >> SIZE | rows >> 2 * SIZE) & ROW


def _enter(enemies: Tensor, rightward: Tensor, enters: Tensor, noise: Tensor, move: Tensor, clock: Tensor) -> tuple[Tensor, Tensor]:
    """Let an enemy into its row, unless others there come from the other side. It will first shoot ten steps later."""
    right, is_ship, row = noise[0] < 0.5, noise[1] < 1 / 3, (noise[2] * ROWS).int() + 1
    against = ((enemies[0] | enemies[1]) != 0) & ((rightward == 1) != right)
    enters = enters & _row(row) & ~against
    time = torch.where(clock == 0, ENEMY_SHOT - 1, clock - 1)
    kinds = torch.stack([~is_ship, is_ship, *[is_ship & (time >> k & 1 == 1) for k in range(KINDS - 2)]])
    bit = _one(move, move * SIZE + torch.where(right, 0, SIZE - 1))
    return enemies | torch.where(kinds[:, None] & enters, bit, 0), torch.where(enters, right.long(), rightward)


def _new_diver(enters: Tensor, noise: Tensor) -> list[Tensor]:
    right, row = noise[0] < 0.5, (noise[1] * ROWS).int() + 1
    enters = enters & _row(row)
    return [torch.where(enters & ~right, 1 << SIZE - 1, 0), torch.where(enters & right, 1, 0)]


def _fly(x: Tensor, y: Tensor, way: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An own bullet a cell further."""
    x = x + way
    inside = (x >= 0) & (x < SIZE)
    return torch.where(inside, x, 0), torch.where(inside, y, OUTSIDE), way


def _shoot(enemies: Tensor, bullets: list) -> tuple[Tensor, list, Tensor]:
    """What own bullets hit: the first fish that came into their cell, else the first submarine. How many."""
    left, total = [], torch.zeros((), dtype=torch.int32, device=enemies.device)
    for x, y, way in bullets:
        target = _cell(x, y) * ANY_TIME
        fish, ships = enemies[0] & target, enemies[1] & target
        found = torch.where(fish != 0, fish, ships)
        enemies = enemies & ~(found & -found)
        hit = (found != 0).any()
        left.append((x, torch.where(hit, OUTSIDE, y), way))
        total = total + hit.int()
    return enemies, left, total


def _pick_up(divers: list[Tensor], moves: Tensor, here: Tensor, x: Tensor, crew: Tensor) -> tuple[list[Tensor], Tensor]:
    """Divers `[8]` that go left and right; those at the submarine before or after their move come aboard while there is room.

    At most one of each way is there. If there is room for one, it is the one that came last, whose way here was the shorter.
    """
    before = [(d & here != 0).any() for d in divers]
    moved = [torch.where(moves, there, d) for there, d in zip(_cross(divers), divers, strict=True)]
    after = [(d & here != 0).any() for d in moved]
    found = [b | a for b, a in zip(before, after, strict=True)]
    length = [way - (~b).int() for way, b in zip((SIZE - 1 - x, x), before, strict=True)]
    takes = [found[i] & (crew < CREW) & ((crew < CREW - 1) | ~found[1 - i] | (length[i] < length[1 - i])) for i in range(2)]
    taken = [torch.where(take, here, 0) for take in takes]
    rest = [d & ~gone for d, gone in zip(divers, taken, strict=True)]
    moved = [torch.where(moves, there, d) & ~gone for there, d, gone in zip(_cross(rest), rest, taken, strict=True)]
    return moved, crew + takes[0].int() + takes[1].int()


def _cross(ways: list[Tensor]) -> list[Tensor]:
    """What goes left and what goes right, `[8]` each, a cell further; those at the edge leave."""
    left, right = ways
    return [left >> 1, right << 1 & ROW]


def _advance(enemies: Tensor, rightward: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """The enemies a step later, and in which columns `[8]` some have just come."""
    going = enemies & ROW
    gone = torch.where(rightward, going << 1 & ROW, going >> 1)
    return enemies >> SIZE | gone << (move.long() * SIZE), gone[0] | gone[1]


def _on_time(enemies: Tensor, clock: Tensor) -> Tensor:
    """`[8]` the submarines whose time to shoot it is."""
    ships = enemies[1]
    for k in range(KINDS - 2):
        ships = ships & torch.where(clock >> k & 1 == 1, enemies[2 + k], ~enemies[2 + k])
    return ships


def _meet(enemies: Tensor, bullets: list, landed: Tensor, move: Tensor) -> tuple[Tensor, list, Tensor]:
    """Enemies that have just moved into own bullets are gone as well. How many."""
    left, total = [], torch.zeros((), dtype=torch.int32, device=enemies.device)
    for x, y, way in bullets:
        found = landed & _cell(x, y)
        enemies = enemies & ~(found << (move.long() * SIZE))
        hit = (found != 0).any()
        left.append((x, torch.where(hit, OUTSIDE, y), way))
        total = total + hit.int()
    return enemies, left, total


def _observe(state: TensorDict) -> Tensor:
    x, y, right, _, oxygen, crew, _, _, _, _, _, _, _, old_x, old_y, _, new_x, new_y, _ = state["alone"].unbind(-1)
    rows, rightward = state["rows"], state["rows"][KINDS] == 1
    fish, ships = _columns(rows[:2]).unbind(0)
    left_divers, right_divers, left_bullets, right_bullets = rows[KINDS + 1 :].unbind(0)
    enemies = fish | ships
    trail = torch.where(rightward, enemies >> 1, enemies << 1) | left_divers << 1 | right_divers >> 1
    channels = torch.stack([trail, left_bullets | right_bullets, fish, ships, left_divers | right_divers])
    trail, enemy_bullets, fish, ships, divers = from_rows(torch.nn.functional.pad(channels & ROW, (1, 1))).unbind(0)

    look = 2 * right - 1
    own = cell(old_y, old_x, rows) | cell(new_y, new_x, rows)
    breath = _gauge(torch.div(oxygen.clamp(min=0) * 10, OXYGEN, rounding_mode="floor"))
    aboard = _gauge(torch.full_like(crew, SIZE - 1)) & ~_gauge(SIZE - 1 - crew.clamp(min=0))
    front, back = cell(y, x, rows), cell(y, x - look, rows)
    return observe(front, back, own, trail, enemy_bullets, fish, ships, breath, aboard, divers)


def _gauge(n: Tensor) -> Tensor:
    """The board with `n` cells of the last row."""
    lower = _one(n, n) - 1 << HALF - SIZE
    return torch.stack([torch.zeros_like(lower), lower])


ENV = game(ramp)
