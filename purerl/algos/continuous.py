"""What DDPG, TD3 and SAC share: the state, networks of a box of actions, and learning from a replay, critics first.

Networks see and give actions in [-1, 1]; the environment gets them in its own bounds, and the replay keeps what it got.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import nets, normalize, optim, random, replay, tree
from purerl.algos import common, ensembles
from purerl.algos.ensembles import Critics, Head
from purerl.algos.q_learning import has_enough, make_replay
from purerl.base import Algorithm, Batch, EnvSpec, Inputs, check_spec
from purerl.normalize import Moments, RewardScale
from purerl.replay import ReplayState, Transitions
from purerl.spaces import blank_inputs
from purerl.transforms import scan

CLASSIC: dict[str, dict[str, Any]] = {  # of fewer steps
    "Pendulum-v1": {"learning_starts": 500, "actor_lr": 1e-3, "capacity": 100_000},
    "MountainCarContinuous-v0": {"learning_starts": 2_000, "capacity": 100_000},
}


class ContinuousState(TensorClass):
    """Everything that changes.

    Attributes:
        params: under `actor` and `critics` those of the networks, nested as their modules are, the critics' with a leading axis
            `[N, ...]`; and whatever else an algorithm learns.
        target: of the networks that estimate what comes next, some of the same names; the same as `params` at the start.
        opt: of each name in `params` the optimizer's state over its flattened parameters.
        moments: of the observations; empty unless they are standardized.
        reward_scale: of the rewards, which the replay keeps as they are.
        hyper: float32 `[]` leaves, the config's fields that shape no program.
        key: `[2]` int32.
        steps: `[]` int64, environment steps seen.
        updates: `[]` int64, gradient steps of the critics.
        replay: what there is to learn from. Its memory is *Donated*.
    """

    params: TensorDict
    target: TensorDict
    opt: TensorDict
    moments: Moments
    reward_scale: RewardScale
    hyper: TensorDict
    key: Tensor
    steps: Tensor
    updates: Tensor
    replay: ReplayState


class Acting(TensorClass):
    """What acting needs of the state.

    Attributes:
        params: the actor's.
        moments: of the observations.
        noise: `[]` float32, the size of the exploration noise.
        random: `[]` bool, actions are still random.
    """

    params: TensorDict
    moments: Moments
    noise: Tensor
    random: Tensor


class Learner(TensorClass):
    """What gradient steps change, with parameters as flat vectors under the names that they have in the state."""

    params: TensorDict
    target: TensorDict
    opt: TensorDict
    updates: Tensor


class Actions(NamedTuple):
    """A space of actions, as networks and environments have them.

    Attributes:
        n: axes of a box; or how many discrete ones there are.
        draw: `draw(key) -> (random, noise)`, one environment's: any action, as a policy gives it, and what `explore` takes.
        outward: `outward(action [..., n]) -> action`, a policy's as the environment takes it, which the replay keeps.
        inward: the inverse of `outward`.
    """

    n: int
    draw: Callable[[Tensor], tuple[Tensor, Tensor]]
    outward: Callable[[Tensor], Tensor]
    inward: Callable[[Tensor], Tensor]


class Model(NamedTuple):
    """The networks, apart from their parameters.

    Attributes:
        actor: its output is `[T, B, P]`.
        critics: the ensemble.
        actions: the space of them.
        see: `see(moments, obs [M, ...])`, observations as the networks see them.
    """

    actor: nets.Network
    critics: Critics
    actions: Actions
    see: Callable[[Any, Any], Any]


def box_actions(spec: EnvSpec) -> Actions:
    """Flat actions in [-1, 1] for those of a box.

    Raises:
        ValueError: the action space is no box of floats, or has no bounds.
    """
    check_spec(spec)
    space = spec.action_space
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"action space: {space} is not a Box of floats, which continuous control needs")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all() and (space.low < space.high).all()):
        raise ValueError(f"action space: {space} has no bounds on some side; wrap it, as gymnasium.wrappers.RescaleAction does")
    low, high = (torch.tensor(x, dtype=torch.float32) for x in (space.low, space.high))
    centre, half, n = (high + low) / 2, (high - low) / 2, low.numel()

    def draw(key: Tensor) -> tuple[Tensor, Tensor]:
        keys = random.split(key)
        return random.uniform(keys[1], (n,), -1.0, 1.0), random.normal(keys[0], (n,))

    def outward(action: Tensor) -> Tensor:
        shaped = action.reshape(*action.shape[:-1], *half.shape)
        return centre.to(action.device) + half.to(action.device) * shaped

    def inward(action: Tensor) -> Tensor:
        inner = (action - centre.to(action.device)) / half.to(action.device)
        return inner.reshape(*action.shape[: action.ndim - half.ndim], -1)

    return Actions(n, draw, outward, inward)


def make_model(
    spec: EnvSpec,
    config: Any,
    head: Head,
    n_critics: int,
    deviations: bool,
    actor: nn.Module | None = None,
    critic: nn.Module | None = None,
) -> Model:
    """The config's networks, or the user's.

    Raises:
        ValueError: as `box_actions`; a network returns something else; or observations are to be standardized and are no box
            of floats.
    """
    actions, space = box_actions(spec), spec.observation_space
    if config.normalize_obs and not nets.is_vector(space):
        raise ValueError(f"normalize_obs = True needs a Box of floats as observation space, not {space}")
    n, norm = actions.n, nets.NORMS[config.norm]
    n_params = 2 * n if deviations else n
    hidden = config.critic_hidden or config.hidden
    with torch.device("meta"):
        own_actor = nets.PolicyParameters(space, n, config.hidden, config.activation, deviations)
        own_critic = nets.PairValues(space, n, hidden, config.activation, head.size, norm, config.dropout)
        joint = nets.BatchNormalizedPairs(space, n, hidden, config.activation, head.size)
    n_noise = own_critic.n_noise if critic is None else 0
    inputs = tree.map(lambda x: x[None], blank_inputs(spec, 2))
    pairs = tree.replace(inputs, obs=TensorDict(obs=inputs.obs, action=torch.zeros(1, 2, n), noise=torch.zeros(1, 2, n_noise)))
    scheme = nets.SCHEMES[config.init]

    def check(what: str, width: int) -> Callable[[Any, Any], None]:
        return lambda out, lead: nets.check_output(what, out, lead, (width,))

    def critics() -> Critics:
        if config.batch_norm:
            _check_batch_norm(config, critic)
            return ensembles.together(joint, scheme, n_critics, head, 0.99, config.unit_weights)
        if config.unit_weights:
            raise ValueError(f"{type(config).__name__}.unit_weights = True is for critics with batch_norm")
        net = nets.as_network(own_critic if critic is None else critic, scheme, check("values", head.size), pairs)
        return ensembles.apart(net, n_critics, n_noise, head)

    return Model(
        actor=nets.as_network(own_actor if actor is None else actor, scheme, check("action parameters", n_params), inputs),
        critics=critics(),
        actions=actions,
        see=normalize.standardize if config.normalize_obs else lambda moments, obs: obs,
    )


def _check_batch_norm(config: Any, critic: nn.Module | None) -> None:
    """Raise a `ValueError` if critics are to be normalised by batches and cannot be."""
    name = type(config).__name__
    for field, other in (("norm", "none"), ("dropout", 0.0)):
        if getattr(config, field) != other:
            raise ValueError(f"{name}.{field} = {getattr(config, field)!r} is not for critics with batch_norm, only {other!r} is")
    if critic is not None:
        raise ValueError(f"{name}.batch_norm = True: a critic of one's own is not normalised by batches")


def policy(model: Model, params: TensorDict, obs: Any) -> Tensor:
    """`[M, P]` what the actor makes of observations `[M, ...]`."""
    out: Tensor = nets.of_obs(model.actor, params, obs)
    return out


def draw(model: Model, key: Tensor) -> TensorDict:
    """One environment's randomness."""
    action, noise = model.actions.draw(key)
    return TensorDict(action=action, noise=noise)


