"""Proximal policy optimization (Schulman et al. 2017), with the details and the defaults of CleanRL."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import nets, optim, random, tree
from purerl.algos import common, fields
from purerl.algos import on_policy as op
from purerl.base import Algorithm, Batch, EnvSpec, Inputs
from purerl.losses import approximate_kl, clipped_surrogate_loss, clipped_value_loss, masked_mean, value_loss
from purerl.transforms import scan


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Defaults for discrete classic control; `default_config` has those for continuous actions and images. Floats can be swept."""

    n_envs: int = fields.n_envs(4)
    n_steps: int = fields.n_steps(128)
    epochs: int = fields.epochs(4)
    n_minibatches: int = fields.n_minibatches(4)
    lr: float = fields.lr(2.5e-4)
    gamma: float = fields.gamma(0.99)
    gae_lambda: float = fields.gae_lambda(0.95)
    clip: float = cfg.number(0.2, "how far the probability ratio may move")
    vf_coef: float = fields.vf_coef(0.5)
    ent_coef: float = fields.ent_coef(0.01)
    max_grad_norm: float = fields.max_grad_norm(0.5)
    adam_eps: float = cfg.number(1e-5, "Adam's epsilon")
    target_kl: float | None = cfg.number(None, "stop a batch's updates after an epoch beyond this KL divergence")
    normalize_advantage: bool = fields.normalize_advantage(True)
    clip_value: bool = cfg.setting(True, "clip the value's movement as the ratio's")
    total_steps: int = fields.total_steps(500_000)
    lr_schedule: str = fields.lr_schedule("linear")
    clip_schedule: str = cfg.option("constant", "the clip range over the run", tuple(optim.SCHEDULES))
    normalize_obs: bool = fields.normalize_obs(False)
    normalize_reward: bool = fields.normalize_reward(False)
    hidden: tuple[int, ...] = fields.hidden((64, 64))
    activation: str = fields.activation("tanh")
    shared_torso: bool = fields.shared_torso(False)
    precision: str = fields.precision("float32")
    init: str = fields.init("orthogonal")

    def __post_init__(self) -> None:
        cfg.check(self)
        common.check_minibatches(self)


def default_config(spec: EnvSpec) -> PPOConfig:
    """CleanRL's settings for an environment's spaces: `ppo.py`, `ppo_continuous_action.py` or `ppo_atari.py`."""
    if nets.is_image(spec.observation_space):
        return PPOConfig(n_envs=8, clip=0.1, shared_torso=True, total_steps=10_000_000)
    if isinstance(spec.action_space, gym.spaces.Box):
        return PPOConfig(
            n_envs=1,
            n_steps=2048,
            epochs=10,
            n_minibatches=32,
            lr=3e-4,
            ent_coef=0.0,
            total_steps=1_000_000,
            normalize_obs=nets.is_vector(spec.observation_space),
            normalize_reward=True,
        )
    return PPOConfig()


def gathering(samples: op.Samples) -> Callable[[Tensor], op.Samples]:
    """`take(rows [M]) -> samples [T, M]`: some of the sequences `[T, N]`."""

    def turn(x: Any) -> Any:
        return tree.map(lambda x: x.transpose(0, 1), x)

    s, inputs = samples, samples.inputs
    steps = (inputs.obs, s.action, s.log_prob, s.value, s.advantage, s.target, s.valid)
    packed, unpack = tree.pack((s.carry, turn(steps)), axes=1)  # one gather for all of them
    rare = turn((inputs.prev_action, inputs.prev_reward, inputs.first))  # apart: what a network does not read, is not gathered

    def take(rows: Tensor) -> op.Samples:
        carry, steps = unpack(tree.index(packed, rows))
        obs, *others = turn(steps)
        return op.Samples(Inputs(obs, *turn(tree.index(rare, rows))), carry, *others)

    return take


