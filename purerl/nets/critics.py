"""Networks of continuous control: values of pairs of observation and action, and what a policy makes of observations."""

from collections.abc import Sequence

import gymnasium as gym
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl.nets.modules import UNNORMALIZED, Norm, linear, mlp, trunk

LOG_STD = (-5.0, 2.0)


class PairValues(nn.Module):
    """`size` numbers for each pair: `forward(x) -> [N, size]`, where `x` holds `obs` `[N, ...]` and `action` `[N, n]`.

    Args:
        hidden, activation, norm: of the MLP behind the observation's trunk, which also sees the action.
    """

    def __init__(
        self, space: gym.Space, n: int, hidden: Sequence[int], activation: str, size: int = 1, norm: Norm = UNNORMALIZED
    ) -> None:
        super().__init__()
        self.trunk, width = trunk(space, norm=norm)
        self.mlp = mlp(width + n, hidden, activation, norm)
        self.out = linear([width + n, *hidden][-1], size, 1.0)

    def forward(self, x: TensorDict) -> Tensor:
        out: Tensor = self.out(self.mlp(torch.cat([self.trunk(x["obs"]), x["action"]], -1)))
        return out


class PolicyParameters(nn.Module):
    """`n` numbers an observation, `[N, ...] -> [N, n]`; with `deviations` the logarithms of `n` standard deviations behind them,
    `[N, 2 n]`, which tanh brings between the bounds `LOG_STD`.
    """

    def __init__(
        self, space: gym.Space, n: int, hidden: Sequence[int], activation: str, deviations: bool, norm: Norm = UNNORMALIZED
    ) -> None:
        super().__init__()
        self.trunk, width = trunk(space, norm=norm)
        self.mlp = mlp(width, hidden, activation, norm)
        self.mean = linear([width, *hidden][-1], n, 1.0)
        self.log_std = linear([width, *hidden][-1], n, 1.0) if deviations else None

    def forward(self, obs: Tensor | TensorDict) -> Tensor:
        features = self.mlp(self.trunk(obs))
        mean: Tensor = self.mean(features)
        if self.log_std is None:
            return mean
        low, high = LOG_STD
        return torch.cat([mean, low + (high - low) * 0.5 * (torch.tanh(self.log_std(features)) + 1.0)], -1)
