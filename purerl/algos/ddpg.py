"""Deep deterministic policy gradient (Lillicrap et al. 2016)."""

import dataclasses
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl.algos import continuous as ac
from purerl.algos import ensembles, fields
from purerl.base import Algorithm, EnvSpec
from purerl.replay import Transitions


@dataclasses.dataclass(frozen=True)
class DDPGConfig:
    """Defaults for MuJoCo, CleanRL's `ddpg_continuous_action.py`; `default_config` has those for classic control. Floats can be
    swept."""

    n_envs: int = fields.n_envs(1)
    n_steps: int = fields.n_steps(4)
    capacity: int = fields.capacity(1_000_000)
    batch_size: int = fields.batch_size(256)
    utd: float = fields.utd(1.0)
    learning_starts: int = fields.learning_starts(25_000)
    actor_lr: float = fields.actor_lr(3e-4)
    critic_lr: float = fields.critic_lr(3e-4)
    adam_b1: float = fields.adam_b1(0.9)
    gamma: float = fields.gamma(0.99)
    n_step: int = fields.n_step(1)
    tau: float = fields.tau(0.005)
    target_every: int = fields.target_every(2)
    policy_every: int = fields.policy_every(2)
    policy_updates: int = fields.policy_updates(1)
    noise_start: float = fields.noise_start(0.1)
    noise_end: float = fields.noise_end(0.1)
    prioritized: bool = fields.prioritized(False)
    alpha: float = fields.alpha(0.6)
    beta: float = fields.beta(0.4)
    normalize_obs: bool = fields.normalize_obs(False)
    normalize_reward: bool = fields.normalize_reward(False)
    total_steps: int = fields.total_steps(1_000_000)
    hidden: tuple[int, ...] = fields.hidden((256, 256))
    critic_hidden: tuple[int, ...] = fields.critic_hidden(())
    activation: str = fields.activation("relu")
    norm: str = fields.norm("none")
    dropout: float = fields.dropout(0.0)
    batch_norm: bool = fields.batch_norm(False)
    unit_weights: bool = fields.unit_weights(False)
    frames: int = fields.frames(0)
    init: str = fields.init("torch")

    def __post_init__(self) -> None:
        cfg.check(self)


def default_config(spec: EnvSpec) -> DDPGConfig:
    """CleanRL's settings, or for classic control those of fewer steps."""
    return DDPGConfig(**ac.CLASSIC.get(spec.id, {}))


def make_ddpg(
    spec: EnvSpec, config: DDPGConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """DDPG for boxes of actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        actor: your own module `forward(obs [N, ...]) -> [N, n]`, to which tanh is applied.
        critic: your own module `forward(x) -> [N, 1]`, where `x` holds `obs` `[N, ...]` and `action` `[N, n]` in [-1, 1].

    Raises:
        ValueError: an action space that is no box with bounds, a network that returns something else, a replay that is too
            small, or steps that do not divide into gradient steps.
    """
    config = cfg.given(config, default_config, spec)
    model = ac.make_model(spec, config, ensembles.number(1), 1, False, actor, critic)

    def ahead(params: TensorDict, target: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, Tensor]:
        """What the target policy does (eq. 5)."""
        return torch.tanh(ac.policy(model, target["actor"], it.next_obs)), torch.zeros_like(it.reward)

    return ac.make(
        spec,
        config,
        model,
        ac.Losses(
            ahead=ahead,
            steps={"actor": ac.deterministic_policy_loss(model)},
            lrs={"actor": "actor_lr", "critics": "critic_lr"},
        ),
        explore=ac.explore_around,
        best=torch.tanh,
        targets=("actor", *model.critics.targets),
    )
