"""Running moments of observations and of discounted returns."""

import torch
from tensordict import TensorClass
from torch import Tensor

from purerl.base import Batch
from purerl.losses.returns import linear_recurrence

_EPS = 1e-8


class Moments(TensorClass):
    """Mean and variance of what was seen so far.

    Attributes:
        average: `[*shape]` float32.
        variance: `[*shape]` float32, of the population.
        count: `[]` float32, a small prior at first.
    """

    average: Tensor
    variance: Tensor
    count: Tensor


def init_moments(shape: torch.Size, device: torch.device | None = None) -> Moments:
    """Mean 0, variance 1, with a prior weight of 1e-4."""
    ones = torch.ones(shape, device=device)
    return Moments(average=torch.zeros_like(ones), variance=ones, count=torch.full((), 1e-4, device=device))


def update_moments(moments: Moments, x: Tensor, mask: Tensor) -> Moments:
    """Merge the rows of `x` `[N, *shape]` for which `mask` `[N]` holds (Chan, Golub and LeVeque 1979)."""
    x = x.float()  # float16 would overflow in the square
    weight = mask.float().reshape(mask.shape + (1,) * (x.ndim - 1))
    n = weight.sum()
    mean = (x * weight).sum(0) / n.clamp(min=1.0)
    var = ((x - mean) ** 2 * weight).sum(0) / n.clamp(min=1.0)
    total = moments.count + n
    delta = mean - moments.average
    return Moments(
        average=moments.average + delta * n / total,
        variance=(moments.variance * moments.count + var * n + delta**2 * moments.count * n / total) / total,
        count=total,
    )


def standardize(moments: Moments, x: Tensor, clip: float = 10.0) -> Tensor:
    """`(x - mean) / std`, clipped."""
    return torch.clamp((x - moments.average) / torch.sqrt(moments.variance + _EPS), -clip, clip)


class RewardScale(TensorClass):
    """What rewards are divided by, made of the discounted return.

    Attributes:
        returns: `[B]` float32, the discounted sum of past rewards in each environment.
        moments: of those sums.
        largest: `[]` float32, the largest absolute value among them.
    """

    returns: Tensor
    moments: Moments
    largest: Tensor


def init_reward_scale(n_envs: int, device: torch.device | None = None) -> RewardScale:
    """No reward seen yet."""
    returns = torch.zeros(n_envs, device=device)
    return RewardScale(returns=returns, moments=init_moments(torch.Size(), device), largest=torch.zeros((), device=device))


def update_reward_scale(scale: RewardScale, batch: Batch, gamma: float | Tensor) -> RewardScale:
    """Take in a batch `[T, B]`.

    The discounted sums begin anew where an episode does, also where environments were begun anew between two batches.
    """
    go_on = (~batch.inputs.first).float()
    returns = linear_recurrence(gamma * go_on, batch.reward * batch.valid, scale.returns)
    return RewardScale(
        returns=returns[-1],
        moments=update_moments(scale.moments, returns.flatten(), batch.valid.flatten()),
        largest=torch.maximum(scale.largest, (returns * batch.valid).abs().amax()),
    )


def reward_unit(scale: RewardScale, bound: float = float("inf")) -> Tensor:
    """`[]` the standard deviation of the discounted return, as in Gymnasium's NormalizeReward; or more, so that no return seen so
    far is beyond `bound` such units (Lee et al. 2025, "Hyperspherical normalization for scalable deep RL")."""
    return torch.maximum(torch.sqrt(scale.moments.variance + _EPS), scale.largest / bound)


def scale_rewards(scale: RewardScale, batch: Batch, gamma: float | Tensor, clip: float = 10.0) -> tuple[RewardScale, Tensor]:
    """Take in a batch `[T, B]`, and return its rewards `[T, B]` divided by the standard deviation and clipped."""
    scale = update_reward_scale(scale, batch, gamma)
    return scale, torch.clamp(batch.reward / reward_unit(scale), -clip, clip)
