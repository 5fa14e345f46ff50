"""Replays as records of pure functions: a ring of steps, and what chooses among them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorClass
from torch import Tensor

from purerl import tree
from purerl.base import Batch, EnvSpec
from purerl.replay import prioritized, steps, uniform
from purerl.replay.steps import Added, Observations, Steps, Transitions
from purerl.spaces import blank_inputs


class ReplayState(TensorClass):
    """A replay. Its memory is *Donated*.

    Attributes:
        steps: what happened.
        index: what can be learnt from.
    """

    steps: Steps
    index: Any


class Sample(TensorClass):
    """What was drawn.

    Attributes:
        rows: `[M]` int64, for `update`.
        weights: `[M]` float32 importance weights, at most 1.
        transitions: `[M]`.
    """

    rows: Tensor
    weights: Tensor
    transitions: Transitions


class Replay(NamedTuple):
    """A replay apart from its state.

    Attributes:
        init: `init(device) -> state`, empty.
        add: `add(state, batch [T, B], alpha) -> state`; it *donates* the state.
        sample: `sample(state, key, n, gamma, beta) -> Sample [n]`; from an empty replay it is without meaning.
        update: `update(state, rows [M], errors [M], alpha) -> state`, of the rows as they were drawn; it *donates* the state.
        size: `size(state) -> []` int64, how many transitions can be learnt from.
    """

    init: Callable[[torch.device | None], ReplayState]
    add: Callable[[ReplayState, Batch, Tensor], ReplayState]
    sample: Callable[[ReplayState, Tensor, int, Tensor, Tensor], Sample]
    update: Callable[[ReplayState, Tensor, Tensor, Tensor], ReplayState]
    size: Callable[[ReplayState], Tensor]


class Chooser(NamedTuple):
    """What chooses among a replay's rows, apart from its state.

    Attributes:
        init: `init(device) -> index`, of no rows.
        add: `add(index, added, alpha) -> index`; it *donates* the index.
        sample: `sample(index, key, n, beta) -> (rows [n] int64, importance weights [n])`.
        update: `update(index, rows [M], errors [M], alpha) -> index`; it *donates* the index.
        size: `size(index) -> []` int64, how many rows there are to choose from.
    """

    init: Callable[[torch.device | None], Any]
    add: Callable[[Any, Added, Tensor], Any]
    sample: Callable[[Any, Tensor, int, Tensor], tuple[Tensor, Tensor]]
    update: Callable[[Any, Tensor, Tensor, Tensor], Any]
    size: Callable[[Any], Tensor]


def uniformly(n_rows: int) -> Chooser:
    """Every row that can be learnt from is as likely as any other; `alpha`, `beta` and errors play no part."""

    def sample(index: Any, key: Tensor, n: int, beta: Tensor) -> tuple[Tensor, Tensor]:
        return uniform.sample(index, key, n), torch.ones(n, device=key.device)

    return Chooser(
        init=lambda device: uniform.init(n_rows, device),
        add=lambda index, added, alpha: uniform.add(index, added),
        sample=sample,
        update=lambda index, rows, errors, alpha: index,
        size=lambda index: index.end - index.start,
    )


def by_priority(n_rows: int) -> Chooser:
    """A row is drawn in proportion to `priority ** alpha` (Schaul et al. 2016)."""
    return Chooser(
        init=lambda device: prioritized.init(n_rows, device),
        add=lambda index, added, alpha: prioritized.add(index, n_rows, added, alpha),
        sample=lambda index, key, n, beta: prioritized.sample(index, n_rows, key, n, beta),
        update=lambda index, rows, errors, alpha: prioritized.update(index, n_rows, rows, errors, alpha),
        size=lambda index: index.n_valid.clone(),
    )


def make_uniform(spec: EnvSpec, capacity: int, n_envs: int, n_step: int = 1, observations: Observations | None = None) -> Replay:
    """Every transition is as likely as any other; `alpha`, `beta` and errors play no part.

    Args:
        spec: of the environment, for the shapes.
        capacity: transitions that it holds at least.
        n_envs: environments of a batch.
        n_step: steps of a transition.
        observations: how they are stored; whole ones if omitted.

    Raises:
        ValueError: the capacity is no more than `n_step` steps of each environment, or more than int32 can number; a count is not
            an integer at least 1; or observations cannot be stored like that.
    """
    return _make(uniformly, spec, capacity, n_envs, n_step, observations or steps.whole())


def make_prioritized(
    spec: EnvSpec, capacity: int, n_envs: int, n_step: int = 1, observations: Observations | None = None
) -> Replay:
    """A transition is drawn in proportion to `priority ** alpha` (Schaul et al. 2016); otherwise as `make_uniform`.

    A new one has the highest priority so far, and `update` gives those that were learnt from the absolute error that they were
    found with. What is drawn often is corrected for by weights, wholly where `beta` is 1, which multiply the losses.
    """
    return _make(by_priority, spec, capacity, n_envs, n_step, observations or steps.whole())


def _make(
    make_chooser: Callable[[int], Chooser], spec: EnvSpec, capacity: int, n_envs: int, n_step: int, observations: Observations
) -> Replay:
    steps.check(spec, observations, capacity=capacity, n_envs=n_envs, n_step=n_step)
    if capacity <= n_step * n_envs:
        raise ValueError(
            f"capacity = {capacity} is not more than n_step * n_envs = {n_step} * {n_envs}, the steps of one transition"
        )
    chooser = make_chooser(steps.n_rows(capacity, n_envs, observations))

    def init(device: torch.device | None = None) -> ReplayState:
        return ReplayState(steps=init_steps(spec, capacity, n_envs, observations, device), index=chooser.init(device))

    def add(state: ReplayState, batch: Batch, alpha: Tensor) -> ReplayState:
        after, added = steps.add(state.steps, batch, observations)
        return ReplayState(steps=after, index=chooser.add(state.index, added, alpha))

    def sample(state: ReplayState, key: Tensor, n: int, gamma: Tensor, beta: Tensor) -> Sample:
        rows, weights = chooser.sample(state.index, key, n, beta)
        found = steps.transitions(state.steps, rows, n_step, gamma, observations)
        return Sample(rows=rows, weights=weights, transitions=found)

    def update(state: ReplayState, rows: Tensor, errors: Tensor, alpha: Tensor) -> ReplayState:
        return tree.replace(state, index=chooser.update(state.index, rows, errors, alpha))

    return Replay(init, add, sample, update, lambda state: chooser.size(state.index))


def init_steps(spec: EnvSpec, capacity: int, n_envs: int, observations: Observations, device: torch.device | None) -> Steps:
    """An empty ring for an environment's steps."""
    example = tree.map(lambda x: x[0].to(device), blank_inputs(spec, 1))
    return steps.init(example.obs, example.prev_action, capacity, n_envs, observations)
