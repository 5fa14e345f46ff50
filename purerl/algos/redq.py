"""Randomized ensembled double Q-learning (Chen et al. 2021): SAC that learns from every step twenty times.

Against SAC: ten critics, of which two, drawn anew for every gradient step, make the targets; the policy raises the mean of all
ten; twenty gradient steps of the critics for each environment step and each step of the policy; one learning rate for all.
"""

from torch import nn

from purerl import config as cfg
from purerl.algos.sac import OFTEN, ONE_LR, SACConfig, make_sac, preset
from purerl.base import Algorithm, EnvSpec


def default_config(spec: EnvSpec) -> SACConfig:
    """The paper's settings, or for classic control those of fewer steps."""
    return preset(spec, n_critics=10, subset=2, belief="mean", **OFTEN, **ONE_LR)


def make_redq(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """REDQ for boxes of actions: as `make_sac`, with another default config."""
    return make_sac(spec, cfg.given(config, default_config, spec), actor, critic)
