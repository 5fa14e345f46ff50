"""Dropout Q-functions (Hiraoka et al. 2022): what REDQ does with two critics in the place of ten.

Against SAC: the critics drop one hidden number in a hundred, in targets and policy losses too, and are normalised by layers,
which keeps them from overestimating; the policy raises their mean; twenty gradient steps of the critics for each environment
step and each step of the policy; one learning rate for all.
"""

from torch import nn

from purerl import config as cfg
from purerl.algos import continuous as ac
from purerl.algos.sac import SACConfig, make_sac
from purerl.base import Algorithm, EnvSpec


def default_config(spec: EnvSpec) -> SACConfig:
    """The paper's settings, or for classic control those of fewer steps."""
    settings = {
        "dropout": 0.01,
        "norm": "layer",
        "belief": "mean",
        "utd": 20.0,
        "n_steps": 1,
        "policy_every": 20,
        "policy_updates": 1,
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
    }
    return SACConfig(**{**settings, **ac.CLASSIC.get(spec.id, {})})


def make_droq(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """DroQ for boxes of actions: as `make_sac`, with another default config."""
    return make_sac(spec, cfg.given(config, default_config, spec), actor, critic)
