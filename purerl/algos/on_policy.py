"""What the on-policy algorithms share: the state, acting, and a batch's samples with their advantages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import distributions, nets, random, tree
from purerl.algos import common
from purerl.algos.common import PRECISIONS
from purerl.base import Algorithm, Batch, EnvSpec, Inputs
from purerl.distributions import Distribution
from purerl.losses import gae, masked_mean
from purerl.normalize import Moments, RewardScale, init_moments, init_reward_scale, scale_rewards, standardize, update_moments
from purerl.optim import Optimizer
from purerl.spaces import blank_inputs


class OnPolicyState(TensorClass):
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


class Acting(TensorClass):
    """What acting needs of the state."""

    params: TensorDict
    obs_moments: Moments


class Samples(TensorClass):
    """What is learnt from: sequences `[T, N]`, N of T steps each.

    Attributes:
        inputs: as the network gets them.
        carry: `[N]` its memory before the first step.
        action, log_prob, value: of the behaviour policy.
        advantage, target: estimated.
        valid: False for what is not to be learnt from.
    """

    inputs: Inputs
    carry: TensorDict
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    valid: Tensor


class Model(NamedTuple):
    """A network and the distribution its first output parametrises.

    Attributes:
        net: its output is (action parameters `[T, B, P]`, value `[T, B]`); to act with.
        learning_net: the same, of the same parameters, to learn with.
        dist: over actions.
        preprocess: `preprocess(moments, inputs) -> inputs`, as the network gets them.
    """

    net: nets.Network
    learning_net: nets.Network
    dist: Distribution
    preprocess: Callable[[Moments, Inputs], Inputs]


def make_model(spec: EnvSpec, config: Any, net: nn.Module | nets.Network | None) -> Model:
    """The config's network, or the user's.

    Raises:
        ValueError: an observation or action space that the algorithm cannot take, or a network that returns something else.
    """
    dist = distributions.for_space(spec.action_space)
    modules: Sequence[Any] = (net, net)
    if net is None:
        settings = spec.observation_space, spec.action_space, config.hidden, config.activation, config.shared_torso
        with torch.device("meta"):
            modules = [nets.ActorCritic(*settings, PRECISIONS[name]) for name in ("float32", config.precision)]
    if config.normalize_obs and not nets.is_vector(spec.observation_space):
        raise ValueError(f"normalize_obs = True needs a Box of floats as observation space, not {spec.observation_space}")
    preprocess = standardize_obs if config.normalize_obs else lambda moments, inputs: inputs
    example = preprocess(init_moments(torch.Size()), tree.map(lambda x: x[None], blank_inputs(spec, 2)))
    scheme, check = nets.SCHEMES[config.init], partial(nets.check_actor_critic, n_params=dist.n_params)
    to_act, to_learn = (nets.as_network(x, scheme, check, example) for x in modules)
    return Model(to_act, to_learn, dist, preprocess)


def standardize_obs(moments: Moments, inputs: Inputs) -> Inputs:
    """The inputs with observations of mean 0 and variance 1."""
    return tree.replace(inputs, obs=standardize(moments, inputs.obs))


def init(
    model: Model,
    spec: EnvSpec,
    config: Any,
    optimizer: Callable[[TensorDict], Optimizer],
    key: Tensor,
    hyper: Mapping[str, Tensor] = {},
) -> OnPolicyState:
    """The state before the first step."""
    key, net_key = random.split(key)
    params = model.net.init(net_key)
    numbers = cfg.start(cfg.sweepable(config), hyper, key.device)
    obs_shape = torch.Size(spec.observation_space.shape or ()) if config.normalize_obs else torch.Size()
    return OnPolicyState(
        params=params,
        opt=optimizer(numbers).init(tree.ravel(params)[0]),
        hyper=numbers,
        key=key,
        steps=torch.zeros((), dtype=torch.int64, device=key.device),
        obs_moments=init_moments(obs_shape, key.device),
        reward_scale=init_reward_scale(config.n_envs if config.normalize_reward else 0, key.device),
    )


def acting(state: OnPolicyState) -> Acting:
    """What acting needs of the state."""
    return Acting(params=state.params, obs_moments=state.obs_moments)


def act(model: Model, acting: Acting, inputs: Inputs, carry: TensorDict, noise: Tensor) -> tuple[Any, TensorDict, TensorDict]:
    """Sample an action; `log_prob` goes along."""
    (dist_params, _), carry = nets.step(model.net, acting.params, model.preprocess(acting.obs_moments, inputs), carry)
    action = model.dist.sample(dist_params, noise)
    return action, TensorDict(log_prob=model.dist.log_prob(dist_params, action)), carry


def mode(model: Model, acting: Acting, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
    """The likeliest action."""
    (dist_params, _), carry = nets.step(model.net, acting.params, model.preprocess(acting.obs_moments, inputs), carry)
    return model.dist.mode(dist_params), carry


def learn(model: Model, params: TensorDict, samples: Samples) -> tuple[Tensor, Tensor]:
    """The action distribution's parameters `[T, N, P]` and the value `[T, N]`, to be differentiated."""
    (dist_params, value), _ = model.learning_net.forward(params, samples.inputs, samples.carry)
    return dist_params, value


