"""Recorded data as batches."""

from typing import Any

import gymnasium as gym
import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import spaces, tree
from purerl.base import Batch, EnvSpec, Inputs, check_spec
from purerl.spaces import to_tensors


def from_arrays(
    obs: Any,
    action: Any,
    reward: Any,
    terminated: Any,
    truncated: Any,
    next_obs: Any = None,
    spec: EnvSpec | None = None,
) -> Batch:
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
        spec: the environment's, to check all of it against; discrete actions, which are the environment's, are then counted from
            zero, as algorithms have them. Where it is omitted, they are taken as they are.

    Returns:
        `[T, 1]`, where T is N and the number of ends.

    Raises:
        ValueError: lengths differ, there is nothing to learn from, or something is not what the spec's spaces have.
    """
    if spec is not None:
        check_spec(spec)
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
    if spec is not None:
        _check_obs(obs, spec)
        action = _counted(action, spec)
        rows = (obs, action, *rows[2:])
    if len(set(lengths)) > 1:
        raise ValueError(
            f"from_arrays: the arrays have {lengths} steps, in the order of the arguments; all of them should have as many"
        )
    if following is None:
        rows = _known(obs, action, reward, terminated, truncated)
    if not len(rows[2]):
        raise ValueError("from_arrays: there is no step whose next observation is known")
    return _closed(*rows)


def _check_obs(obs: Any, spec: EnvSpec) -> None:
    """Raise a `ValueError` if observations `[N, ...]` are not of the spec's kind."""
    wanted = spaces.zero_obs(spec.observation_space, 1)
    ordered = tree.map(lambda x, y: y, wanted, obs)
    for x, y in zip(tree.leaves(wanted), tree.leaves(ordered), strict=True):
        if (x.shape[1:], x.dtype) != (y.shape[1:], y.dtype):
            raise ValueError(f"from_arrays: observations are {_kind(y)} a step, but {spec.id} has {_kind(x)}")


def _counted(action: Any, spec: EnvSpec) -> Any:
    """The environment's actions `[N, ...]`, the discrete ones counted from zero.

    Raises:
        ValueError: they are not the spec's.
    """
    space, wanted = spec.action_space, spaces.zero_actions(spec.action_space, 1)
    ordered, counted = tree.map(lambda x, y: y, wanted, action), []
    for (path, part), x, y in zip(spaces.parts(space), tree.leaves(wanted), tree.leaves(ordered), strict=True):
        name = spaces.field("action", path)
        if (x.shape[1:], x.dtype) != (y.shape[1:], y.dtype):
            raise ValueError(f"from_arrays: {name} is {_kind(y)} a step, but {spec.id} has {_kind(x)}")
        box = (part.low, part.high) if isinstance(part, gym.spaces.Box) else spaces.bounds(part)
        assert box is not None
        low, high = map(torch.as_tensor, box)
        outside = ~((y >= low) & (y <= high))
        if outside.any():
            where = int(outside.reshape(len(y), -1).any(1).nonzero()[0])
            raise ValueError(f"from_arrays: {name} of step {where} is {y[where].tolist()}, which is not in its space {part}")
        counted.append(y if isinstance(part, gym.spaces.Box) else y - low)
    return tree.unflatten(tree.structure(ordered), counted)


def _kind(x: Tensor) -> str:
    """What one of `[N, ...]` is."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}"


def _alike(obs: Any, next_obs: Any) -> Any:
    """The next observations, with what they consist of in the order of the observations.

    Raises:
        ValueError: they consist of something else.
    """
    ordered = tree.map(lambda x, y: y, obs, next_obs)
    for x, y in zip(tree.leaves(obs), tree.leaves(ordered), strict=True):
        if (x.shape[1:], x.dtype) != (y.shape[1:], y.dtype):
            raise ValueError(f"from_arrays: observations are {_kind(x)} a step, but next observations {_kind(y)}")
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
