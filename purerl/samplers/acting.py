"""Acting on a step of a fragment: from memory to memory, a tile of environments a call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purerl.base import Algorithm, Policy
from purerl.samplers.fragments import Rows, act_packed
from purerl.transforms import specialize, specialize_into, vmap

READ, WRITTEN = ("obs", "action", "reward", "first", "carry", "noise"), ("sent", "action", "carry", "extras")
LASTING = ("action", "carry")  # of what is written: a step's stands in the row after it


def make_act(policy: Algorithm | Policy, rows: Rows, columns: range) -> Callable[[int], None]:
    """Compile `act(t)` for these columns of every seed, with the parameters in the rows.

    An environment's numbers do not depend on which columns act together: the tiles are the same ones.
    """
    plan = rows.plan
    calls = []
    for i in plan.tiles(columns):
        tile = range(i * plan.tile, (i + 1) * plan.tile)
        mine = range(max(tile.start, columns.start), min(tile.stop, columns.stop))
        whole = len(mine) == min(tile.stop, plan.n_envs) - tile.start
        read = _moments(rows, READ, tile, plan.n_steps)
        written = _moments(rows, WRITTEN, tile, plan.n_steps)
        calls.append((mine, tile, read, written, None if whole else [_room(x) for x in written[0]]))

    params = rows.torch["params"]
    example = _nested(rows, READ, calls[0][2][0])
    program = specialize_into(vmap(act_packed(policy, plan)), calls[0][3][0], params, *example)

    def act(t: int) -> None:
        for mine, tile, read, written, spare in calls:
            if spare is None:
                program([*written[t], *params, *read[t]])
                continue
            program([*spare, *params, *read[t]])  # others write into this tile too
            cut = slice(mine.start - tile.start, mine.stop - tile.start)
            for place, x in zip(written[t], spare, strict=True):
                place[:, cut] = x[:, cut]

    return act


def make_device_act(policy: Algorithm | Policy, rows: Rows, columns: range, params: list[Tensor]) -> Callable[[int], None]:
    """`act(t)` for these columns of every seed in one call on the device of the packed parameters."""
    device = params[0].device
    read, written = (_moments(rows, names, columns, rows.plan.n_steps) for names in (READ, WRITTEN))
    there = [x.to(device) for x in read[0]]
    program, _ = specialize(vmap(act_packed(policy, rows.plan)), params, *_nested(rows, READ, there))

    def act(t: int) -> None:
        results = program([*params, *(x.to(device, non_blocking=True) for x in read[t])])
        for place, x in zip(written[t], results, strict=True):
            place.copy_(x)

    return act


def _moments(rows: Rows, names: tuple[str, ...], columns: range, n_steps: int) -> list[list[Tensor]]:
    """For each step the leaves `[S, len(columns), ...]` of some names: those that act reads, or those it writes."""
    late = names is WRITTEN
    leaves = []
    for name in names:
        shift = 1 if late and name in LASTING else 0
        for x in rows.torch[name]:
            leaves.append(x[shift : shift + n_steps, :, columns.start : columns.stop].unbind(0))
    return [list(moment) for moment in zip(*leaves, strict=True)]


def _nested(rows: Rows, names: tuple[str, ...], leaves: list[Tensor]) -> list[Any]:
    """The leaves of one step as one list for each name."""
    rest = iter(leaves)
    return [[next(rest) for _ in rows.torch[name]] for name in names]


def _room(like: Tensor) -> Tensor:
    """Memory of the same shape and strides."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
