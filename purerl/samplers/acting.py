"""Acting on a step of a fragment: from memory to memory, a tile of environments a call."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from purerl.base import Algorithm, Policy
from purerl.samplers.fragments import RolloutBuffer, act_packed
from purerl.transforms import specialize, specialize_into, vmap

READ, WRITTEN = ("obs", "action", "reward", "first", "carry", "noise"), ("sent", "action", "carry", "extras")
LATE = ("action", "carry")  # of what is written: a step's stands in the row after it


def make_act(
    policy: Algorithm | Policy, buffer: RolloutBuffer, columns: range
) -> tuple[Callable[[int], None], list[Callable[[int], None]]]:
    """Compile `act(t)` for these columns of every seed, with the parameters in the buffer.

    An environment's numbers do not depend on which columns act together: the tiles are the same ones.

    Returns:
        `act(t)`, and its parts, one a tile, which may run at the same time.
    """
    plan, params = buffer.plan, buffer.torch["params"]
    read = {i: _moments(buffer, READ, range(i * plan.tile, (i + 1) * plan.tile)) for i in plan.tiles(columns)}
    written = {i: _moments(buffer, WRITTEN, range(i * plan.tile, (i + 1) * plan.tile)) for i in plan.tiles(columns)}
    first = plan.tiles(columns).start
    program = specialize_into(vmap(act_packed(policy, plan)), written[first][0], params, *_nested(buffer, READ, read[first][0]))

    def whole(args: list[list[Tensor]]) -> Callable[[int], None]:
        return lambda t: program(args[t].copy())

    def shared(args: list[list[Tensor]], spare: list[Tensor], places: list[list[Tensor]], cut: slice) -> Callable[[int], None]:
        def act(t: int) -> None:
            program(args[t].copy())
            for place, x in zip(places[t], spare, strict=True):
                place[:, cut] = x[:, cut]

        return act

    parts = []
    for i in plan.tiles(columns):
        tile = range(i * plan.tile, min((i + 1) * plan.tile, plan.n_envs))
        mine = range(max(tile.start, columns.start), min(tile.stop, columns.stop))
        if mine == tile:
            parts.append(whole([[*w, *params, *r] for w, r in zip(written[i], read[i], strict=True)]))
        else:  # others write into this tile too
            spare = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in written[i][0]]
            cut = slice(mine.start - tile.start, mine.stop - tile.start)
            parts.append(shared([[*spare, *params, *r] for r in read[i]], spare, written[i], cut))

    def act(t: int) -> None:
        for part in parts:
            part(t)

    return act, parts


def side_by_side(parts: list[Callable[[int], None]], pool: ThreadPoolExecutor) -> Callable[[int], None]:
    """`act(t)` whose parts run in threads; the compiled code lets go of the interpreter."""

    def act(t: int) -> None:
        for done in [pool.submit(part, t) for part in parts]:
            done.result()

    return act


def make_device_act(
    policy: Algorithm | Policy, buffer: RolloutBuffer, columns: range, params: list[Tensor]
) -> Callable[[int], None]:
    """`act(t)` for these columns of every seed in one call on the device of the packed parameters."""
    device = params[0].device
    read, written = (_moments(buffer, names, columns) for names in (READ, WRITTEN))
    there = [x.to(device) for x in read[0]]
    program, _ = specialize(vmap(act_packed(policy, buffer.plan)), params, *_nested(buffer, READ, there))

    def act(t: int) -> None:
        results = program([*params, *(x.to(device, non_blocking=True) for x in read[t])])
        for place, x in zip(written[t], results, strict=True):
            place.copy_(x)

    return act


def _moments(buffer: RolloutBuffer, names: tuple[str, ...], columns: range) -> list[list[Tensor]]:
    """For each step the leaves `[S, len(columns), ...]` of some names: those that act reads, or those it writes."""
    leaves = []
    for name in names:
        after = int(names is WRITTEN and name in LATE)
        for x in buffer.torch[name]:
            leaves.append(x[after : after + buffer.plan.n_steps, :, columns.start : columns.stop].unbind(0))
    return [list(moment) for moment in zip(*leaves, strict=True)]


def _nested(buffer: RolloutBuffer, names: tuple[str, ...], leaves: list[Tensor]) -> list[Any]:
    """The leaves of one step as one list for each name."""
    rest = iter(leaves)
    return [[next(rest) for _ in buffer.torch[name]] for name in names]
