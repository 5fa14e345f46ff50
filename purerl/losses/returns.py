"""Returns and advantages over fragments `[T, ...]`; every function takes any trailing axes.

`discount` is the factor between step `t` and `t + 1`: `gamma * (1 - terminated)`. `cut` marks the steps after
which the trace ends, because an episode ended there, whether by termination or truncation.
"""

import torch
from torch import Tensor


def linear_recurrence(a: Tensor, b: Tensor, x0: Tensor | None = None) -> Tensor:
    """Solve `x[t] = a[t] * x[t - 1] + b[t]` for all `t` in `log2(T)` whole-tensor steps (Hillis and Steele 1986).

    Args:
        a: `[T, ...]`.
        b: `[T, ...]`.
        x0: `[...]`, what precedes `x[0]`; zero when omitted.

    Returns:
        `x`, `[T, ...]`.
    """
    if x0 is not None:
        b = torch.cat([(a[0] * x0 + b[0])[None], b[1:]])
    step = 1
    while step < len(a):
        b = torch.cat([b[:step], b[step:] + a[step:] * b[:-step]])
        a = torch.cat([a[:step], a[step:] * a[:-step]])
        step *= 2
    return b


def reverse_linear_recurrence(a: Tensor, b: Tensor, last: Tensor | None = None) -> Tensor:
    """Solve `x[t] = a[t] * x[t + 1] + b[t]`, with `last` `[...]` as `x[T]` (zero when omitted)."""
    return linear_recurrence(a.flip(0), b.flip(0), last).flip(0)


def discounted_returns(rewards: Tensor, discounts: Tensor, bootstrap: Tensor) -> Tensor:
    """`G[t] = r[t] + discount[t] * G[t + 1]` with `G[T] = bootstrap` (Sutton and Barto 2018, eq. 3.9).

    Args:
        rewards: `[T, ...]`.
        discounts: `[T, ...]`.
        bootstrap: `[...]`.
    """
    return reverse_linear_recurrence(discounts, rewards, bootstrap)


def _check_values(rewards: Tensor, values: Tensor) -> None:
    wanted = (rewards.shape[0] + 1, *rewards.shape[1:])
    if values.shape != wanted:
        raise ValueError(f"values have shape {list(values.shape)}, but rewards {list(rewards.shape)} want {list(wanted)}")


def gae(rewards: Tensor, discounts: Tensor, cut: Tensor, values: Tensor, lambda_: float | Tensor) -> Tensor:
    """Generalised advantages `[T, ...]` (Schulman et al. 2016, eq. 16).

    Args:
        rewards: `[T, ...]`.
        discounts: `[T, ...]`, zero where terminated.
        cut: `[T, ...]` bool, terminated or truncated.
        values: `[T + 1, ...]`, of the observation before each step and after the last.
        lambda_: scalar.

    Raises:
        ValueError: the values' shape does not fit the rewards'.
    """
    _check_values(rewards, values)
    deltas = rewards + discounts * values[1:] - values[:-1]
    return reverse_linear_recurrence(torch.where(cut, 0.0, discounts * lambda_), deltas)


def td_lambda_returns(rewards: Tensor, discounts: Tensor, cut: Tensor, values: Tensor, lambda_: float | Tensor) -> Tensor:
    """TD(lambda) targets `[T, ...]` (Sutton and Barto 2018, eq. 12.18); arguments as `gae`."""
    return gae(rewards, discounts, cut, values, lambda_) + values[:-1]


def n_step_returns(rewards: Tensor, discounts: Tensor, cut: Tensor, values: Tensor, n: int) -> Tensor:
    """n-step targets `[T, ...]`: up to `n` rewards, fewer where the trace is cut or the fragment ends, then the value.

    Source: Sutton and Barto 2018, eq. 7.1. Arguments as `gae`; `n >= 1`.
    """
    _check_values(rewards, values)
    following = values[1:]
    for _ in range(n):
        targets = rewards + discounts * torch.where(cut, values[1:], following)
        following = torch.cat([targets[1:], values[-1:]])
    return targets


def vtrace(
    rewards: Tensor,
    discounts: Tensor,
    cut: Tensor,
    values: Tensor,
    log_rhos: Tensor,
    lambda_: float | Tensor = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace targets and policy-gradient advantages, each `[T, ...]` (Espeholt et al. 2018, eq. 1 and section 4.2).

    Args:
        rewards, discounts, cut, values: as `gae`.
        log_rhos: `[T, ...]`, log of target over behaviour probability.
        lambda_: trace decay.
        clip_rho, clip_c: the paper's rho-bar and c-bar.
    """
    _check_values(rewards, values)
    rhos = log_rhos.exp()
    clipped, c = rhos.clamp(max=clip_rho), lambda_ * rhos.clamp(max=clip_c)
    deltas = clipped * (rewards + discounts * values[1:] - values[:-1])
    errors = reverse_linear_recurrence(torch.where(cut, 0.0, discounts * c), deltas)
    targets = values[:-1] + errors
    following = torch.where(cut, values[1:], torch.cat([targets[1:], values[-1:]]))
    return targets, clipped * (rewards + discounts * following - values[:-1])