def act(
    model: Model, explore: Callable, acting: Acting, inputs: Inputs, carry: TensorDict, noise: TensorDict
) -> tuple[Tensor, TensorDict, TensorDict]:
    """`explore(params [B, P], noise [B, ...], size []) -> [B, ...]`, or while there is nothing learnt a random action."""
    out, _ = nets.step(model.actor, acting.params, tree.replace(inputs, obs=model.see(acting.moments, inputs.obs)), TensorDict())
    action = torch.where(acting.random, noise["action"], explore(out, noise["noise"], acting.noise))
    return model.actions.outward(action), TensorDict(), carry


def mode(model: Model, best: Callable, acting: Acting, inputs: Inputs, carry: TensorDict) -> tuple[Tensor, TensorDict]:
    """`best(params [B, P]) -> [B, ...]`."""
    out, _ = nets.step(model.actor, acting.params, tree.replace(inputs, obs=model.see(acting.moments, inputs.obs)), TensorDict())
    return model.actions.outward(best(out)), carry


def exploration_noise(hyper: Mapping[str, Tensor], progress: Tensor) -> Tensor:
    """The size of the noise, from its start to its end along a straight line over the run; zero where there is none."""
    if "noise_start" not in hyper:
        return torch.zeros_like(progress)
    return torch.as_tensor(optim.linear_schedule(hyper["noise_start"], hyper["noise_end"], progress))


