"""Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016), with the defaults of Stable-Baselines3's A2C."""

import dataclasses
from functools import partial

from tensordict import TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import nets, optim, tree
from purerl.algos import actor_critic as ac
from purerl.base import Algorithm, Batch, EnvSpec, check_spec
from purerl.losses import masked_mean, policy_gradient_loss, value_loss

_DIRECTIONS = {
    "rmsprop": optim.scale_by_rms,
    "rmsprop_tf": optim.scale_by_rms_tf,
    "adam": lambda decay, eps: optim.scale_by_adam(eps=eps),
}


@dataclasses.dataclass(frozen=True)
class A2CConfig:
    """Floats can be swept. With `gae_lambda = 1` the targets are n-step returns, n up to the end of the fragment."""

    n_envs: int = cfg.count(8, "parallel environments a seed")
    n_steps: int = cfg.count(5, "steps in each environment between updates")
    lr: float = cfg.number(7e-4, "learning rate")
    gamma: float = cfg.number(0.99, "discount", high=1.0)
    gae_lambda: float = cfg.number(1.0, "trace decay of the advantage estimate", high=1.0)
    vf_coef: float = cfg.number(0.5, "weight of the value loss")
    ent_coef: float = cfg.number(0.0, "weight of the entropy bonus")
    max_grad_norm: float = cfg.number(0.5, "global gradient norm above which gradients are scaled down")
    rms_decay: float = cfg.number(0.99, "decay of RMSProp's mean square", high=1.0)
    opt_eps: float = cfg.number(1e-5, "the optimizer's epsilon")
    optimizer: str = cfg.option("rmsprop", "which direction to descend", tuple(_DIRECTIONS))
    normalize_advantage: bool = cfg.setting(False, "standardize advantages in each batch")
    total_steps: int = cfg.length(500_000, "environment steps over which the schedule runs")
    lr_schedule: str = cfg.option("linear", "the learning rate over the run", tuple(optim.SCHEDULES))
    normalize_obs: bool = cfg.setting(False, "standardize observations by running moments")
    normalize_reward: bool = cfg.setting(False, "scale rewards by the running deviation of the return")
    hidden: tuple[int, ...] = cfg.counts((64, 64), "widths of the hidden layers")
    activation: str = cfg.option("tanh", "of the hidden layers", tuple(nets.ACTIVATIONS))
    shared_torso: bool = cfg.setting(False, "one torso for policy and value")
    precision: str = cfg.option("float32", "of the convolutions in updates", tuple(ac.PRECISIONS))
    init: str = cfg.option("orthogonal", "initialisation of the weights", tuple(nets.SCHEMES))

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
    check_spec(spec)
    config = config or default_config(spec)
    model = ac.make_model(spec, config, net)

    def optimizer(hyper: TensorDict, lr: float | Tensor = 0.0) -> optim.Optimizer:
        direction = _DIRECTIONS[config.optimizer](hyper["rms_decay"], hyper["opt_eps"])
        return optim.chain(optim.clip_by_global_norm(hyper["max_grad_norm"]), direction, optim.scale(-lr))

    def loss(params: TensorDict, samples: ac.Samples, hyper: TensorDict) -> tuple[Tensor, TensorDict]:
        dist_params, value = ac.learn(model, params, samples)
        mean = partial(masked_mean, mask=samples.valid)
        advantage = ac.advantages(config, samples)
        log_prob = model.dist.log_prob(dist_params, samples.action)
        info = TensorDict(
            policy_loss=mean(policy_gradient_loss(log_prob, advantage)),
            value_loss=mean(value_loss(value, samples.target)),
            entropy=mean(model.dist.entropy(dist_params)),
        )
        total = info["policy_loss"] - hyper["ent_coef"] * info["entropy"] + hyper["vf_coef"] * info["value_loss"]
        return total, info.set("loss", total)

    def update(state: ac.ActorCriticState, batch: Batch) -> tuple[ac.ActorCriticState, TensorDict]:
        hyper = state.hyper
        lr = hyper["lr"] * optim.SCHEDULES[config.lr_schedule](state.steps / hyper["total_steps"])
        state, samples = ac.estimate(model, config, state, batch)
        flat, unravel = tree.ravel(state.params)
        flat, opt, info = ac.descend(loss, optimizer(hyper, lr), unravel, flat, state.opt, samples, hyper)
        return tree.replace(state, params=tree.own(unravel(flat)), opt=opt), info.set("lr", lr)

    return ac.algorithm(model, spec, config, optimizer, update)