def make_ppo(spec: EnvSpec, config: PPOConfig | None = None, net: nn.Module | nets.Network | None = None) -> Algorithm:
    """PPO for discrete, multi-discrete and continuous actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> (params [N, P], value [N])`, on any device; only its shapes are used. Or a
            `Network` of one with memory, `(params [T, B, P], value [T, B])`, which draws its parameters itself.
            Then minibatches are of environments, each with its whole fragment.

    Raises:
        ValueError: an observation or action space that PPO cannot take, a network that returns something else, or one with memory
            whose environments cannot be shared between the minibatches.
    """
    config = cfg.given(config, default_config, spec)
    model = op.make_model(spec, config, net)
    if nets.has_memory(model.net) and config.n_envs % config.n_minibatches:
        raise ValueError(
            f"PPOConfig.n_minibatches = {config.n_minibatches} does not divide n_envs = {config.n_envs}, as it must where the "
            "network has a memory: a minibatch is then of environments, each with its whole fragment"
        )

    def optimizer(hyper: TensorDict, lr: float | Tensor = 0.0) -> optim.Optimizer:
        return optim.chain(optim.clip_by_global_norm(hyper["max_grad_norm"]), optim.adam(lr, eps=hyper["adam_eps"]))

    def loss(params: TensorDict, samples: op.Samples, hyper: TensorDict, clip: Tensor) -> tuple[Tensor, TensorDict]:
        dist_params, value = op.learn(model, params, samples)
        mean = partial(masked_mean, mask=samples.valid)
        advantage = op.advantages(config, samples)
        log_ratio = model.dist.log_prob(dist_params, samples.action) - samples.log_prob
        if config.clip_value:
            value_error = clipped_value_loss(value, samples.value, samples.target, clip)
        else:
            value_error = value_loss(value, samples.target)
        info = TensorDict(
            policy_loss=mean(clipped_surrogate_loss(log_ratio, advantage, clip)),
            value_loss=mean(value_error),
            entropy=mean(model.dist.entropy(dist_params)),
            approx_kl=mean(approximate_kl(log_ratio)),
            clip_fraction=mean((torch.abs(log_ratio.exp() - 1.0) > clip).float()),
        )
        return op.weighted_loss(info, hyper)

    def update(state: op.OnPolicyState, batch: Batch) -> tuple[op.OnPolicyState, TensorDict]:
        hyper, progress = state.hyper, state.steps / state.hyper["total_steps"]
        lr = common.scheduled(hyper["lr"], config.lr_schedule, progress)
        clip = common.scheduled(hyper["clip"], config.clip_schedule, progress)
        keys = random.split(state.key, 1 + config.epochs)
        state, samples = op.make_samples(model, config, state, batch)
        n, take = samples.valid.shape[1], gathering(samples)
        flat, unravel = tree.ravel(state.params)

        def minibatch(carry: tuple, xs: tuple) -> tuple[tuple, dict]:
            (params, opt, stopped), (rows, epoch_ends) = carry, xs
            gradient, info = common.gradient(loss, unravel, params, take(rows), hyper, clip)
            new_params, new_opt = common.gradient_step(optimizer(hyper, lr), params, opt, gradient)
            if config.target_kl is not None:
                new_params, new_opt = tree.where(stopped, (params, opt), (new_params, new_opt))
                stopped = stopped | (epoch_ends & (info["approx_kl"] > hyper["target_kl"]))
            return (new_params, new_opt, stopped), info.to_dict()

        rows = common.minibatch_rows(keys[1:], n, config.n_minibatches)
        epoch_ends = torch.arange(1, len(rows) + 1, device=keys.device) % config.n_minibatches == 0
        start = (flat, state.opt, torch.zeros((), dtype=torch.bool, device=keys.device))
        (flat, opt, _), info = scan(minibatch, start, (rows, epoch_ends))
        info = TensorDict({name: x.mean(0) for name, x in info.items()})
        return tree.replace(state, params=tree.copy(unravel(flat)), opt=opt, key=keys[0]), info.set("lr", lr)

    return op.algorithm(model, spec, config, optimizer, update)
