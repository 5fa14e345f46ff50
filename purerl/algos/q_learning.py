"""What the algorithms share that learn action values from a replay: the state, acting, and the gradient step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import nets, optim, random, replay, tree
from purerl.algos import common
from purerl.base import Algorithm, Batch, EnvSpec, Inputs, check_spec
from purerl.replay import Replay, ReplayState
from purerl.spaces import blank_inputs
from purerl.transforms import scan

ATARI = {  # CleanRL's, of `dqn_atari.py` and the others
    "n_steps": 4,
    "lr_schedule": "constant",
    "capacity": 1_000_000,
    "batch_size": 32,
    "replay_ratio": 8.0,
    "learning_starts": 80_000,
    "epsilon_end": 0.01,
    "exploration": 0.1,
    "total_steps": 10_000_000,
    "hidden": (512,),
}
MINATAR = {  # those of Young and Tian 2019, an update every fourth step
    "n_steps": 4,
    "lr_schedule": "constant",
    "capacity": 100_000,
    "batch_size": 32,
    "replay_ratio": 8.0,
    "learning_starts": 5_000,
    "target_every": 250,
    "hidden": (128,),
}


def settings(spec: EnvSpec, **for_images: Any) -> dict[str, Any]:
    """The config fields that suit an environment's observations better than the defaults, which are for classic control.

    Args:
        for_images: an algorithm's own.
    """
    if nets.is_board(spec.observation_space):
        return MINATAR
    if nets.is_image(spec.observation_space):
        return {**ATARI, "frames": 4 if spec.id.startswith("ALE/") else 0, **for_images}
    return {}


class QState(TensorClass):
    """Everything that changes.

    Attributes:
        params: the network's, nested as its module is; what is acted with.
        target: of the network that estimates what comes next; the same as `params` at the start.
        opt: the optimizer's state over the flattened parameters `[P]`.
        hyper: float32 `[]` leaves, the config's fields that shape no program.
        key: `[2]` int32.
        steps: `[]` int64, environment steps seen.
        updates: `[]` int64, gradient steps made.
        epsilon: `[]` float32, how often the next action is a random one.
        replay: what there is to learn from. Its memory is *Donated*.
    """

    params: TensorDict
    target: TensorDict
    opt: TensorDict
    hyper: TensorDict
    key: Tensor
    steps: Tensor
    updates: Tensor
    epsilon: Tensor
    replay: ReplayState


class Acting(TensorClass):
    """What acting needs of the state."""

    params: TensorDict
    epsilon: Tensor


class Head(NamedTuple):
    """What a network says of an action's return, and how it is learnt.

    Attributes:
        size: numbers an action.
        values: `values(out [..., size]) -> [...]`, the expected return.
        loss: `loss(out [M, size], next_out [M, size], reward [M], discount [M]) -> (loss [M], error [M])`, of the action taken and
            of the one that the bootstrap takes; the absolute error is what priorities are made of.
    """

    size: int
    values: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Model(NamedTuple):
    """A network of action values.

    Attributes:
        net: its output is `[T, B, A, size]`; it sees `obs` and `noise` as its observation. To act with.
        learning_net: the same, of the same parameters, to learn with.
        head: reads the output.
        n_actions: A.
        n_noise: how many normal numbers a forward pass takes for each observation; 0 for a network without noise.
    """

    net: nets.Network
    learning_net: nets.Network
    head: Head
    n_actions: int
    n_noise: int


def make_model(
    spec: EnvSpec,
    config: Any,
    head: Head,
    layer: nets.values.Layer,
    net: nn.Module | None,
    norm: nets.Norm = nets.NORMS["none"],
) -> Model:
    """The config's network, or the user's.

    Raises:
        ValueError: an action space that is not discrete, or a network that returns something else.
    """
    check_spec(spec)
    space = spec.action_space
    if not isinstance(space, gym.spaces.Discrete):
        raise ValueError(f"action space: {space} is not Discrete, which action values need")
    n_actions = int(space.n)

    def check(out: Any, lead: Any) -> None:
        nets.check_action_values(out, lead, n_actions, head.size)

    def action_values(dtype: torch.dtype) -> nn.Module:
        trunk, width = nets.trunk(spec.observation_space, dtype, norm)
        shared = nets.mlp(width, config.hidden[:-1], config.activation, norm)
        torso, width = nn.Sequential(trunk, shared), [width, *config.hidden[:-1]][-1]
        last = config.hidden[-1] if config.hidden else 0
        return nets.ActionValues(torso, width, last, n_actions, head.size, config.activation, config.dueling, layer, norm)

    if net is None:
        with torch.device("meta"):
            modules = [action_values(common.PRECISIONS[name]) for name in ("float32", config.precision)]
    else:
        modules = [_Quiet(net, n_actions, head.size)] * 2
    n_noise = modules[0].n_noise
    assert isinstance(n_noise, int)
    example = tree.map(lambda x: x[None], see(blank_inputs(spec, 2), torch.zeros(2, n_noise)))
    to_act, to_learn = (nets.as_network(x, nets.SCHEMES[config.init], check, example) for x in modules)
    return Model(to_act, to_learn, head, n_actions, n_noise)


def make_replay(spec: EnvSpec, config: Any) -> Replay:
    """The replay of a config.

    Raises:
        ValueError: as `replay.make_uniform`; it is smaller than a batch of transitions, or cannot take a batch of steps at once; or
            it is to keep frames of observations that are no stacks of them.
    """
    name = type(config).__name__
    if config.capacity < config.batch_size:
        raise ValueError(f"{name}.capacity = {config.capacity} is less than batch_size = {config.batch_size}")
    if config.capacity < config.n_envs * config.n_steps:
        raise ValueError(
            f"{name}.capacity = {config.capacity} is less than a batch of n_envs * n_steps = {config.n_envs} * {config.n_steps}"
        )
    stacked = nets.is_image(spec.observation_space) and (spec.observation_space.shape or ())[0] == config.frames
    if config.frames and not stacked:
        raise ValueError(
            f"{name}.frames = {config.frames}: observations are {spec.observation_space}, not stacks of {config.frames} images "
            f"[{config.frames}, H, W] of bytes"
        )
    observations = replay.frames(config.frames) if config.frames else replay.whole()
    make = replay.make_prioritized if config.prioritized else replay.make_uniform
    return make(spec, config.capacity, config.n_envs, config.n_step, observations)


def has_enough(memory: Replay, filled: ReplayState, n_envs: int, learning_starts: Tensor) -> Tensor:
    """`[]` bool, whether a replay has seen so many steps, and has something to learn from. It counts what it has seen itself: all
    steps, unless it was emptied and fills anew."""
    return (filled.steps.n_added * n_envs >= learning_starts) & (memory.size(filled) > 0)


class _Quiet(nn.Module):
    """A user's network `forward(obs [N, ...]) -> [N, A]`, or `[N, A, size]`, which takes no noise."""

    def __init__(self, net: nn.Module, n_actions: int, size: int) -> None:
        super().__init__()
        self.net, self.shape, self.n_noise = net, (n_actions, size), 0

    def forward(self, x: TensorDict) -> Tensor:
        out: Tensor = self.net(x["obs"])
        return out.unsqueeze(-1) if self.shape[1] == 1 and out.ndim == 2 else out


