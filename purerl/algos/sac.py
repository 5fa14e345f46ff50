"""Soft actor-critic (Haarnoja et al. 2018), with a learnt temperature."""

import dataclasses
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import distributions, random
from purerl.algos import continuous as ac
from purerl.algos import ensembles, fields
from purerl.base import Algorithm, EnvSpec
from purerl.replay import Transitions


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Defaults for MuJoCo, CleanRL's `sac_continuous_action.py`; `default_config` has those for classic control. Floats can be
    swept."""

    n_envs: int = fields.n_envs(1)
    n_steps: int = fields.n_steps(4)
    capacity: int = fields.capacity(1_000_000)
    batch_size: int = fields.batch_size(256)
    utd: float = fields.utd(1.0)
    learning_starts: int = fields.learning_starts(5_000)
    actor_lr: float = fields.actor_lr(3e-4)
    critic_lr: float = fields.critic_lr(1e-3)
    adam_b1: float = fields.adam_b1(0.9)
    gamma: float = fields.gamma(0.99)
    n_step: int = fields.n_step(1)
    n_critics: int = fields.n_critics(2)
    subset: int = fields.subset(2)
    n_quantiles: int = fields.n_quantiles(0)
    n_dropped: int = fields.n_dropped(2)
    n_atoms: int = fields.critic_atoms(0)
    v_min: float = fields.v_min(-5.0)
    v_max: float = fields.v_max(5.0)
    belief: str = fields.belief("least")
    tau: float = fields.tau(0.005)
    target_every: int = fields.target_every(1)
    policy_every: int = fields.policy_every(2)
    policy_updates: int = fields.policy_updates(2)
    temperature: float = cfg.number(1.0, "weight of the entropy, at first")
    learn_temperature: bool = cfg.setting(True, "follow the target entropy with the temperature")
    target_entropy: float = cfg.number(-1.0, "entropy asked of a policy, for each axis of the action", low=-float("inf"))
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
        ensembles.check_subset(self)
        ensembles.check_head(self)


def default_config(spec: EnvSpec) -> SACConfig:
    """CleanRL's settings, or for classic control those of fewer steps."""
    return preset(spec)


ONE_LR = {"actor_lr": 3e-4, "critic_lr": 3e-4}
OFTEN = {"utd": 20.0, "n_steps": 1, "policy_every": 20, "policy_updates": 1}  # twenty gradient steps for each of the policy


def preset(spec: EnvSpec, **settings: Any) -> SACConfig:
    """Other settings than SAC's, where those for classic control, of fewer steps, say nothing else."""
    return SACConfig(**{**settings, **ac.CLASSIC.get(spec.id, {})})


def make_sac(
    spec: EnvSpec, config: SACConfig | None = None, actor: nn.Module | None = None, critic: nn.Module | None = None
) -> Algorithm:
    """SAC for boxes of actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        actor: your own module `forward(obs [N, ...]) -> [N, 2 n]`, means and logarithms of deviations before the squash.
        critic: your own module `forward(x) -> [N, 1]`, where `x` holds `obs` `[N, ...]` and `action` `[N, n]` in [-1, 1];
            or `[N, n_quantiles]`.

    Raises:
        ValueError: an action space that is no box with bounds, a network that returns something else, a replay that is too
            small, or steps that do not divide into gradient steps.
    """
    config = cfg.given(config, default_config, spec)
    model = ac.make_model(spec, config, ensembles.head(config), config.n_critics, True, actor, critic)
    n = model.actions.n
    dist = distributions.tanh_gaussian(-torch.ones(n), torch.ones(n))

    def ahead(params: TensorDict, target: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, Tensor]:
        """The policy's action and, as what makes a soft value of its value, what its probability costs (eq. 3)."""
        action, log_prob = dist.sample_and_log_prob(ac.policy(model, params["actor"], it.next_obs), _noise(key, it, n))
        return action, temperature.of(params, hyper) * log_prob

    def policy_loss(actor: TensorDict, params: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, TensorDict]:
        """Eq. 7 of "Soft Actor-Critic Algorithms and Applications": as much value and entropy as can be had."""
        noise_key, key = random.split(key)
        action, log_prob = dist.sample_and_log_prob(ac.policy(model, actor, it.obs), _noise(noise_key, it, n))
        q = model.critics.head.believe(model.critics.at(params, it.obs, action, key))
        loss = (temperature.of(params, hyper) * log_prob - q).mean()
        return loss, TensorDict(actor_loss=loss, entropy=-log_prob.mean())

    def excess(params: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> Tensor:
        _, log_prob = dist.sample_and_log_prob(ac.policy(model, params["actor"], it.obs), _noise(key, it, n))
        return -log_prob.mean() - n * hyper["target_entropy"]

    temperature = ac.temperature(config.learn_temperature, excess)
    return ac.make(
        spec,
        config,
        model,
        ac.Losses(
            ahead=ahead,
            steps={"actor": policy_loss, **temperature.steps},
            lrs={"actor": "actor_lr", "critics": "critic_lr", **temperature.lrs},
        ),
        explore=lambda params, normal, size: dist.sample(params, normal),
        best=dist.mode,
        targets=model.critics.targets,
        extra=temperature.extra,
    )


def _noise(key: Tensor, it: Transitions, n: int) -> Tensor:
    return random.normal(key, (len(it.reward), n))
