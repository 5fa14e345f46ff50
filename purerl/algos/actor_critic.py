"""What A2C and PPO share: the state, acting, and the advantages of a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import distributions, nets, random, tree
from purerl.base import Algorithm, Batch, EnvSpec, Inputs
from purerl.distributions import Distribution
from purerl.losses import gae, masked_mean
from purerl.normalize import Moments, RewardScale, init_moments, init_reward_scale, scale_rewards, standardize, update_moments
from purerl.optim import Optimizer, apply_updates
from purerl.spaces import zero_obs

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ActorCriticState(TensorClass):
    """Everything that changes.

    Attributes:
        params: the network's, nested as its module is.
        opt: the optimizer's state over the flattened parameters `[P]`.
        hyper: float32 `[]` leaves, the config's fields that shape no program.
        key: `[2]` int32.
        steps: `[]` int64, environment steps learnt from.
        obs_moments: of the observations.
        reward_scale: of the rewards.
    """

    params: TensorDict
    opt: TensorDict
    hyper: TensorDict
    key: Tensor
    steps: Tensor
    obs_moments: Moments
    reward_scale: RewardScale


class Policy(NamedTuple):
    """A network and the distribution its first output parametrises.

    Attributes:
        net: `forward(obs [N, ...]) -> (params [N, P], value [N])`, to act with.
        learning_net: the same, of the same parameters, to learn with.
        dist: over actions.
        see: `see(state, obs) -> obs`, the observation as the network gets it.
    """

    net: nn.Module
    learning_net: nn.Module
    dist: Distribution
    see: Callable[[ActorCriticState, Any], Any]


def make_policy(spec: EnvSpec, config: Any, net: nn.Module | None) -> Policy:
    """The config's network, or the user's, on the meta device.

    Raises:
        ValueError: an observation or action space that the algorithm cannot take, or a network that returns something else.
    """
    dist = distributions.for_space(spec.action_space)
    learning_net = net
    if net is None:
        settings = spec.observation_space, spec.action_space, config.hidden, config.activation, config.shared_torso
        with torch.device("meta"):
            net, learning_net = (nets.ActorCritic(*settings, PRECISIONS[name]) for name in ("float32", config.precision))
    if config.normalize_obs and not nets.is_vector(spec.observation_space):
        raise ValueError(f"normalize_obs = True needs a Box of floats as observation space, not {spec.observation_space}")
    obs = zero_obs(spec.observation_space, 2)
    with torch.no_grad():  # what it returns is checked before any work is done
        nets.actor_critic(net, nets.blank(net), obs.float() if config.normalize_obs else obs, dist.n_params)
    see = (lambda state, obs: standardize(state.obs_moments, obs)) if config.normalize_obs else (lambda state, obs: obs)
    return Policy(net, learning_net or net, dist, see)


def init(policy: Policy, spec: EnvSpec, config: Any, optimizer: Callable[[TensorDict], Optimizer], key: Tensor) -> ActorCriticState:
    """The state before the first step."""
    key, net_key = random.split(key)
    params = nets.init(policy.net, net_key, nets.SCHEMES[config.init])
    hyper = TensorDict({name: torch.tensor(x, device=key.device) for name, x in cfg.sweepable(config).items()})
    obs_shape = torch.Size(spec.observation_space.shape or ()) if config.normalize_obs else torch.Size()
    return ActorCriticState(
        params=params,
        opt=optimizer(hyper).init(tree.ravel(params)[0]),
        hyper=hyper,
        key=key,
        steps=torch.zeros((), dtype=torch.int64, device=key.device),
        obs_moments=init_moments(obs_shape, key.device),
        reward_scale=init_reward_scale(config.n_envs if config.normalize_reward else 0, key.device),
    )


def forward(policy: Policy, net: nn.Module, params: TensorDict, obs: Any) -> tuple[Tensor, Tensor]:
    """The action distribution's parameters `[N, P]` and the value `[N]` of observations `[N, ...]`."""
    return nets.actor_critic(net, params, obs, policy.dist.n_params)