def see(inputs: Inputs, noise: Tensor) -> Inputs:
    """The inputs with the network's noise `[..., n_noise]` beside the observation."""
    return tree.replace(inputs, obs=TensorDict(obs=inputs.obs, noise=noise))


def values(model: Model, params: TensorDict, obs: Any, noise: Tensor) -> Tensor:
    """What is learnt from: the network's output `[M, A, size]` for observations `[M, ...]`, with noise `[M, n_noise]`, or
    `[1, n_noise]` for all."""
    out: Tensor = nets.of_obs(model.learning_net, params, TensorDict(obs=obs, noise=noise))
    return out


def acting(state: Any) -> Acting:
    """What acting needs of a state with `params` and `epsilon`."""
    return Acting(params=state.params, epsilon=state.epsilon)


def draw(model: Model, key: Tensor) -> TensorDict:
    """One environment's randomness: whether to explore, with which action, and the network's noise."""
    keys = random.split(key, 3)
    explore, action = random.uniform(keys[0]), random.randint(keys[1], (), 0, model.n_actions)
    return TensorDict(explore=explore, action=action, net=random.normal(keys[2], (model.n_noise,)))


def act(
    model: Model, spread: float, acting: Acting, inputs: Inputs, carry: TensorDict, noise: TensorDict
) -> tuple[Tensor, TensorDict, TensorDict]:
    """The best action, or with probability epsilon any.

    Args:
        spread: environments take epsilon to the powers from 1 to 1 + spread (Horgan et al. 2018).
        carry: `[B]`, with the environment's `rank` from 0 to 1 if they differ.
    """
    out, _ = nets.step(model.net, acting.params, see(inputs, noise["net"]), TensorDict())
    greedy = model.head.values(out).argmax(-1)
    rate = acting.epsilon ** (1.0 + spread * carry["rank"]) if spread else acting.epsilon
    return torch.where(noise["explore"] < rate, noise["action"], greedy), TensorDict(), carry


