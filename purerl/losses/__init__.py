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
from purerl.losses.values import (
    categorical_loss,
    categorical_mean,
    categorical_projection,
    huber_loss,
    quantile_huber_loss,
    rescale,
    squared_loss,
    unscale,
)

__all__ = [
    "approximate_kl",
    "categorical_loss",
    "categorical_mean",
    "categorical_projection",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "discounted_returns",
    "gae",
    "huber_loss",
    "linear_recurrence",
    "masked_mean",
    "n_step_returns",
    "policy_gradient_loss",
    "quantile_huber_loss",
    "rescale",
    "reverse_linear_recurrence",
    "squared_loss",
    "td_lambda_returns",
    "unscale",
    "value_loss",
    "vtrace",
]
