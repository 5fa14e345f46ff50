"""Truncated quantile critics (Kuznetsov et al. 2020): SAC with the return's distribution, cut at its upper end.

Against SAC: two critics of 25 quantiles each, which learn by the quantile Huber loss; of the 50 that they say of what comes
next the four highest are dropped, in the place of the least of two numbers; the policy raises the mean of all; one learning
rate.
"""

from torch import nn

from purerl import config as cfg
from purerl.algos.sac import ONE_LR, SACConfig, make_sac, preset
from purerl.base import Algorithm, EnvSpec


def default_config(spec: EnvSpec) -> SACConfig:
    """The settings of Stable-Baselines3's port, or for classic control those of fewer steps."""
    return preset(spec, n_quantiles=25, n_dropped=2, **ONE_LR)


def make_tqc(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """TQC for boxes of actions: as `make_sac`, with another default config."""
    return make_sac(spec, cfg.given(config, default_config, spec), actor, critic)
