"""Soft actor-critic for discrete actions (Christodoulou 2019): expectations over all actions in the place of samples."""

import dataclasses
from typing import Any

import gymnasium as gym
import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import config as cfg
from purerl import distributions, nets, normalize, random, tree
from purerl.algos import continuous as ac
from purerl.algos import ensembles, fields
from purerl.algos import q_learning as ql
from purerl.base import Algorithm, EnvSpec, check_spec
from purerl.replay import Transitions
from purerl.spaces import blank_inputs


@dataclasses.dataclass(frozen=True)
class SACDiscreteConfig:
    """Defaults for classic control; `default_config` has CleanRL's `sac_atari.py` for images. Floats can be swept."""

    n_envs: int = fields.n_envs(1)
    n_steps: int = fields.n_steps(4)
    capacity: int = fields.capacity(100_000)
    batch_size: int = fields.batch_size(128)
    utd: float = fields.utd(0.25)
    learning_starts: int = fields.learning_starts(2_000)
    actor_lr: float = fields.actor_lr(1e-3)
    critic_lr: float = fields.critic_lr(1e-3)
    adam_b1: float = fields.adam_b1(0.9)
    gamma: float = fields.gamma(0.99)
    n_step: int = fields.n_step(1)
    n_critics: int = fields.n_critics(2)
    tau: float = fields.tau(0.01)
    target_every: int = fields.target_every(1)
    policy_every: int = fields.policy_every(1)
    policy_updates: int = fields.policy_updates(1)
    temperature: float = cfg.number(1.0, "weight of the entropy, at first")
    learn_temperature: bool = cfg.setting(True, "follow the target entropy with the temperature")
    target_entropy: float = cfg.number(0.3, "entropy asked of a policy, in parts of the greatest that there is", high=1.0)
    prioritized: bool = fields.prioritized(False)
    alpha: float = fields.alpha(0.6)
    beta: float = fields.beta(0.4)
    normalize_obs: bool = fields.normalize_obs(False)
    normalize_reward: bool = fields.normalize_reward(False)
    total_steps: int = fields.total_steps(500_000)
    hidden: tuple[int, ...] = fields.hidden((128, 128))
    activation: str = fields.activation("relu")
    norm: str = fields.norm("none")
    dropout: float = fields.dropout(0.0)
    frames: int = fields.frames(0)
    init: str = fields.init("torch")

    def __post_init__(self) -> None:
        cfg.check(self)


def default_config(spec: EnvSpec) -> SACDiscreteConfig:
    """Settings for an environment's observations: for images those of CleanRL's `sac_atari.py`."""
    if not nets.is_image(spec.observation_space):
        return SACDiscreteConfig()
    return SACDiscreteConfig(
        capacity=1_000_000,
        batch_size=64,
        learning_starts=20_000,
        actor_lr=3e-4,
        critic_lr=3e-4,
        tau=1.0,
        target_every=2000,
        target_entropy=0.89,
        total_steps=5_000_000,
        hidden=(512,),
        frames=4 if spec.id.startswith("ALE/") else 0,
    )


def make_sac_discrete(spec: EnvSpec, config: SACDiscreteConfig | None = None) -> Algorithm:
    """SAC for discrete actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.

    Raises:
        ValueError: an action space that is not discrete, a replay that is too small, or steps that do not divide into gradient
            steps.
    """
    config = cfg.given(config, default_config, spec)
    model = make_model(spec, config)
    dist = distributions.categorical(model.actions.n)
    greatest = torch.log(torch.tensor(float(model.actions.n)))

    def ahead(params: TensorDict, target: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, Tensor]:
        """The probabilities of all actions, and what they cost on average (eq. 10)."""
        log_probs = torch.log_softmax(ac.policy(model, params["actor"], it.next_obs), -1)
        return log_probs.exp(), temperature.of(params, hyper) * (log_probs.exp() * log_probs).sum(-1)

    def policy_loss(actor: TensorDict, params: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, TensorDict]:
        """Eq. 12, of the least of the critics."""
        log_probs = torch.log_softmax(ac.policy(model, actor, it.obs), -1)
        q = model.critics.at(params, it.obs, it.action, key).amin(0)
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        loss = -temperature.of(params, hyper) * entropy - (log_probs.exp() * q).sum(-1).mean()
        return loss, TensorDict(actor_loss=loss, entropy=entropy)

    def excess(params: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> Tensor:
        """Of eq. 11."""
        entropy = dist.entropy(ac.policy(model, params["actor"], it.obs)).mean()
        return entropy - hyper["target_entropy"] * greatest.to(entropy.device)

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
        explore=lambda logits, noise, size: dist.sample(logits, noise),
        best=dist.mode,
        targets=("critics",),
        extra=temperature.extra,
    )


def make_model(spec: EnvSpec, config: Any) -> ac.Model:
    """The networks of a config: a policy's logits `[M, A]`, and critics of all actions at once, `[N, M, A]`.

    Raises:
        ValueError: an action space that is not discrete, or observations that are to be standardized and are no box of floats.
    """
    check_spec(spec)
    space = spec.observation_space
    if not isinstance(spec.action_space, gym.spaces.Discrete):
        raise ValueError(f"action space: {spec.action_space} is not Discrete, which discrete SAC needs")
    if config.normalize_obs and not nets.is_vector(space):
        raise ValueError(f"normalize_obs = True needs a Box of floats as observation space, not {space}")
    n, norm, scheme = int(spec.action_space.n), nets.NORMS[config.norm], nets.SCHEMES[config.init]
    with torch.device("meta"):
        actor = nets.PolicyParameters(space, n, config.hidden, config.activation, False)
        critic = nets.PairValues(space, 0, config.hidden, config.activation, n, norm, config.dropout)
    inputs = tree.map(lambda x: x[None], blank_inputs(spec, 2))
    alone = TensorDict(obs=inputs.obs, action=torch.zeros(1, 2, 0), noise=torch.zeros(1, 2, critic.n_noise))
    net = nets.as_network(critic, scheme, lambda out, lead: None, tree.replace(inputs, obs=alone))

    def draw(key: Tensor) -> tuple[Tensor, Tensor]:
        keys = random.split(key)
        return random.randint(keys[1], (), 0, n), random.gumbel(keys[0], (n,))

    return ac.Model(
        actor=nets.as_network(actor, scheme, lambda out, lead: None, inputs),
        critics=of_all_actions(ensembles.apart(net, config.n_critics, critic.n_noise, ensembles.number(1))),
        actions=ac.Actions(n, draw, lambda action: action, lambda action: action),
        see=normalize.standardize if config.normalize_obs else lambda moments, obs: obs,
    )


def of_all_actions(critics: ensembles.Critics) -> ensembles.Critics:
    """Critics of all actions at once, which see no action: they learn of the one that was taken, from the expectation, over what is
    done next, of the least of them for each action."""

    def unseen(action: Tensor) -> Tensor:
        return torch.zeros(len(action), 0, device=action.device)

    def both(
        parts: TensorDict, params: TensorDict, target: TensorDict, it: Transitions, probs: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        out, next_out, kept = critics.both(parts, params, target, it.replace(action=unseen(it.action)), unseen(it.action), key)
        chosen = torch.stack([ql.take(q[..., None], it.action) for q in out])
        return chosen, (probs * next_out.amin(0)).sum(-1)[None, :, None], kept

    def at(params: TensorDict, obs: Any, action: Tensor, key: Tensor) -> Tensor:
        return critics.at(params, obs, unseen(action), key)

    return critics._replace(both=both, at=at)
