"""XQC (Palenicek et al. 2025): CrossQ, whose critics are built to be learnt easily.

Against SAC: the critics see both ends of transitions as one batch, by whose moments they are normalised, in the place of target
networks; they say probabilities of 101 returns, learnt by the cross-entropy; rewards are divided by the running deviation of the
return, or by as much as brings all returns between -5 and 5; the weights before a normalisation have the length one after each
gradient step; four layers of 512; two gradient steps of the critics for each environment step, one of the policy in three; one
learning rate. The policy is as SAC's, without normalisation; batches are normalised behind activations, as in CrossQ.
"""

from torch import nn

from purerl import config as cfg
from purerl.algos.sac import ONE_LR, SACConfig, make_sac, preset
from purerl.base import Algorithm, EnvSpec


def default_config(spec: EnvSpec) -> SACConfig:
    """Settings near the paper's, or for classic control those of fewer steps."""
    return preset(
        spec,
        batch_norm=True,
        unit_weights=True,
        n_atoms=101,
        normalize_reward=True,
        critic_hidden=(512, 512, 512, 512),
        utd=2.0,
        n_steps=3,
        policy_every=3,
        policy_updates=1,
        **ONE_LR,
    )


def make_xqc(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """XQC for boxes of actions: as `make_sac`, with another default config."""
    return make_sac(spec, cfg.given(config, default_config, spec), actor, critic)