def explore_around(params: Tensor, normal: Tensor, size: Tensor) -> Tensor:
    """The deterministic policy's actions `[B, n]` with noise upon them, in [-1, 1]."""
    return (torch.tanh(params) + size * normal).clamp(-1.0, 1.0)


def deterministic_policy_loss(model: Model) -> Callable[..., tuple[Tensor, TensorDict]]:
    """The loss whose gradient is the deterministic policy gradient (Silver et al. 2014, eq. 9), by the first critic."""

    def loss(actor: TensorDict, params: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, TensorDict]:
        first = {name: tree.index(params[name], slice(0, 1)) for name in ("critics", *model.critics.kept)}
        q = model.critics.head.values(model.critics.at(TensorDict(first), it.obs, torch.tanh(policy(model, actor, it.obs)), key))
        return -q.mean(), TensorDict(actor_loss=-q.mean())

    return loss


class Losses(NamedTuple):
    """What tells the algorithms apart. `params` and `target` are trees of the state's names, `it` are `[M]` transitions whose
    observations are as the networks see them and whose actions lie in [-1, 1].

    Attributes:
        ahead: `ahead(params, target, it, key, hyper) -> (action [M, n], cost [M])`, what is done next, and what its value loses.
        steps: by names in `params`, in the order of their gradient steps, `loss(part, params, it, key, hyper) -> (loss [], info)`,
            of which `part` is what the gradient is taken for.
        lrs: the learning rates' names in `hyper`, by names in `params`.
    """

    ahead: Callable[..., tuple[Tensor, Tensor]]
    steps: Mapping[str, Callable[..., tuple[Tensor, TensorDict]]]
    lrs: Mapping[str, str]


class Temperature(NamedTuple):
    """What weighs the entropy of a soft policy.

    Attributes:
        of: `of(params, hyper) -> []`.
        steps, lrs: for `Losses`; empty where it is not learnt.
        extra: what `make` takes so.
    """

    of: Callable[[TensorDict, Any], Tensor]
    steps: Mapping[str, Callable[..., tuple[Tensor, TensorDict]]]
    lrs: Mapping[str, str]
    extra: Mapping[str, Callable[[TensorDict], Tensor]]


def temperature(is_learnt: bool, excess: Callable[..., Tensor]) -> Temperature:
    """A number of `hyper`, or what is learnt from there on: higher where the policy's entropy is below its target (Haarnoja et al.
    2018, "Soft Actor-Critic Algorithms and Applications", eq. 18).

    Args:
        excess: `excess(params, it, key, hyper) -> []`, by how much the entropy is above it.
    """
    if not is_learnt:
        return Temperature(lambda params, hyper: hyper["temperature"], {}, {}, {})

    def loss(logarithm: Tensor, params: TensorDict, it: Transitions, key: Tensor, hyper: Any) -> tuple[Tensor, TensorDict]:
        return logarithm.exp() * excess(params, it, key, hyper).detach(), TensorDict(temperature=logarithm.exp())

    name = "log_temperature"
    extra = {name: lambda hyper: hyper["temperature"].log()}
    return Temperature(lambda params, hyper: params[name].exp(), {name: loss}, {name: "critic_lr"}, extra)