def ranks(n_envs: int) -> TensorDict:
    """`[B]` the rank of each environment, which it keeps through all episodes."""
    return TensorDict(rank=torch.arange(n_envs) / max(1, n_envs - 1))


def mode(model: Model, acting: Acting, inputs: Inputs, carry: TensorDict) -> tuple[Tensor, TensorDict]:
    """The best action, without noise."""
    quiet = torch.zeros(*inputs.first.shape, model.n_noise, device=inputs.first.device)
    out, _ = nets.step(model.net, acting.params, see(inputs, quiet), TensorDict())
    return model.head.values(out).argmax(-1), carry


def epsilon(hyper: TensorDict, progress: Tensor) -> Tensor:
    """From its start to its end along a straight line, for a fraction of the run."""
    return torch.as_tensor(optim.linear_schedule(hyper["epsilon_start"], hyper["epsilon_end"], progress / hyper["exploration"]))


def algorithm(model: Model, spec: EnvSpec, config: Any, init: Callable, update: Callable, **functions: Any) -> Algorithm:
    """The record of an algorithm that acts by action values, whose `init`, `update` and other functions are given."""
    return common.algorithm(
        spec,
        config,
        init=init,
        act=partial(act, model, config.epsilon_spread),
        update=update,
        mode=partial(mode, model),
        draw=partial(draw, model),
        acting=acting,
        carry=ranks if config.epsilon_spread else lambda n_envs: TensorDict(),
        **functions,
    )


