"""The steps that a replay keeps: a ring of slots, each with one step of all `B` environments, whatever is learnt from them later.

Row `slot * B + b` of the memory is environment b's step in a slot, so the next step of the same environment lies `B` rows further.
Every observation is stored once: a step's next observation is its successor's. Hence the newest slot is not learnt from until
the next one is known, and the step that only resets is stored, because its observation is the final one of the episode, but it is
no transition.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import tree
from purerl.base import Batch, EnvSpec, check_spec
from purerl.donation import Donated
from purerl.spaces import zero_obs
from purerl.transforms import write

TERMINATED, TRUNCATED, VALID, OPENS, BLANK, FIRST = 1, 2, 4, 8, 16, 32  # bits of a row's flags
MOST_ROWS = torch.iinfo(torch.int32).max


class Steps(TensorClass):
    """A ring of steps. What is *Donated* in it is written in place.

    Attributes:
        content: `[N, ...]` for each of N rows what was stored of the step: `obs` (or `frame`), `action`, `reward`, and more.
        flags: `[N]` uint8: the step TERMINATED or TRUNCATED its episode, it is VALID as a transition, it OPENS a game, the frames
            before it in its stack are BLANK, and it is the FIRST of its episode.
        n_added: `[]` int64, slots that were ever added.
        valid: `[B]` bool of the newest slot, whose transitions are not known before the next slot is.
    """

    content: Donated
    flags: Donated
    n_added: Tensor
    valid: Tensor


class Observations(NamedTuple):
    """How observations are stored.

    Attributes:
        init: `init(obs) -> content`, the names and examples of what is stored for an observation without batch axes.
        put: `put(obs [T, B, ...]) -> content [T, B, ...]`.
        blank: `blank(obs [T, B, ...]) -> [T, B]` bool, the older frames of the stack are zeros.
        get: `get(steps, rows [...]) -> obs [..., *obs_shape]`, as they were.
        history: how many slots before a step's own are read to rebuild its observation.
    """

    init: Callable[[Any], dict[str, Any]]
    put: Callable[[Any], dict[str, Any]]
    blank: Callable[[Any], Tensor]
    get: Callable[[Steps, Tensor], Any]
    history: int = 0


class Added(NamedTuple):
    """What an `add` has changed.

    Attributes:
        rows: `[T * B]` of the transitions that are known from now on: one slot earlier than what was added.
        valid: `[T * B]` bool, which of them can be learnt from.
        gone: `[K]` rows that cannot be learnt from any more, because they, or the history of their observations, were overwritten;
            none of `rows`, which are known anew.
        n_gone: `[]` int64, how many transitions that could be learnt from are gone, the oldest ones.
    """

    rows: Tensor
    valid: Tensor
    gone: Tensor
    n_gone: Tensor


class Transitions(TensorClass):
    """Transitions `[M]` of n steps, or of fewer where the episode or what is known of it ends sooner.

    Attributes:
        obs, action: of the first step.
        reward: the discounted sum of the rewards, float32.
        discount: `gamma ** k` after k steps, 0 if the episode terminated: what the value of `next_obs` counts.
        next_obs: the observation after the last step; the true final one where the episode was truncated.
    """

    obs: Any
    action: Any
    reward: Tensor
    discount: Tensor
    next_obs: Any


def init(obs: Any, action: Any, capacity: int, n_envs: int, observations: Observations) -> Steps:
    """An empty ring.

    Args:
        obs, action: one of each, without batch axes; only structure, shapes, dtypes and device are read. The ring lies on the
            action's device, and what is stored of the observations where `observations.init` puts its examples.
        capacity: transitions that it holds at least; it has one slot more, for the newest observations.

    Raises:
        ValueError: there is no room for two slots.
    """
    if capacity < n_envs:
        raise ValueError(f"capacity = {capacity} is less than one step of each of n_envs = {n_envs}")
    device = tree.leaves(action)[0].device
    example = {**observations.init(obs), "action": action, "reward": torch.zeros((), device=device)}

    def rows(x: Tensor) -> Tensor:
        pinned = x.is_cpu and device.type == "cuda" and torch.cuda.is_available()
        return torch.zeros((n_rows(capacity, n_envs, observations), *x.shape), dtype=x.dtype, device=x.device, pin_memory=pinned)

    return Steps(
        content=Donated(memory=TensorDict(tree.map(rows, example))),
        flags=Donated(memory=TensorDict(flags=rows(torch.zeros((), dtype=torch.uint8, device=device)))),
        n_added=torch.zeros((), dtype=torch.int64, device=device),
        valid=torch.zeros(n_envs, dtype=torch.bool, device=device),
    )


def check_count(name: str, n: Any) -> None:
    """Raise a `ValueError` if this is not an integer of at least 1."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{name} = {n!r} is not an integer at least 1")


