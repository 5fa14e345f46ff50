"""Networks of action values."""

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl.nets.modules import ACTIVATIONS, UNNORMALIZED, Norm, linear


class Noisy(nn.Module):
    """A linear layer whose weights are `mean + deviation * noise` (Fortunato et al. 2018), `[N, n_in] -> [N, n_out]`.

    The noise is factorised (section 3, b). Rows that share it, as those of a minibatch do, are multiplied with the noisy weights at
    once. Where each row has its own, as environments do that are acted in, the product of a row with its weights is that of the row
    times the noise of the inputs, times the noise of the outputs, and no row's weights are ever written down.

    Args:
        sigma: `sigma_0`, to which the deviations begin in proportion.
    """

    def __init__(self, n_in: int, n_out: int, gain: float = math.sqrt(2.0), sigma: float = 0.5) -> None:
        super().__init__()
        self.mean = linear(n_in, n_out, gain)
        self.deviation = nn.Linear(n_in, n_out)
        self.deviation.constant = sigma / math.sqrt(n_in)  # type: ignore[assignment]
        self.n_noise = n_in + n_out

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """`noise` is `[N, n_in + n_out]`, or `[1, n_in + n_out]` for all rows, standard normal; with zeros the layer computes its
        mean."""
        n_in = x.shape[-1]
        scaled = torch.sign(noise) * torch.sqrt(noise.abs())
        to_in, to_out = scaled[..., :n_in], scaled[..., n_in:]
        weight, bias = self.deviation.weight, self.deviation.bias
        if len(noise) < len(x):
            noisy = self.mean.weight + to_out.mT * to_in * weight
            return nn.functional.linear(x, noisy, self.mean.bias + to_out[0] * bias)
        return self.mean(x) + to_out * (nn.functional.linear(x * to_in, weight) + bias)


class Plain(nn.Module):
    """A linear layer in the place of a noisy one; it takes no noise."""

    def __init__(self, n_in: int, n_out: int, gain: float = math.sqrt(2.0)) -> None:
        super().__init__()
        self.mean, self.n_noise = linear(n_in, n_out, gain), 0

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.mean(x)


Layer = Callable[..., nn.Module]


def _n_noise(layer: nn.Module) -> int:
    n = layer.n_noise
    assert isinstance(n, int)
    return n


class Stream(nn.Module):
    """A hidden layer and an output layer, `[N, n_in] -> [N, n_out]`; only the output layer where `hidden` is 0."""

    def __init__(self, n_in: int, hidden: int, n_out: int, activation: str, layer: Layer, norm: Norm = UNNORMALIZED) -> None:
        super().__init__()
        widths = [n_in, hidden, n_out] if hidden else [n_in, n_out]
        gains = [math.sqrt(2.0), 1.0][-(len(widths) - 1) :]
        self.layers = nn.ModuleList([layer(a, b, gain) for a, b, gain in zip(widths, widths[1:], gains, strict=False)])
        self.behind = nn.Sequential(*(norm.vector(hidden) if hidden else []), ACTIVATIONS[activation]())
        self.n_noises = [_n_noise(part) for part in self.layers]
        self.n_noise = sum(self.n_noises)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        noises = noise.split(self.n_noises, -1)
        for part, its_noise in zip(self.layers[:-1], noises, strict=False):
            x = self.behind(part(x, its_noise))
        return self.layers[-1](x, noises[-1])


class ActionValues(nn.Module):
    """`size` numbers for each action: `forward(x) -> [N, A, size]`, where `x` holds `obs` `[N, ...]` and `noise` `[N, n_noise]`.

    Args:
        torso: from observations to features `[N, width]`.
        hidden: width of the last hidden layer; 0 for none.
        dueling: two streams, one for the state's value and one for the actions' advantages over their mean (Wang et al. 2016,
            eq. 9).
        layer: what makes the layers behind the torso: `Plain`, or `Noisy`.
        norm: what normalises the hidden layer.
    """

    def __init__(
        self,
        torso: nn.Module,
        width: int,
        hidden: int,
        n_actions: int,
        size: int,
        activation: str,
        dueling: bool,
        layer: Layer,
        norm: Norm = UNNORMALIZED,
    ) -> None:
        super().__init__()
        self.torso, self.shape = torso, (n_actions, size)
        self.advantage = Stream(width, hidden, n_actions * size, activation, layer, norm)
        self.value = Stream(width, hidden, size, activation, layer, norm) if dueling else None
        self.n_noise = self.advantage.n_noise + (self.value.n_noise if self.value is not None else 0)

    def forward(self, x: TensorDict) -> Tensor:
        features, noise = self.torso(x["obs"]), x["noise"]
        n = self.advantage.n_noise
        advantage = self.advantage(features, noise[..., :n]).unflatten(-1, self.shape)
        if self.value is None:
            return advantage
        value = self.value(features, noise[..., n:]).unsqueeze(-2)
        return value + advantage - advantage.mean(-2, keepdim=True)


def check_action_values(out: Tensor, lead: Sequence[int], n_actions: int, size: int) -> None:
    """Raise a `ValueError` if a network does not return `[*lead, n_actions, size]`."""
    wanted = (*lead, n_actions, size)
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted:
        found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"net: it returns {found} for {' x '.join(map(str, lead))} observations, but {list(wanted)} is wanted")