def make(spec: EnvSpec, config: Any, head: Head, net: nn.Module | None = None) -> Algorithm:
    """The algorithm of a config, made of the parts that it names.

    Raises:
        ValueError: as `make_model` and `make_replay`; nothing would be learnt; or a batch has less than half a gradient step.
    """
    common.check_start(config)
    model = make_model(spec, config, head, nets.Noisy if config.noisy else nets.Plain, net)
    memory = make_replay(spec, config)
    next_actions = greedy_of_online if config.double else greedy_of_target
    n_updates = _n_updates(config)

    def optimizer(hyper: TensorDict, lr: float | Tensor = 0.0) -> optim.Optimizer:
        adam = optim.adam(lr, eps=hyper["adam_eps"])
        return adam if config.max_grad_norm is None else optim.chain(optim.clip_by_global_norm(hyper["max_grad_norm"]), adam)

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> QState:
        key, net_key = random.split(key)
        params = model.net.init(net_key)
        numbers = cfg.start(cfg.sweepable(config), hyper, key.device)
        none = torch.zeros((), dtype=torch.int64, device=key.device)
        return QState(
            params=params,
            target=tree.copy(params),
            opt=optimizer(numbers).init(tree.ravel(params)[0]),
            hyper=numbers,
            key=key,
            steps=none,
            updates=none.clone(),
            epsilon=numbers["epsilon_start"].clone(),
            replay=memory.init(key.device),
        )

    def loss(
        params: TensorDict, target: TensorDict, sample: replay.Sample, noise: Tensor
    ) -> tuple[Tensor, tuple[TensorDict, Tensor]]:
        it = sample.transitions
        out = values(model, params, it.obs, noise[0])
        chosen = take(out, it.action)
        next_out = values(model, target, it.next_obs, noise[1])
        actions = next_actions(lambda: model.head.values(values(model, params, it.next_obs, noise[2])), model.head.values(next_out))
        losses, errors = model.head.loss(chosen, take(next_out, actions).detach(), it.reward, it.discount)
        total = (sample.weights * losses).mean()
        info = TensorDict(loss=total, q=model.head.values(chosen).mean(), td_error=errors.abs().mean())
        return total, (info, errors)

    def update(state: QState, batch: Batch) -> tuple[QState, TensorDict]:
        common.check_batch(config, batch)
        hyper, steps = state.hyper, state.steps + batch.reward.numel()
        progress = steps / hyper["total_steps"]
        lr = common.scheduled(hyper["lr"], config.lr_schedule, state.steps / hyper["total_steps"])
        alpha, beta = hyper["alpha"], torch.as_tensor(optim.linear_schedule(hyper["beta"], 1.0, progress))
        key, *keys = random.split(state.key, 1 + n_updates)
        filled = memory.add(state.replay, batch, alpha)
        ready = has_enough(memory, filled, config.n_envs, hyper["learning_starts"])
        flat, unravel = tree.ravel(state.params)

        def gradient_step(carry: tuple, key: Tensor) -> tuple[tuple, dict]:
            params, target, opt, updates, filled = carry
            sample_key, noise_key = random.split(key)
            sample = memory.sample(filled, sample_key, config.batch_size, hyper["gamma"], beta)
            noise = random.normal(noise_key, (3, 1, model.n_noise))  # one for all transitions (Fortunato et al. 2018, 3.1)
            grad, (info, errors) = common.gradient(loss, unravel, params, unravel(target), sample, noise)
            new_params, new_opt = common.gradient_step(optimizer(hyper, lr), params, opt, grad)
            updates = updates + ready
            due = updates % config.target_every == 0
            new_target = torch.where(due, target + hyper["tau"] * (new_params - target), target)
            params, target, opt = tree.where(ready, (new_params, new_target, new_opt), (params, target, opt))
            filled = memory.update(filled, sample.rows, torch.where(ready, errors, 1.0), alpha)
            return (params, target, opt, updates, filled), info.to_dict()

        start = (flat, tree.ravel(state.target)[0], state.opt, state.updates, filled)
        (flat, target, opt, updates, filled), info = scan(gradient_step, start, torch.stack(keys))
        state = QState(
            params=tree.copy(unravel(flat)),
            target=tree.copy(unravel(target)),
            opt=opt,
            hyper=hyper,
            key=key,
            steps=steps,
            updates=updates,
            epsilon=epsilon(hyper, progress),
            replay=filled,
        )
        figures = common.averages(info, ready)
        ratio = updates * config.batch_size / steps
        size = memory.size(filled).float()
        return state, TensorDict({**figures, "lr": lr, "epsilon": state.epsilon, "replay_size": size, "replay_ratio": ratio})

    def forget(state: QState) -> QState:
        return tree.replace(state, replay=memory.init(state.key.device))

    return algorithm(model, spec, config, init, update, forget=forget, replay=lambda state: state.replay)


def _n_updates(config: Any) -> int:
    """Gradient steps a batch."""
    n = config.replay_ratio * config.n_envs * config.n_steps / config.batch_size
    if n < 0.5:
        name, steps = type(config).__name__, config.n_envs * config.n_steps
        raise ValueError(
            f"{name}.replay_ratio = {config.replay_ratio} makes {n:g} gradient steps of batch_size = {config.batch_size} "
            f"a batch of n_envs * n_steps = {config.n_envs} * {config.n_steps}, but the least is one: "
            f"it could be {config.batch_size / steps:g}, or n_steps larger"
        )
    return max(1, round(n))


def take(out: Tensor, actions: Tensor) -> Tensor:
    """What a network says of the actions `[M]`: `[M, A, size] -> [M, size]`."""
    return torch.take_along_dim(out, actions[:, None, None], 1).squeeze(1)


def greedy_of_target(online: Callable[[], Tensor], target: Tensor) -> Tensor:
    """`[M]` the best actions in the eyes of the target network, of its values `[M, A]` (Mnih et al. 2015)."""
    return target.argmax(-1)


def greedy_of_online(online: Callable[[], Tensor], target: Tensor) -> Tensor:
    """`[M]` the best actions in the eyes of the online network, whose values `[M, A]` `online()` computes; the target network then
    values them (van Hasselt et al. 2016, eq. 4)."""
    return online().argmax(-1)
