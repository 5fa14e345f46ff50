"""Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016), with the defaults of Stable-Baselines3's A2C."""

import dataclasses
from functools import partial

from tensordict import TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import nets, optim, tree
from purerl.algos import common, fields
from purerl.algos import on_policy as op
from purerl.base import Algorithm, Batch, EnvSpec
from purerl.losses import masked_mean, policy_gradient_loss, value_loss

_DIRECTIONS = {
    "rmsprop": optim.scale_by_rms,
    "rmsprop_tf": optim.scale_by_rms_tf,
    "adam": lambda decay, eps: optim.scale_by_adam(eps=eps),
}


@dataclasses.dataclass(frozen=True)
class A2CConfig:
    """Floats can be swept. With `gae_lambda = 1` the targets are n-step returns, n up to the end of the fragment."""

    n_envs: int = fields.n_envs(8)
    n_steps: int = fields.n_steps(5)
    lr: float = fields.lr(7e-4)
    gamma: float = fields.gamma(0.99)
    gae_lambda: float = fields.gae_lambda(1.0)
    vf_coef: float = fields.vf_coef(0.5)
    ent_coef: float = fields.ent_coef(0.0)
    max_grad_norm: float = fields.max_grad_norm(0.5)
    rms_decay: float = cfg.number(0.99, "decay of RMSProp's mean square", high=1.0)
    opt_eps: float = cfg.number(1e-5, "the optimizer's epsilon")
    optimizer: str = cfg.option("rmsprop", "which direction to descend", tuple(_DIRECTIONS))
    normalize_advantage: bool = fields.normalize_advantage(False)
    total_steps: int = fields.total_steps(500_000)
    lr_schedule: str = fields.lr_schedule("linear")
    normalize_obs: bool = fields.normalize_obs(False)
    normalize_reward: bool = fields.normalize_reward(False)
    hidden: tuple[int, ...] = fields.hidden((64, 64))
    activation: str = fields.activation("tanh")
    shared_torso: bool = fields.shared_torso(False)
    precision: str = fields.precision("float32")
    init: str = fields.init("orthogonal")

    def __post_init__(self) -> None:
        cfg.check(self)


def default_config(spec: EnvSpec) -> A2CConfig:
    """The preset for an environment's spaces."""
    if nets.is_image(spec.observation_space):
        return A2CConfig(n_envs=16, ent_coef=0.01, shared_torso=True, optimizer="rmsprop_tf", total_steps=10_000_000)
    return A2CConfig()


def make_a2c(spec: EnvSpec, config: A2CConfig | None = None, net: nn.Module | nets.Network | None = None) -> Algorithm:
    """A2C for discrete, multi-discrete and continuous actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> (params [N, P], value [N])`, on any device; only its shapes are used. Or a
            `Network` of one with memory, `(params [T, B, P], value [T, B])`, which draws its parameters itself.

    Raises:
        ValueError: an observation or action space that A2C cannot take, or a network that returns something else.
    """
    config = cfg.given(config, default_config, spec)
    model = op.make_model(spec, config, net)

    def optimizer(hyper: TensorDict, lr: float | Tensor = 0.0) -> optim.Optimizer:
        direction = _DIRECTIONS[config.optimizer](hyper["rms_decay"], hyper["opt_eps"])
        return optim.chain(optim.clip_by_global_norm(hyper["max_grad_norm"]), direction, optim.scale(-lr))

    def loss(params: TensorDict, samples: op.Samples, hyper: TensorDict) -> tuple[Tensor, TensorDict]:
        dist_params, value = op.learn(model, params, samples)
        mean = partial(masked_mean, mask=samples.valid)
        advantage = op.advantages(config, samples)
        log_prob = model.dist.log_prob(dist_params, samples.action)
        info = TensorDict(
            policy_loss=mean(policy_gradient_loss(log_prob, advantage)),
            value_loss=mean(value_loss(value, samples.target)),
            entropy=mean(model.dist.entropy(dist_params)),
        )
        return op.weighted_loss(info, hyper)

    def update(state: op.OnPolicyState, batch: Batch) -> tuple[op.OnPolicyState, TensorDict]:
        hyper = state.hyper
        lr = common.scheduled(hyper["lr"], config.lr_schedule, state.steps / hyper["total_steps"])
        state, samples = op.make_samples(model, config, state, batch)
        flat, unravel = tree.ravel(state.params)
        gradient, info = common.gradient(loss, unravel, flat, samples, hyper)
        flat, opt = common.gradient_step(optimizer(hyper, lr), flat, state.opt, gradient)
        return tree.replace(state, params=tree.copy(unravel(flat)), opt=opt), info.set("lr", lr)

    return op.algorithm(model, spec, config, optimizer, update)