def make_samples(model: Model, config: Any, state: OnPolicyState, batch: Batch) -> tuple[OnPolicyState, Samples]:
    """The state with what it learnt of observations and rewards, and the batch `[T, B]` as sequences to learn from.

    They are B sequences `[T, B]` where the network has a memory, and else T * B of one step, `[1, T * B]`.
    """
    n_steps, n_envs = batch.reward.shape
    if config.normalize_reward and n_envs != config.n_envs:
        raise ValueError(
            f"batch: {n_envs} environments, but n_envs = {config.n_envs} in the config, which normalize_reward follows"
        )
    whole = tree.map(lambda x, last: torch.cat([x, last[None]]), batch.inputs, batch.last)
    inputs = model.preprocess(state.obs_moments, whole)
    (_, values), _ = model.learning_net.forward(state.params, inputs, batch.carry)

    rewards, reward_scale = batch.reward, state.reward_scale
    if config.normalize_reward:
        reward_scale, rewards = scale_rewards(state.reward_scale, batch, state.hyper["gamma"])
    discounts = state.hyper["gamma"] * (~batch.terminated).float()
    advantages = gae(rewards, discounts, batch.terminated | batch.truncated, values, state.hyper["gae_lambda"])

    obs_moments = state.obs_moments
    if config.normalize_obs:
        obs_moments = update_moments(obs_moments, batch.inputs.obs.flatten(0, 1), batch.inputs.first.new_ones(n_steps * n_envs))
    samples = Samples(
        inputs=tree.map(lambda x: x[:-1], inputs),
        carry=batch.carry,
        action=batch.action,
        log_prob=batch.extras["log_prob"],
        value=values[:-1],
        advantage=advantages,
        target=advantages + values[:-1],
        valid=batch.valid,
    )
    steps = state.steps + n_steps * n_envs
    if not nets.has_memory(model.net):
        samples = tree.map(lambda x: x.flatten(0, 1)[None], samples)
    return tree.replace(state, obs_moments=obs_moments, reward_scale=reward_scale, steps=steps), samples


def advantages(config: Any, samples: Samples) -> Tensor:
    """The samples' advantages `[T, N]`, standardized over the valid ones if the config says so."""
    if not config.normalize_advantage:
        return samples.advantage
    centred = samples.advantage - masked_mean(samples.advantage, samples.valid)
    return centred / (torch.sqrt(masked_mean(centred**2, samples.valid)) + 1e-8)


def weighted_loss(info: TensorDict, hyper: TensorDict) -> tuple[Tensor, TensorDict]:
    """The sum of the parts of an actor-critic's loss, `policy_loss`, `value_loss` and `entropy`, and the info with it."""
    loss = info["policy_loss"] - hyper["ent_coef"] * info["entropy"] + hyper["vf_coef"] * info["value_loss"]
    return loss, info.set("loss", loss)


def algorithm(model: Model, spec: EnvSpec, config: Any, optimizer: Callable, update: Callable) -> Algorithm:
    """The record of an actor-critic whose `update` is given."""
    return common.algorithm(
        spec,
        config,
        init=partial(init, model, spec, config, optimizer),
        act=partial(act, model),
        update=update,
        mode=partial(mode, model),
        draw=model.dist.draw,
        carry=model.net.carry,
        acting=acting,
    )
