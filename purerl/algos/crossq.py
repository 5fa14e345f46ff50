"""CrossQ (Bhatt et al. 2024): SAC without target networks, of critics that are normalised by batches.

Against SAC: the critics see both ends of transitions as one batch, by whose moments they are normalised, which keeps them from
diverging without targets; while the policy learns they are normalised by running moments, as part of the state. They are eight
times as wide; Adam forgets its mean sooner; one higher learning rate for all; one step of the policy in three. The paper's
policy is normalised too, and its normalisation is corrected towards the running moments; here neither is.
"""

from torch import nn

from purerl import config as cfg
from purerl.algos.sac import SACConfig, make_sac, preset
from purerl.base import Algorithm, EnvSpec


def default_config(spec: EnvSpec) -> SACConfig:
    """The paper's settings, or for classic control those of fewer steps."""
    return preset(
        spec,
        batch_norm=True,
        critic_hidden=(2048, 2048),
        actor_lr=1e-3,
        critic_lr=1e-3,
        adam_b1=0.5,
        n_steps=3,
        policy_every=3,
        policy_updates=1,
    )


def make_crossq(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """CrossQ for boxes of actions: as `make_sac`, with another default config."""
    return make_sac(spec, cfg.given(config, default_config, spec), actor, critic)
