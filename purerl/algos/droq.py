"""Dropout Q-functions (Hiraoka et al. 2022): what REDQ does with two critics in the place of ten.

Against SAC: the critics drop one hidden number in a hundred, in targets and policy losses too, and are normalised by layers,
which keeps them from overestimating; the policy raises their mean; twenty gradient steps of the critics for each environment
step and each step of the policy; one learning rate for all.
"""

from torch import nn

from purerl import config as cfg
from purerl.algos.sac import OFTEN, ONE_LR, SACConfig, make_sac, preset
from purerl.base import Algorithm, EnvSpec


def default_config(spec: EnvSpec) -> SACConfig:
    """The paper's settings, or for classic control those of fewer steps."""
    return preset(spec, dropout=0.01, norm="layer", belief="mean", **OFTEN, **ONE_LR)


def make_droq(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """DroQ for boxes of actions: as `make_sac`, with another default config."""
    return make_sac(spec, cfg.given(config, default_config, spec), actor, critic)
