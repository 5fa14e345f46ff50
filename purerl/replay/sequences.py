"""Sequences of a replay's steps, for learning with a memory (R2D2, Kapturowski et al. 2019).

A sequence is `length` steps of one environment of which each can be learnt from as a transition. So none goes across a step that
only resets, a link that broke, the newest slot or the place that is written next; where an episode ends without a reset (a lost
life), the next one goes on in the same sequence, marked `first`. A sequence is known by its first row, its start, and becomes known
when the slot behind its last step is added.

Starts are all slots that are multiples of `period` (for the paper's 80 steps every 40: `length=80, period=40`). The policy's memory
is known only before the first step of an added batch. So where it is kept, every batch has `period` steps, and the memories lie in
a small ring of their own: that of row `slot * B + b`, where `slot` begins a batch, in row `slot // period * B + b`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import tree
from purerl.base import Batch, Carry, EnvSpec
from purerl.donation import Donated
from purerl.replay import replays, steps
from purerl.replay.replays import Chooser
from purerl.replay.steps import FIRST, TERMINATED, TRUNCATED, VALID, Added, Observations, Steps
from purerl.transforms import write


class Sequences(TensorClass):
    """Sequences `[L, M]`.

    Attributes:
        obs, prev_action, prev_reward, first: what the policy saw; action and reward of the step before, zero where `first`.
        action, reward, terminated, truncated: what was done, and what came of it.
        next_obs: `[M]` the observation after the last step; the true final one if the last step ended its episode.
        carry: `[M]` the policy's memory before the first step, as it was when it acted; empty where none is kept.
    """

    obs: Any
    prev_action: Any
    prev_reward: Tensor
    first: Tensor
    action: Any
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    next_obs: Any
    carry: TensorDict


class SequenceState(TensorClass):
    """A replay of sequences. Its memory is *Donated*.

    Attributes:
        steps: what happened.
        carries: `[N / period, ...]` the policy's memory before each batch. It is *Donated*.
        index: the starts of sequences.
    """

    steps: Steps
    carries: Donated
    index: Any


class SequenceSample(TensorClass):
    """What was drawn.

    Attributes:
        rows: `[M]` int64, for `update`.
        weights: `[M]` float32 importance weights, at most 1.
        sequences: `[L, M]`.
    """

    rows: Tensor
    weights: Tensor
    sequences: Sequences


class SequenceReplay(NamedTuple):
    """A replay of sequences apart from its state.

    Attributes:
        init: `init(device) -> state`, empty.
        add: `add(state, batch [T, B], alpha) -> state`; it *donates* the state.
        sample: `sample(state, key, n, beta) -> SequenceSample`; from an empty replay it is without meaning.
        update: `update(state, rows [M], errors [M], alpha) -> state`; it *donates* the state. What a sequence's error is, the
            caller says (the paper: 0.9 of the largest and 0.1 of the mean of its steps' absolute errors).
        size: `size(state) -> []` int64, how many sequences can be learnt from.
    """

    init: Callable[[torch.device | None], SequenceState]
    add: Callable[[SequenceState, Batch, Tensor], SequenceState]
    sample: Callable[[SequenceState, Tensor, int, Tensor], SequenceSample]
    update: Callable[[SequenceState, Tensor, Tensor, Tensor], SequenceState]
    size: Callable[[SequenceState], Tensor]


def make_uniform_sequences(
    spec: EnvSpec,
    capacity: int,
    n_envs: int,
    length: int,
    period: int = 1,
    carry: Carry = lambda n_envs: TensorDict(),
    observations: Observations | None = None,
) -> SequenceReplay:
    """Every sequence is as likely as any other; `alpha`, `beta` and errors play no part.

    Args:
        spec: of the environment, for the shapes.
        capacity: steps that it holds at least.
        n_envs: environments of a batch.
        length: steps of a sequence.
        period: sequences start at slots that are its multiples, counted from the first one ever added.
        carry: the policy's (`policy.carry`), whose memory is kept. Batches then have `period` steps.
        observations: how they are stored; whole ones if omitted.

    Raises:
        ValueError: the capacity is no more than one sequence of each environment, or more than int32 can number; a count is not an
            integer at least 1; or observations cannot be stored like that.
    """
    return _make(replays.uniformly, spec, capacity, n_envs, length, period, carry, observations or steps.whole())


def make_prioritized_sequences(
    spec: EnvSpec,
    capacity: int,
    n_envs: int,
    length: int,
    period: int = 1,
    carry: Carry = lambda n_envs: TensorDict(),
    observations: Observations | None = None,
) -> SequenceReplay:
    """A sequence is drawn in proportion to `priority ** alpha` (Schaul et al. 2016); otherwise as `make_uniform_sequences`."""
    return _make(replays.by_priority, spec, capacity, n_envs, length, period, carry, observations or steps.whole())


def _make(
    make_chooser: Callable[[int], Chooser],
    spec: EnvSpec,
    capacity: int,
    n_envs: int,
    length: int,
    period: int,
    carry: Carry,
    observations: Observations,
) -> SequenceReplay:
    steps.check(spec, observations, capacity=capacity, n_envs=n_envs, length=length, period=period)
    if capacity <= length * n_envs:
        raise ValueError(f"capacity = {capacity} is not more than length * n_envs = {length} * {n_envs}, the steps of one sequence")
    observations = observations._replace(history=max(1, observations.history))  # the step before a start is kept
    slots = steps.n_rows(capacity, n_envs, observations) // n_envs
    capacity = (-(-slots // period) * period - 1 - observations.history) * n_envs  # so that slots are a multiple of the period
    n_rows = steps.n_rows(capacity, n_envs, observations)
    chooser, has_carry = make_chooser(n_rows), len(tree.leaves(carry(1))) > 0

    def init(device: torch.device | None = None) -> SequenceState:
        def rows(x: Tensor) -> Tensor:
            return torch.zeros((n_rows // period, *x.shape[1:]), dtype=x.dtype, device=device)

        return SequenceState(
            steps=replays.init_steps(spec, capacity, n_envs, observations, device),
            carries=Donated(memory=TensorDict(tree.map(rows, carry(1).to_dict()))),
            index=chooser.init(device),
        )

    def add(state: SequenceState, batch: Batch, alpha: Tensor) -> SequenceState:
        if has_carry and len(batch.reward) != period:
            raise ValueError(f"add: the batch has {len(batch.reward)} steps, but carries are kept every period = {period} steps")
        first = state.steps.n_added % (n_rows // n_envs) // period
        places = first * n_envs + torch.arange(n_envs, device=batch.reward.device)
        carries = write(state.carries, places, batch.carry) if has_carry else state.carries
        after, added = add_steps(state.steps, batch, length, period, observations)
        return SequenceState(steps=after, carries=carries, index=chooser.add(state.index, added, alpha))

    def sample(state: SequenceState, key: Tensor, n: int, beta: Tensor) -> SequenceSample:
        rows, weights = chooser.sample(state.index, key, n, beta)
        places = rows // n_envs // period * n_envs + rows % n_envs
        found = sequences(state.steps, rows, length, tree.index(state.carries.memory, places), observations)
        return SequenceSample(rows=rows, weights=weights, sequences=found)

    def update(state: SequenceState, rows: Tensor, errors: Tensor, alpha: Tensor) -> SequenceState:
        return tree.replace(state, index=chooser.update(state.index, rows, errors, alpha))

    return SequenceReplay(init, add, sample, update, lambda state: chooser.size(state.index))


def add_steps(ring: Steps, batch: Batch, length: int, period: int, observations: Observations) -> tuple[Steps, Added]:
    """Append a batch `[T, B]`, as `steps.add`. It *donates* the ring.

    Args:
        observations: with a `history` of 1 at least.

    Returns:
        The ring, and what has changed of the rows that start sequences; no row is both known anew and gone.

    Raises:
        ValueError: as `steps.add`; or sequences would be gone before they were known.
    """
    n_added, n_slots = len(batch.reward), steps.n_slots_of(ring)
    if n_added + length + observations.history > n_slots:
        most = n_slots - length - observations.history
        raise ValueError(f"add: a batch of {n_added} steps is too long for a replay of sequences that takes {most} at once")
    at = torch.arange(n_added, device=batch.reward.device)
    new, gone = ring.n_added - length + at, ring.n_added - n_slots + observations.history + at
    n_gone = starts(ring, gone, length, period).sum()
    after, _ = steps.add(ring, batch, observations)
    valid = starts(after, new, length, period)
    return after, Added(_rows(after, new).flatten(), valid.flatten(), _rows(after, gone).flatten(), n_gone)


def starts(ring: Steps, slots: Tensor, length: int, period: int) -> Tensor:
    """Which rows of slots start a sequence.

    Args:
        slots: `[T]` int64 consecutive ones, counted from the first one ever added, each of which is held with the one before it
            and the `length` behind it, or was never added.

    Returns:
        `[T, B]` bool.
    """
    window = slots[0] - 1 + torch.arange(len(slots) + length, device=slots.device)
    flags = ring.flags.memory["flags"][_rows(ring, window)]
    valid, first = (flags & VALID) > 0, (flags & FIRST) > 0
    count = valid.long().cumsum(0)
    whole = count[length:] - count[:-length] == length
    begins = first[1 : 1 + len(slots)] | valid[: len(slots)]  # the step before is known, or there is none
    return whole & begins & (slots % period == 0)[:, None]


def sequences(ring: Steps, rows: Tensor, length: int, carry: TensorDict, observations: Observations) -> Sequences:
    """The sequences `[length, M]` that start at rows `[M]`, which do; `carry` is `[M]`."""
    n_envs, total = len(ring.valid), len(ring.flags.memory["flags"])
    places = (rows + n_envs * torch.arange(length + 1, device=rows.device)[:, None]) % total
    it, before = places[:-1], (places[:-1] - n_envs) % total
    flags, content = ring.flags.memory["flags"][it], ring.content.memory
    first = (flags & FIRST) > 0
    zeros = tree.map(lambda x: torch.zeros_like(x[it]), (content["action"], content["reward"]))
    previous = tree.map(lambda x: x[before], (content["action"], content["reward"]))
    prev_action, prev_reward = tree.where(first, zeros, previous)
    return Sequences(
        obs=observations.get(ring, it),
        prev_action=prev_action,
        prev_reward=prev_reward,
        first=first,
        action=tree.index(content["action"], it),
        reward=content["reward"][it],
        terminated=(flags & TERMINATED) > 0,
        truncated=(flags & TRUNCATED) > 0,
        next_obs=observations.get(ring, places[-1]),
        carry=carry,
    )


def _rows(ring: Steps, slots: Tensor) -> Tensor:
    """`[T, B]` the rows of slots `[T]`."""
    n_envs = len(ring.valid)
    return (slots % steps.n_slots_of(ring))[:, None] * n_envs + torch.arange(n_envs, device=slots.device)