def check(spec: EnvSpec, observations: Observations, **counts: int) -> None:
    """Raise a `ValueError` if a replay cannot be made for an environment, with these counts by name."""
    check_spec(spec)
    for name, n in counts.items():
        check_count(name, n)
    observations.init(tree.map(lambda x: x[0], zero_obs(spec.observation_space, 1)))


def n_rows(capacity: int, n_envs: int, observations: Observations) -> int:
    """How many rows the ring of a capacity has.

    Raises:
        ValueError: more than int32 can number.
    """
    n = (-(-capacity // n_envs) + 1 + observations.history) * n_envs
    if n > MOST_ROWS:
        raise ValueError(f"capacity = {capacity} takes {n} rows, but a replay has at most {MOST_ROWS}")
    return n


def add(steps: Steps, batch: Batch, observations: Observations) -> tuple[Steps, Added]:
    """Append a batch `[T, B]`; the oldest slots give way. It *donates* the ring.

    A batch that does not go on where the one before ended (it opens a game, without the step that only resets: a worker was
    replaced) takes the transition between them away, unless that terminated its episode.

    Raises:
        ValueError: the batch has more slots than the ring can take at once, or another number of environments.
    """
    (n_slots_added, n_envs), n_slots = batch.reward.shape, n_slots_of(steps)
    _check(batch, steps, observations)
    slots = steps.n_added + torch.arange(-1, n_slots_added + observations.history, device=batch.reward.device)
    rows = (slots % n_slots)[:, None] * n_envs + torch.arange(n_envs, device=batch.reward.device)
    known, added = rows[:n_slots_added], rows[1 : n_slots_added + 1]
    gone = rows[max(n_slots_added, 1 + observations.history) :]

    opens = batch.episode.get("game_start", batch.inputs.first)
    flags = (
        TERMINATED * batch.terminated
        + TRUNCATED * batch.truncated
        + VALID * batch.valid
        + OPENS * opens
        + BLANK * observations.blank(batch.inputs.obs)
        + FIRST * batch.inputs.first
    )
    old = steps.flags.memory["flags"]
    linked = steps.valid & (((old[rows[0]] & TERMINATED) > 0) | ~opens[0])
    n_gone = ((old[rows[1 + observations.history :]] & VALID) > 0).sum()
    before = torch.where(linked, old[rows[0]], old[rows[0]] & ~VALID).long()

    content = {**observations.put(batch.inputs.obs), "action": batch.action, "reward": batch.reward}
    after = Steps(
        content=write(steps.content, added.flatten(), tree.map(lambda x: x.flatten(0, 1), content)),
        flags=write(steps.flags, rows[: n_slots_added + 1].flatten(), torch.cat([before[None], flags]).to(torch.uint8).flatten()),
        n_added=steps.n_added + n_slots_added,
        valid=batch.valid[-1],
    )
    valid = torch.cat([linked[None], batch.valid[:-1]])
    return after, Added(known.flatten(), valid.flatten(), gone.flatten(), n_gone)


def _check(batch: Batch, steps: Steps, observations: Observations) -> None:
    (n_slots_added, n_envs), n_slots = batch.reward.shape, n_slots_of(steps)
    if len(steps.valid) != n_envs:
        raise ValueError(f"add: the batch has {n_envs} environments, but the replay was made for {len(steps.valid)}")
    if n_slots_added + observations.history + 1 > n_slots:
        most = n_slots - observations.history - 1
        raise ValueError(f"add: a batch of {n_slots_added} steps is too long for a replay that takes {most} at once")


def n_slots_of(steps: Steps) -> int:
    """How many slots the ring has."""
    return len(steps.flags.memory["flags"]) // len(steps.valid)


def transitions(steps: Steps, rows: Tensor, n: int, gamma: Tensor, observations: Observations) -> Transitions:
    """Transitions of `n` steps from these rows on (Sutton 1988).

    A return ends with its episode: with its reward and no bootstrap if that terminated; with a bootstrap from the true final
    observation if it was truncated. At the newest slot it ends with what is known, bootstrapping from there.

    Args:
        rows: `[M]` int64, valid ones.
        gamma: `[]` the discount.
    """
    n_envs, total = len(steps.valid), len(steps.flags.memory["flags"])
    newest = (steps.n_added - 1) % n_slots_of(steps)
    ahead = _around(newest - rows // n_envs, n_slots_of(steps))  # slots up to the newest
    row, reward, discount = rows, torch.zeros(rows.shape, device=rows.device), torch.ones(rows.shape, device=rows.device)
    goes_on, terminated, last = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool), rows
    for k in range(n):
        flags = steps.flags.memory["flags"][row]
        goes_on = goes_on & ((flags & VALID) > 0) & (k < ahead)
        reward = reward + torch.where(goes_on, discount * steps.content.memory["reward"][row], 0.0)
        discount = torch.where(goes_on, discount * gamma, discount)
        last = torch.where(goes_on, row, last)
        terminated = terminated | (goes_on & ((flags & TERMINATED) > 0))
        goes_on = goes_on & ((flags & (TERMINATED | TRUNCATED)) == 0)
        row = _around(row + n_envs - total, total)
    return Transitions(
        obs=observations.get(steps, rows),
        action=tree.index(steps.content.memory["action"], rows),
        reward=reward,
        discount=torch.where(terminated, 0.0, discount),
        next_obs=observations.get(steps, _around(last + n_envs - total, total)),
    )


def _around(place: Tensor, n: int) -> Tensor:
    """A place from -n to n - 1 of a ring, from 0 on: `%`, without a division."""
    return place + n * (place < 0)


def whole() -> Observations:
    """Observations stored as they are."""
    return Observations(
        init=lambda obs: {"obs": obs},
        put=lambda obs: {"obs": obs},
        blank=lambda obs: tree.leaves(obs)[0].new_zeros((), dtype=torch.bool),
        get=lambda steps, rows: read(steps.content.memory["obs"], rows),
    )


def on_host(observations: Observations) -> Observations:
    """The same, stored in the CPU's memory, pinned, while all else of the replay lies on the GPU with the network.

    Only the rows that are added and drawn go between the two. On a CPU it changes nothing.
    """
    return observations._replace(
        init=lambda obs: tree.map(_on_host, observations.init(obs)), put=lambda obs: tree.map(_on_host, observations.put(obs))
    )


def _on_host(x: Tensor) -> Tensor:
    return x if x.is_meta else x.cpu()


def read(memory: Any, rows: Tensor) -> Any:
    """Rows `[...]` of a tree of memory, on the device of their numbers, wherever the memory lies."""
    return tree.map(lambda x: x[rows.to(x.device)].to(rows.device), memory)


def frames(n_frames: int) -> Observations:
    """Stacked images `[n_frames, H, W]` of which only the newest frame is stored, the last one; a stack is rebuilt of the frames
    of the steps before, as far as its game goes back, and else of the game's first frame or of zeros, whichever it was.

    Raises:
        ValueError: `n_frames` is no count; and, where a replay is made, observations are no such stacks.
    """
    check_count("n_frames", n_frames)

    def init(obs: Any) -> dict[str, Any]:
        if not isinstance(obs, Tensor) or obs.ndim != 3 or len(obs) != n_frames:
            found = f"{list(obs.shape)}" if isinstance(obs, Tensor) else f"of several parts, {', '.join(map(str, obs.keys()))}"
            raise ValueError(f"frames({n_frames}): observations are {found}, not stacks of images [{n_frames}, H, W]")
        return {"frame": obs[-1]}

    def blank(obs: Tensor) -> Tensor:
        return (obs[:, :, 0] == 0).flatten(2).all(2)

    def get(steps: Steps, rows: Tensor) -> Tensor:
        n_envs, total = len(steps.valid), len(steps.flags.memory["flags"])
        older, row, missing = [], rows, torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(n_frames - 1):
            flags = steps.flags.memory["flags"][row]
            opens = (flags & OPENS) > 0
            missing = missing | (opens & ((flags & BLANK) > 0))
            row = torch.where(opens, row, _around(row - n_envs, total))
            older.append((row, missing))
        places, missings = [torch.stack(xs, -1) for xs in zip((rows, torch.zeros_like(missing)), *older, strict=True)]
        found = read(steps.content.memory["frame"], places.flip(-1))
        keep = ~missings.flip(-1)
        return found * keep.reshape(*keep.shape, 1, 1)

    return Observations(
        init=init,
        put=lambda obs: {"frame": obs[:, :, -1]},
        blank=blank,
        get=get,
        history=n_frames - 1,
    )