def make(
    spec: EnvSpec,
    config: Any,
    model: Model,
    losses: Losses,
    explore: Callable,
    best: Callable,
    targets: tuple[str, ...],
    extra: Mapping[str, Callable[[TensorDict], Tensor]] = {},
) -> Algorithm:
    """The algorithm of a config, made of its losses.

    Args:
        explore, best: as `act` and `mode` take them.
        targets: the names in `params` that have a target.
        extra: what else is learnt: `start(hyper) -> tensor`, by name.

    Raises:
        ValueError: the replay is too small; nothing would be learnt; steps do not divide into gradient steps.
    """
    common.check_start(config)
    memory, head = make_replay(spec, config), model.critics.head
    n_blocks, adam = _n_blocks(config), partial(optim.adam, b1=config.adam_b1)

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> ContinuousState:
        key, actor_key, critic_key = random.split(key, 3)
        numbers = cfg.start(cfg.sweepable(config), hyper, key.device)
        params = TensorDict({"actor": model.actor.init(actor_key), "critics": model.critics.init(critic_key)})
        params.update({name: x.to(key.device) for name, x in model.critics.kept.items()})
        params.update({name: start(numbers) for name, start in extra.items()})
        none = torch.zeros((), dtype=torch.int64, device=key.device)
        shape = torch.Size(spec.observation_space.shape or ()) if config.normalize_obs else torch.Size()
        return ContinuousState(
            params=params,
            target=tree.copy(TensorDict({name: params[name] for name in targets})),
            opt=TensorDict({name: adam(0.0).init(tree.ravel(params[name])[0]) for name in losses.lrs}),
            moments=normalize.init_moments(shape, key.device),
            reward_scale=normalize.init_reward_scale(config.n_envs if config.normalize_reward else 0, key.device),
            hyper=numbers,
            key=key,
            steps=none,
            updates=none.clone(),
            replay=memory.init(key.device),
        )

    def update(state: ContinuousState, batch: Batch) -> tuple[ContinuousState, TensorDict]:
        common.check_batch(config, batch)
        hyper, steps = state.hyper, state.steps + batch.reward.numel()
        progress = steps / hyper["total_steps"]
        alpha, beta = hyper["alpha"], torch.as_tensor(optim.linear_schedule(hyper["beta"], 1.0, progress))
        key, *keys = random.split(state.key, 1 + n_blocks)
        filled = memory.add(state.replay, batch, alpha)
        ready = has_enough(memory, filled, config.n_envs, hyper["learning_starts"])
        moments = _seen(state.moments, batch) if config.normalize_obs else state.moments
        scale, unit = state.reward_scale, torch.ones_like(hyper["gamma"])
        if config.normalize_reward:
            scale = normalize.update_reward_scale(scale, batch, hyper["gamma"])
            unit = normalize.reward_unit(scale, head.bound)
        flat, unravel = _ravel(state.params)
        target, _ = _ravel(state.target)

        def sample(filled: ReplayState, key: Tensor) -> tuple[replay.Sample, Transitions]:
            drawn = memory.sample(filled, key, config.batch_size, hyper["gamma"], beta)
            it = drawn.transitions
            return drawn, tree.replace(
                it,
                obs=model.see(moments, it.obs),
                next_obs=model.see(moments, it.next_obs),
                action=model.actions.inward(it.action),
                reward=it.reward / unit,
            )

        def step(learner: Learner, name: str, loss: Callable, *args: Any) -> tuple[Learner, Any]:
            """One gradient step of the parameters of a name, unless it is too early."""
            part = learner.params[name]
            gradient, info = common.gradient(loss, unravel[name], part, *args)
            after = common.gradient_step(adam(hyper[losses.lrs[name]]), part, learner.opt[name], gradient)
            new, opt = tree.where(ready, after, (part, learner.opt[name]))
            return tree.replace(learner, params=_with(learner.params, name, new), opt=_with(learner.opt, name, opt)), info

        def critic_step(carry: tuple, key: Tensor) -> tuple[tuple, dict]:
            learner, filled = carry
            sample_key, ahead_key, wanted_key, key = random.split(key, 4)
            drawn, it = sample(filled, sample_key)
            params, target = _all(unravel, learner.params), _all(unravel, learner.target)
            action, cost = losses.ahead(params, target, it, ahead_key, hyper)

            def loss(critics: TensorDict) -> tuple[Tensor, tuple[TensorDict, Tensor, dict[str, Tensor]]]:
                out, next_out, kept = model.critics.both(critics, params, target, it, action, key)
                wanted = head.wanted(next_out, it.reward, it.discount, cost, wanted_key).detach()
                each, errors = head.loss(out, wanted)
                total, size = (drawn.weights * each).mean(-1).sum(), errors.abs()
                info = TensorDict(critic_loss=total, q=head.values(out).mean(), td_error=size.mean())
                return total, (info, size.mean(0), kept)

            learner, (info, errors, kept) = step(learner, "critics", loss)
            if model.critics.project is not None:
                new, _ = tree.ravel(model.critics.project(unravel["critics"](learner.params["critics"])))
                learner = tree.replace(learner, params=_with(learner.params, "critics", new))
            for name, x in kept.items():
                new = torch.where(ready, x.flatten(), learner.params[name])
                learner = tree.replace(learner, params=_with(learner.params, name, new))
            updates = learner.updates + ready
            due = ready & (updates % config.target_every == 0)
            learner = tree.replace(learner, target=_towards(learner, due * hyper["tau"]), updates=updates)
            filled = memory.update(filled, drawn.rows, torch.where(ready, errors, 1.0), alpha)
            return (learner, filled), info.to_dict()

        def policy_step(learner: Learner, key: Tensor, filled: ReplayState) -> tuple[Learner, dict]:
            figures: dict[str, Tensor] = {}
            sample_key, *keys = random.split(key, 1 + len(losses.steps))
            _, it = sample(filled, sample_key)
            for (name, loss), its_key in zip(losses.steps.items(), keys, strict=True):
                learner, info = step(learner, name, loss, _all(unravel, learner.params), it, its_key, hyper)
                figures |= info.to_dict()
            return learner, figures

        def block(carry: tuple, key: Tensor) -> tuple[tuple, dict]:
            """`policy_every` gradient steps of the critics, then `policy_updates` of the policy."""
            critic_key, policy_key = random.split(key)
            (learner, filled), figures = scan(critic_step, carry, random.split(critic_key, config.policy_every))
            figures = {name: x.mean(0) for name, x in figures.items()}
            for key in random.split(policy_key, config.policy_updates):
                learner, more = policy_step(learner, key, filled)
            return (learner, filled), {**figures, **more}

        start = Learner(params=flat, target=target, opt=state.opt, updates=state.updates)
        (learner, filled), figures = scan(block, (start, filled), torch.stack(keys))
        state = ContinuousState(
            params=tree.copy(_all(unravel, learner.params)),
            target=tree.copy(_all(unravel, learner.target)),
            opt=learner.opt,
            moments=moments,
            reward_scale=scale,
            hyper=hyper,
            key=key,
            steps=steps,
            updates=learner.updates,
            replay=filled,
        )
        info = common.averages(figures, ready)
        ratio = learner.updates * config.batch_size / steps
        return state, TensorDict({**info, "replay_size": memory.size(filled).float(), "replay_ratio": ratio})

    def acting(state: ContinuousState) -> Acting:
        progress = state.steps / state.hyper["total_steps"]
        return Acting(
            params=state.params["actor"],
            moments=state.moments,
            noise=exploration_noise(state.hyper, progress),
            random=state.steps < state.hyper["learning_starts"],
        )

    return common.algorithm(
        spec,
        config,
        init=init,
        act=partial(act, model, explore),
        update=update,
        mode=partial(mode, model, best),
        draw=partial(draw, model),
        acting=acting,
        forget=lambda state: tree.replace(state, replay=memory.init(state.key.device)),
        replay=lambda state: state.replay,
    )


