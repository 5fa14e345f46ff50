"""Recorded data as batches."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import tree
from purerl.base import Batch, Inputs
from purerl.spaces import to_tensors


def from_arrays(obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_obs: Any = None) -> Batch:
    """One stream of recorded steps, such as D4RL's (Fu et al. 2020: `observations, actions, rewards, terminals, timeouts,
    next_observations`), as a batch.

    An episode ends where `terminated` or `truncated` says so, where `next_obs` is not the observation that follows (the stream
    was cut or shuffled there), and with the last step; where it did not terminate, it counts as truncated. Behind each end comes
    one more step, with `valid=False`, that holds the final observation, as everywhere (`purerl.base`). A replay with a capacity of
    the batch's `T` and one environment holds all of it, and takes it at once.

    Args:
        obs: `[N, *obs_shape]` arrays or tensors of any nesting; float64 becomes float32.
        action: `[N, *action_shape]`; whole numbers become int64, others float32.
        reward: `[N]`.
        terminated, truncated: `[N]` bool.
        next_obs: as `obs`, after each step. Where it is omitted, final observations are not known: a step that was truncated is
            then not learnt from, but the observation before it is the final one, to bootstrap from; of one that terminated, where
            nothing is bootstrapped, it is given as the final one once more.

    Returns:
        `[T, 1]`, where T is N and the number of ends.

    Raises:
        ValueError: lengths differ, or there is nothing to learn from.
    """
    obs, action = to_tensors(obs), to_tensors(action)
    action = tree.map(lambda x: x.float() if x.is_floating_point() else x.long(), action)
    reward = torch.as_tensor(reward).float()
    terminated, truncated = torch.as_tensor(terminated).bool(), torch.as_tensor(truncated).bool()
    following = None if next_obs is None else to_tensors(next_obs)
    for name, x in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        if x.ndim != 1:
            raise ValueError(f"from_arrays: {name} has shape {list(x.shape)}, but one number a step, [N], is wanted")
    if following is not None:
        following = _alike(obs, following)
    rows = (obs, action, reward, terminated, truncated, *([] if following is None else [following]))
    lengths = [len(x) for x in tree.leaves(rows)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"from_arrays: the arrays have {lengths} steps, in the order of the arguments; all of them should have as many"
        )
    if following is None:
        rows = _known(obs, action, reward, terminated, truncated)
    if not len(rows[2]):
        raise ValueError("from_arrays: there is no step whose next observation is known")
    return _closed(*rows)


def _alike(obs: Any, next_obs: Any) -> Any:
    """The next observations, with what they consist of in the order of the observations.

    Raises:
        ValueError: they consist of something else.
    """
    ordered = tree.map(lambda x, y: y, obs, next_obs)
    for x, y in zip(tree.leaves(obs), tree.leaves(ordered), strict=True):
        if (x.shape[1:], x.dtype) != (y.shape[1:], y.dtype):
            kinds = [f"{str(z.dtype).removeprefix('torch.')} {list(z.shape[1:])}" for z in (x, y)]
            raise ValueError(f"from_arrays: observations are {kinds[0]} a step, but next observations {kinds[1]}")
    return ordered


def _known(obs: Any, action: Any, reward: Tensor, terminated: Tensor, truncated: Tensor) -> tuple:
    """The steps whose next observation is found in the stream, or not needed, and that observation."""
    n = len(reward)
    at = torch.arange(n)
    lost = ~terminated & (truncated | (at == n - 1))
    before_lost = torch.cat([lost[1:], lost.new_zeros(1)])
    truncated = truncated | (before_lost & ~terminated)
    following = tree.index(obs, torch.where(terminated, at, (at + 1).clamp(max=n - 1)))
    return tree.index((obs, action, reward, terminated, truncated, following), ~lost)


def _closed(obs: Any, action: Any, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Any) -> Batch:
    """The batch of steps with their next observations: after each end one more step, which holds the final one."""
    goes_on = torch.zeros_like(terminated)
    pairs = zip(tree.leaves(obs), tree.leaves(next_obs), strict=True)
    goes_on[:-1] = torch.stack([(x[1:] == y[:-1]).flatten(1).all(1) for x, y in pairs]).all(0)
    ends = terminated | truncated | ~goes_on
    source = torch.arange(len(reward)).repeat_interleave(1 + ends)
    closes = torch.cat([ends.new_zeros(1), source[1:] == source[:-1]])

    def seen(before: Any) -> Any:
        """Of the step before, zero where an episode begins."""
        return tree.map(lambda x: torch.where(first.reshape(-1, *[1] * (x.ndim - 1)), 0, x.roll(1, 0)), before)

    first = closes.roll(1)  # the last step closes
    action, reward = tree.index(action, source), torch.where(closes, 0.0, reward[source])
    inputs = Inputs(
        obs=tree.where(closes, tree.index(next_obs, source), tree.index(obs, source)),
        prev_action=seen(action),
        prev_reward=seen(reward),
        first=first,
    )
    steps = (inputs, action, reward, terminated[source], (truncated | (ends & ~terminated))[source], ~closes)
    inputs, action, reward, terminated, truncated, valid = tree.map(lambda x: x[:, None], steps)
    after = tree.index(inputs, -1)
    return Batch(
        inputs=inputs,
        action=action,
        reward=reward,
        terminated=terminated & valid,
        truncated=truncated & valid,
        valid=valid,
        extras=TensorDict(),
        carry=TensorDict(),
        last=tree.map(torch.zeros_like, after),
        episode=TensorDict(),
    )
