"""What every algorithm here shares: the gradient step, numbers that follow a schedule, and the record."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import config as cfg
from purerl import optim, random
from purerl.base import Algorithm, Batch, EnvSpec
from purerl.transforms import vmap

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def scheduled(number: Tensor, schedule: str, progress: Tensor) -> Tensor:
    """A number `[]` after a part of the run, `progress` from 0 to 1."""
    return number * optim.SCHEDULES[schedule](progress)


def gradient(loss: Callable, unravel: Callable, params: Tensor, *args: Any) -> tuple[Tensor, TensorDict]:
    """The gradient `[P]` of `loss(unravel(params), *args) -> (loss, info)` at the flat parameters `[P]`, and the info.

    Between it and `gradient_step` is where a group of processes averages.
    """
    return torch.func.grad(lambda params: loss(unravel(params), *args), has_aux=True)(params)


def gradient_step(optimizer: optim.Optimizer, params: Tensor, opt: TensorDict, gradient: Tensor) -> tuple[Tensor, TensorDict]:
    """The flat parameters `[P]` and the optimizer's state after one step down the gradient `[P]`."""
    updates, opt = optimizer.update(gradient, opt, params)
    return optim.apply_updates(params, updates), opt


def check_minibatches(config: Any) -> None:
    """Raise a `ValueError` if a config's batch cannot be shared between its minibatches."""
    if config.n_envs * config.n_steps % config.n_minibatches:
        raise ValueError(
            f"{type(config).__name__}.n_minibatches = {config.n_minibatches} does not divide the batch of "
            f"n_envs * n_steps = {config.n_envs} * {config.n_steps} = {config.n_envs * config.n_steps}"
        )


def check_start(config: Any) -> None:
    """Raise a `ValueError` if a config's run would end before anything is learnt."""
    if config.learning_starts > config.total_steps:
        raise ValueError(
            f"{type(config).__name__}.learning_starts = {config.learning_starts} is more than total_steps = {config.total_steps}, "
            "so that nothing would be learnt"
        )


def check_batch(config: Any, batch: Batch) -> None:
    """Raise a `ValueError` if a batch is not the one `[n_steps, n_envs]` that an algorithm with a replay was made for."""
    found = n_steps, n_envs = batch.reward.shape
    if found != (config.n_steps, config.n_envs):
        raise ValueError(
            f"batch: {n_steps} steps of {n_envs} environments, but {type(config).__name__} has n_steps = {config.n_steps} and "
            f"n_envs = {config.n_envs}, which replay and replay ratio are made for"
        )


def averages(figures: Mapping[str, Tensor], learnt: Tensor) -> dict[str, Tensor]:
    """The means `[]` of figures `[N]` of gradient steps; NaN where there is nothing `learnt []` yet, so that they say nothing."""
    return {name: torch.where(learnt, x.mean(0), torch.nan) for name, x in figures.items()}


def minibatch_rows(keys: Tensor, n: int, n_minibatches: int) -> Tensor:
    """The rows `[E * M, n / M]` of M minibatches of n samples in each of E passes, one key `[E, 2]` a pass."""
    order = vmap(lambda key: random.permutation(key, n))(keys)
    return order.reshape(len(keys) * n_minibatches, -1)


def algorithm(spec: EnvSpec, config: Any, **functions: Any) -> Algorithm:
    """The record of an algorithm that was made from a config with `n_envs` and `n_steps`."""
    hyper = cfg.sweepable(config)
    return Algorithm(spec=spec, n_envs=config.n_envs, n_steps=config.n_steps, hyper=hyper, config=config, **functions)