def _n_blocks(config: Any) -> int:
    """How often a batch's gradient steps go on to the policy."""
    n = config.utd * config.n_envs * config.n_steps / config.policy_every
    if n < 1 or not math.isclose(n, round(n)):
        raise ValueError(
            f"{type(config).__name__}: utd * n_envs * n_steps = {config.utd} * {config.n_envs} * {config.n_steps} gradient steps a "
            f"batch are no multiple of policy_every = {config.policy_every}"
        )
    return round(n)


def _ravel(params: TensorDict) -> tuple[TensorDict, dict[str, Callable]]:
    """Each name's parameters as one vector, and what makes the tree of such a vector again."""
    parts = {str(name): tree.ravel(part) for name, part in params.items()}
    return TensorDict({name: flat for name, (flat, _) in parts.items()}), {name: unravel for name, (_, unravel) in parts.items()}


def _all(unravel: Mapping[str, Callable], flat: TensorDict) -> TensorDict:
    return TensorDict({name: unravel[name](x) for name, x in flat.items()})


def _with(parts: TensorDict, name: str, new: Any) -> TensorDict:
    return TensorDict({**dict(parts.items()), name: new})


def _towards(learner: Learner, tau: Tensor) -> TensorDict:
    """The targets, moved a part of the way to what they follow: Polyak averaging (Lillicrap et al. 2016)."""
    return TensorDict({name: x + tau * (learner.params[name] - x) for name, x in learner.target.items()})


def _seen(moments: Moments, batch: Batch) -> Moments:
    return normalize.update_moments(moments, batch.inputs.obs.flatten(0, 1), batch.valid.flatten())
