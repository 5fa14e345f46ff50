"""Replays as records of pure functions: a ring of steps, and what chooses among them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorClass
from torch import Tensor

from purerl import tree
from purerl.base import Batch, EnvSpec
from purerl.replay import prioritized, steps, uniform
from purerl.replay.steps import Observations, Steps, Transitions
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
        update: `update(state, rows [M], errors [M], alpha) -> state`; it *donates* the state.
        size: `size(state) -> []` int64, how many transitions can be learnt from.
    """

    init: Callable[[torch.device | None], ReplayState]
    add: Callable[[ReplayState, Batch, Tensor], ReplayState]
    sample: Callable[[ReplayState, Tensor, int, Tensor, Tensor], Sample]
    update: Callable[[ReplayState, Tensor, Tensor, Tensor], ReplayState]
    size: Callable[[ReplayState], Tensor]


def make_uniform(spec: EnvSpec, capacity: int, n_envs: int, n_step: int = 1, observations: Observations | None = None) -> Replay:
    """Every transition is as likely as any other; `alpha`, `beta` and errors play no part.

    Args:
        spec: of the environment, for the shapes.
        capacity: transitions that it holds at least.
        n_envs: environments of a batch.
        n_step: steps of a transition.
        observations: how they are stored; whole ones if omitted.

    Raises:
        ValueError: the capacity is less than one step of each environment, or no more than `n_step` of each.
    """
    observations = observations or steps.whole()
    init_steps, n_rows = _storage(spec, capacity, n_envs, n_step, observations)

    def init(device: torch.device | None = None) -> ReplayState:
        return ReplayState(steps=init_steps(device), index=uniform.init(n_rows, device))

    def add(state: ReplayState, batch: Batch, alpha: Tensor) -> ReplayState:
        after, added = steps.add(state.steps, batch, observations)
        return ReplayState(steps=after, index=uniform.add(state.index, added))

    def sample(state: ReplayState, key: Tensor, n: int, gamma: Tensor, beta: Tensor) -> Sample:
        rows = uniform.sample(state.index, key, n)
        found = steps.transitions(state.steps, rows, n_step, gamma, observations)
        return Sample(rows=rows, weights=torch.ones(n, device=rows.device), transitions=found)

    def update(state: ReplayState, rows: Tensor, errors: Tensor, alpha: Tensor) -> ReplayState:
        return state

    return Replay(init, add, sample, update, lambda state: state.index.end - state.index.start)


def make_prioritized(
    spec: EnvSpec, capacity: int, n_envs: int, n_step: int = 1, observations: Observations | None = None
) -> Replay:
    """A transition is drawn in proportion to `priority ** alpha` (Schaul et al. 2016); otherwise as `make_uniform`."""
    observations = observations or steps.whole()
    init_steps, n_rows = _storage(spec, capacity, n_envs, n_step, observations)

    def init(device: torch.device | None = None) -> ReplayState:
        return ReplayState(steps=init_steps(device), index=prioritized.init(n_rows, device))

    def add(state: ReplayState, batch: Batch, alpha: Tensor) -> ReplayState:
        after, added = steps.add(state.steps, batch, observations)
        return ReplayState(steps=after, index=prioritized.add(state.index, n_rows, added, alpha))

    def sample(state: ReplayState, key: Tensor, n: int, gamma: Tensor, beta: Tensor) -> Sample:
        rows, weights = prioritized.sample(state.index, n_rows, key, n, beta)
        found = steps.transitions(state.steps, rows, n_step, gamma, observations)
        return Sample(rows=rows, weights=weights, transitions=found)

    def update(state: ReplayState, rows: Tensor, errors: Tensor, alpha: Tensor) -> ReplayState:
        return tree.replace(state, index=prioritized.update(state.index, n_rows, rows, errors, alpha))

    return Replay(init, add, sample, update, lambda state: state.index.n_valid.clone())


def _storage(
    spec: EnvSpec, capacity: int, n_envs: int, n_step: int, observations: Observations
) -> tuple[Callable[[torch.device | None], Steps], int]:
    """What makes the ring, and how many rows it has."""
    if capacity <= n_step * n_envs:
        raise ValueError(
            f"capacity = {capacity} is not more than n_step * n_envs = {n_step} * {n_envs}, the steps of one transition"
        )

    def init(device: torch.device | None) -> Steps:
        example = tree.map(lambda x: x[0], blank_inputs(spec, 1))
        obs, action = [tree.map(lambda x: x.to(device), part) for part in (example.obs, example.prev_action)]
        return steps.init(obs, action, capacity, n_envs, observations)

    return init, steps.n_rows(capacity, n_envs, observations)
