"""Policy-gradient and value losses, elementwise: reduce them as the algorithm says."""

import torch
from torch import Tensor


def policy_gradient_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """`-log pi(a|s) * A`, `[...]` (Sutton et al. 2000)."""
    return -log_prob * advantage


def _clip(x: Tensor, bound: float | Tensor) -> Tensor:
    bound = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    return torch.minimum(torch.maximum(x, -bound), bound)


def clipped_surrogate_loss(log_ratio: Tensor, advantage: Tensor, clip: float | Tensor) -> Tensor:
    """PPO's clipped surrogate, negated, `[...]` (Schulman et al. 2017, eq. 7).

    Args:
        log_ratio: `[...]`, new minus old log-probability.
        advantage: `[...]`.
        clip: the paper's epsilon.
    """
    ratio = log_ratio.exp()
    clipped = 1.0 + _clip(ratio - 1.0, clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, `[...]`.

    Raises:
        ValueError: the shapes differ, which would broadcast to wrong numbers.
    """
    if value.shape != target.shape:
        raise ValueError(f"value has shape {list(value.shape)}, but its target {list(target.shape)}")
    return 0.5 * (value - target) ** 2


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | Tensor) -> Tensor:
    """The larger of the plain loss and that of a value kept within `clip` of the old one, `[...]` (OpenAI baselines' PPO2)."""
    kept = old_value + _clip(value - old_value, clip)
    return torch.maximum(value_loss(value, target), value_loss(kept, target))


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """The k3 estimate of KL(old || new) from old samples, `[...]`: `(r - 1) - log r` (Schulman 2020, "Approximating KL")."""
    return log_ratio.exp() - 1.0 - log_ratio


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `x` where `mask`; zero when nothing is."""
    weight = mask.to(x.dtype)
    return (x * weight).sum() / weight.sum().clamp(min=1.0)