def act(policy: Policy, state: ActorCriticState, inputs: Inputs, carry: TensorDict, noise: Tensor) -> tuple:
    """Sample an action; `log_prob` goes along."""
    dist_params, _ = forward(policy, policy.net, state.params, policy.see(state, inputs.obs))
    action = policy.dist.sample(dist_params, noise)
    return action, TensorDict(log_prob=policy.dist.log_prob(dist_params, action)), carry


def mode(policy: Policy, state: ActorCriticState, inputs: Inputs, carry: TensorDict) -> tuple[Tensor, TensorDict]:
    """The likeliest action."""
    dist_params, _ = forward(policy, policy.net, state.params, policy.see(state, inputs.obs))
    return policy.dist.mode(dist_params), carry


def estimate(policy: Policy, config: Any, state: ActorCriticState, batch: Batch) -> tuple[ActorCriticState, TensorDict]:
    """The batch as samples to learn from, and the state with what it learnt of observations and rewards.

    Returns:
        The state, and `obs`, `action`, `log_prob`, `value`, `advantage`, `target`, `valid`, each `[T * B, ...]`.
    """
    n_steps, n_envs = batch.reward.shape
    if config.normalize_reward and n_envs != config.n_envs:
        raise ValueError(
            f"batch: {n_envs} environments, but n_envs = {config.n_envs} in the config, which normalize_reward follows"
        )
    all_obs = policy.see(state, tree.map(lambda x, last: torch.cat([x, last[None]]), batch.inputs.obs, batch.last.obs))
    _, values = forward(policy, policy.learning_net, state.params, tree.map(lambda x: x.flatten(0, 1), all_obs))
    values = values.reshape(n_steps + 1, n_envs)

    rewards, reward_scale = batch.reward, state.reward_scale
    if config.normalize_reward:
        reward_scale, rewards = scale_rewards(state.reward_scale, batch, state.hyper["gamma"])
    discounts = state.hyper["gamma"] * (~batch.terminated).float()
    advantages = gae(rewards, discounts, batch.terminated | batch.truncated, values, state.hyper["gae_lambda"])

    obs_moments = state.obs_moments
    if config.normalize_obs:
        obs_moments = update_moments(obs_moments, batch.inputs.obs.flatten(0, 1), batch.inputs.first.new_ones(n_steps * n_envs))
    samples = TensorDict(
        obs=tree.map(lambda x: x[:-1], all_obs),
        action=batch.action,
        log_prob=batch.extras["log_prob"],
        value=values[:-1],
        advantage=advantages,
        target=advantages + values[:-1],
        valid=batch.valid,
    )
    steps = state.steps + n_steps * n_envs
    state = tree.replace(state, obs_moments=obs_moments, reward_scale=reward_scale, steps=steps)
    return state, tree.map(lambda x: x.flatten(0, 1), samples)


def advantages(config: Any, samples: TensorDict) -> Tensor:
    """The samples' advantages `[N]`, standardized over the valid ones if the config says so."""
    advantage = samples["advantage"]
    if not config.normalize_advantage:
        return advantage
    centred = advantage - masked_mean(advantage, samples["valid"])
    return centred / (torch.sqrt(masked_mean(centred**2, samples["valid"])) + 1e-8)


def descend(loss: Callable, optimizer: Optimizer, unravel: Callable, params: Tensor, opt: TensorDict, *args: Any) -> tuple:
    """One gradient step on the flat parameters `[P]`: `(params, opt, info)`, where `loss(params, *args) -> (loss, info)`."""
    grads, info = torch.func.grad(lambda p: loss(unravel(p), *args), has_aux=True)(params)
    updates, opt = optimizer.update(grads, opt, params)
    return apply_updates(params, updates), opt, info


def algorithm(policy: Policy, spec: EnvSpec, config: Any, optimizer: Callable, update: Callable) -> Algorithm:
    """The record of an actor-critic whose `update` is given."""
    return Algorithm(
        init=partial(init, policy, spec, config, optimizer),
        act=partial(act, policy),
        update=update,
        mode=partial(mode, policy),
        draw=policy.dist.draw,
        carry=lambda n_envs: TensorDict(),
        spec=spec,
        config=config,
    )
