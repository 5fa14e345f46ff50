"""Networks of continuous control: values of pairs of observation and action, and what a policy makes of observations."""

import itertools
from collections.abc import Sequence

import gymnasium as gym
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl.nets.modules import ACTIVATIONS, UNNORMALIZED, Norm, linear, mlp, trunk

LOG_STD = (-5.0, 2.0)


class PairValues(nn.Module):
    """`size` numbers for each pair: `forward(x) -> [N, size]`, where `x` holds `obs` `[N, ...]`, `action` `[N, n]` and `noise`
    `[N, n_noise]`, uniform in [0, 1).

    Args:
        hidden, activation, norm: of the MLP behind the observation's trunk, which also sees the action.
        dropout: which part of each hidden layer is dropped, before it is normalised (Hiraoka et al. 2022).
    """

    def __init__(
        self,
        space: gym.Space,
        n: int,
        hidden: Sequence[int],
        activation: str,
        size: int = 1,
        norm: Norm = UNNORMALIZED,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout, self.widths = dropout, list(hidden) if dropout else []
        self.n_noise = sum(self.widths)
        self.trunk, width = trunk(space, norm=norm)
        self.mlp = mlp(width + n, hidden, activation, norm)
        self.out = linear([width + n, *hidden][-1], size, 1.0)

    def forward(self, x: TensorDict) -> Tensor:
        features, noises = torch.cat([self.trunk(x["obs"]), x["action"]], -1), iter(x["noise"].split(self.widths, -1))
        for layer in self.mlp:
            features = layer(features)
            if self.dropout and isinstance(layer, nn.Linear):
                features = torch.where(next(noises) < self.dropout, 0.0, features / (1.0 - self.dropout))
        out: Tensor = self.out(features)
        return out


class Affine(nn.Module):
    """`weight * x + bias` for each of `width` numbers: what follows a normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class BatchNormalizedPairs(nn.Module):
    """As `PairValues`, whose inputs and hidden layers, behind their activations, are normalised by the batch (Ioffe and Szegedy
    2015) or by statistics that are given: `forward(x) -> (out [N, size], statistics [2, W])`.

    Where `x` holds `statistics`, means and variances of the W numbers that are normalised, it computes with these, and else with
    the batch's, which it gives back. It keeps none itself.
    """

    EPSILON = 1e-3

    def __init__(self, space: gym.Space, n: int, hidden: Sequence[int], activation: str, size: int = 1) -> None:
        super().__init__()
        self.trunk, width = trunk(space)
        self.widths = [width + n, *hidden]
        self.norms = nn.ModuleList([Affine(width) for width in self.widths])
        self.hidden = nn.ModuleList([linear(a, b) for a, b in itertools.pairwise(self.widths)])
        self.activation, self.out = ACTIVATIONS[activation](), linear(self.widths[-1], size, 1.0)

    def forward(self, x: TensorDict) -> tuple[Tensor, Tensor]:
        features, found = torch.cat([self.trunk(x["obs"]), x["action"]], -1), []
        given = x["statistics"].split(self.widths, -1) if "statistics" in x else [None] * len(self.widths)
        for norm, layer, statistics in zip(self.norms, [*self.hidden, None], given, strict=True):
            of_batch = torch.stack([features.mean(0), features.var(0, unbiased=False)])
            found.append(of_batch)
            mean, variance = of_batch if statistics is None else statistics
            features = norm((features - mean) * torch.rsqrt(variance + self.EPSILON))
            features = features if layer is None else self.activation(layer(features))
        return self.out(features), torch.cat(found, -1)


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
