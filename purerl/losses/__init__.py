"""Loss kernels, pure functions of tensors."""

from purerl.losses.policy import (
    approximate_kl,
    clipped_surrogate_loss,
    clipped_value_loss,
    masked_mean,
    policy_gradient_loss,
    value_loss,
)
from purerl.losses.returns import (
    discounted_returns,
    gae,
    linear_recurrence,
    n_step_returns,
    reverse_linear_recurrence,
    td_lambda_returns,
    vtrace,
)

__all__ = [
    "approximate_kl",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "discounted_returns",
    "gae",
    "linear_recurrence",
    "masked_mean",
    "n_step_returns",
    "policy_gradient_loss",
    "reverse_linear_recurrence",
    "td_lambda_returns",
    "value_loss",
    "vtrace",
]
