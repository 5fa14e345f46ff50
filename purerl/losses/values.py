"""Losses of action values: one number, a distribution over fixed returns, or quantiles of the return."""

import torch
from torch import Tensor


def squared_loss(error: Tensor) -> Tensor:
    """Half the square, `[...]`."""
    return 0.5 * error**2


def huber_loss(error: Tensor, delta: float = 1.0) -> Tensor:
    """Half the square up to `delta` and linear beyond, `[...]` (Huber 1964): what clips the error term in Mnih et al. 2015."""
    size = error.abs()
    inside = torch.clamp(size, max=delta)
    return 0.5 * inside**2 + delta * (size - inside)


def categorical_projection(support: Tensor, probs: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The distribution of `reward + discount * Z`, brought back to the support of Z (Bellemare et al. 2017, algorithm 1).

    The mass of a return between two atoms is shared between them, more for the nearer one; beyond the ends it goes to the last one.

    Args:
        support: `[N]` returns, equally far apart, rising.
        probs: `[..., N]` of Z.
        reward, discount: `[...]`.

    Returns:
        `[..., N]` probabilities; on a GPU the order in which masses are added, and so the last bit, is not fixed.
    """
    returns = (reward[..., None] + discount[..., None] * support).clamp(support[0], support[-1])
    position = (returns - support[0]) / (support[1] - support[0])
    below = position.long().clamp(0, len(support) - 2)  # where a reward is NaN too
    share = position - below
    empty = torch.zeros_like(probs)
    return empty.scatter_add(-1, below, probs * (1.0 - share)).scatter_add(-1, below + 1, probs * share)


def categorical_mean(support: Tensor, logits: Tensor) -> Tensor:
    """`[...]` the mean of the distribution over a support `[N]` that logits `[..., N]` stand for."""
    return (torch.softmax(logits, -1) * support).sum(-1)


def categorical_loss(logits: Tensor, probs: Tensor) -> Tensor:
    """The cross-entropy of a distribution `[..., N]` under logits `[..., N]`, `[...]` (Bellemare et al. 2017, section 4)."""
    return -(probs * torch.log_softmax(logits, -1)).sum(-1)


def quantile_huber_loss(quantiles: Tensor, returns: Tensor, kappa: float = 1.0) -> Tensor:
    """How far quantiles are from those of a sample of returns, `[...]` (Dabney et al. 2018, eq. 10).

    Args:
        quantiles: `[..., N]`, of the levels `(i + 1/2) / N`.
        returns: `[..., M]`.
        kappa: how large an error is quadratic; it is linear beyond, and all of it is divided by this.

    Returns:
        The sum over quantiles of the mean over returns.
    """
    n = quantiles.shape[-1]
    levels = (torch.arange(n, device=quantiles.device) + 0.5) / n
    error = returns[..., None, :] - quantiles[..., :, None]
    fixed = error.detach()
    inside = fixed.clamp(-kappa, kappa)
    slope = (levels[:, None] - (fixed < 0).float()).abs() * inside / kappa  # the derivative, which autograd need not find out
    return (slope * (error - 0.5 * inside)).mean(-1).sum(-1)


def rescale(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """`sign(x) (sqrt(|x| + 1) - 1) + epsilon x`, which evens out the sizes of returns (Pohlen et al. 2018, proposition A.2)."""
    return torch.sign(x) * (torch.sqrt(x.abs() + 1.0) - 1.0) + epsilon * x


def unscale(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """The inverse of `rescale`."""
    root = torch.sqrt(1.0 + 4.0 * epsilon * (x.abs() + 1.0 + epsilon))
    return torch.sign(x) * (((root - 1.0) / (2.0 * epsilon)) ** 2 - 1.0)
