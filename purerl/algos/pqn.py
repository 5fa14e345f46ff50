"""Parallelised Q-network, PQN (Gallici et al. 2024): Q(lambda) on fresh batches, without replay and without a target network."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor, nn

from purerl import config as cfg
from purerl import nets, optim, random, tree
from purerl.algos import common, dqn, fields
from purerl.algos import q_learning as ql
from purerl.base import Algorithm, Batch, EnvSpec
from purerl.losses import masked_mean, td_lambda_returns
from purerl.transforms import scan


@dataclasses.dataclass(frozen=True)
class PQNConfig:
    """Defaults for classic control; `default_config` has those for images.

    They are CleanRL's `pqn.py` but for a learning rate of 1e-3 and a trace of 0.9, and gradients cut from a norm of 100 on:
    where returns are near 100 those of 10 are common, and cut they let some seeds of CartPole end at 300.
    """

    n_envs: int = fields.n_envs(4)
    n_steps: int = fields.n_steps(128)
    epochs: int = fields.epochs(4)
    n_minibatches: int = fields.n_minibatches(4)
    lr: float = fields.lr(1e-3)
    lr_schedule: str = fields.lr_schedule("linear")
    gamma: float = fields.gamma(0.99)
    q_lambda: float = cfg.number(0.9, "trace decay of the returns", high=1.0)
    max_grad_norm: float = fields.max_grad_norm(100.0)
    epsilon_start: float = fields.epsilon_start(1.0)
    epsilon_end: float = fields.epsilon_end(0.05)
    epsilon_spread: float = fields.epsilon_spread(0.0)
    exploration: float = fields.exploration(0.5)
    total_steps: int = fields.total_steps(500_000)
    dueling: bool = fields.dueling(False)
    hidden: tuple[int, ...] = fields.hidden((120, 84))
    activation: str = fields.activation("relu")
    norm: str = fields.norm("layer")
    precision: str = fields.precision("float32")
    init: str = fields.init("torch")

    def __post_init__(self) -> None:
        cfg.check(self)
        common.check_minibatches(self)


def default_config(spec: EnvSpec) -> PQNConfig:
    """Settings for an environment's observations: CleanRL's `pqn.py`, `pqn_atari_envpool.py` for images, PureJaxQL's for boards."""
    if not nets.is_image(spec.observation_space) and not nets.is_board(spec.observation_space):
        return PQNConfig()
    games = PQNConfig(q_lambda=0.65, max_grad_norm=10.0, exploration=0.1, total_steps=10_000_000)
    if nets.is_image(spec.observation_space):
        return dataclasses.replace(games, n_envs=8, lr=2.5e-4, epsilon_end=0.01, hidden=(512,))
    return dataclasses.replace(games, n_envs=128, n_steps=32, epochs=2, n_minibatches=32, lr=5e-4, hidden=(128,))


class PQNState(TensorClass):
    """Everything that changes.

    Attributes:
        params: the network's, nested as its module is.
        opt: the optimizer's state over the flattened parameters `[P]`.
        hyper: float32 `[]` leaves, the config's fields that shape no program.
        key: `[2]` int32.
        steps: `[]` int64, environment steps learnt from.
        epsilon: `[]` float32, how often the next action is a random one.
    """

    params: TensorDict
    opt: TensorDict
    hyper: TensorDict
    key: Tensor
    steps: Tensor
    epsilon: Tensor


def make_pqn(spec: EnvSpec, config: PQNConfig | None = None, net: nn.Module | None = None) -> Algorithm:
    """PQN for discrete actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> [N, A]`, on any device; only its shapes are used. It should normalise its
            layers: without a target network nothing else keeps it from diverging.

    Raises:
        ValueError: an action space that is not discrete, or a network that returns something else.
    """
    config = cfg.given(config, default_config, spec)
    model = ql.make_model(spec, config, dqn.head("squared"), nets.Plain, net, nets.NORMS[config.norm])

    def optimizer(hyper: TensorDict, lr: float | Tensor = 0.0) -> optim.Optimizer:
        return optim.chain(optim.clip_by_global_norm(hyper["max_grad_norm"]), optim.radam(lr))

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> PQNState:
        key, net_key = random.split(key)
        params = model.net.init(net_key)
        numbers = cfg.start(cfg.sweepable(config), hyper, key.device)
        return PQNState(
            params=params,
            opt=optimizer(numbers).init(tree.ravel(params)[0]),
            hyper=numbers,
            key=key,
            steps=torch.zeros((), dtype=torch.int64, device=key.device),
            epsilon=numbers["epsilon_start"].clone(),
        )

    def q_values(params: TensorDict, obs: Any, n: int) -> Tensor:
        return ql.values(model, params, obs, torch.zeros(n, 0, device=tree.leaves(obs)[0].device)).squeeze(-1)

    def targets(state: PQNState, batch: Batch) -> Tensor:
        """`[T, B]` lambda-returns of the greedy policy, which end with their episode (the paper's eq. 8)."""
        n_steps, n_envs = batch.reward.shape
        obs = tree.map(lambda x, last: torch.cat([x, last[None]]).flatten(0, 1), batch.inputs.obs, batch.last.obs)
        values = q_values(state.params, obs, (n_steps + 1) * n_envs).amax(-1).reshape(n_steps + 1, n_envs)
        discounts = state.hyper["gamma"] * (~batch.terminated).float()
        return td_lambda_returns(batch.reward, discounts, batch.terminated | batch.truncated, values, state.hyper["q_lambda"])

    def loss(params: TensorDict, samples: tuple) -> tuple[Tensor, TensorDict]:
        obs, action, target, valid = samples
        q = q_values(params, obs, len(action)).gather(-1, action[:, None]).squeeze(-1)
        error = target - q
        total = masked_mean(0.5 * error**2, valid)
        info = TensorDict(loss=total, q=masked_mean(q, valid), td_error=masked_mean(error.abs(), valid))
        return total, info

    def update(state: PQNState, batch: Batch) -> tuple[PQNState, TensorDict]:
        hyper, steps = state.hyper, state.steps + batch.reward.numel()
        lr = common.scheduled(hyper["lr"], config.lr_schedule, state.steps / hyper["total_steps"])
        keys = random.split(state.key, 1 + config.epochs)
        flat, unravel = tree.ravel(state.params)
        samples = (batch.inputs.obs, batch.action, targets(state, batch), batch.valid)
        packed, unpack = tree.pack(tree.map(lambda x: x.flatten(0, 1), samples), axes=1)  # one gather for all of them

        def minibatch(carry: tuple, rows: Tensor) -> tuple[tuple, dict]:
            params, opt = carry
            gradient, info = common.gradient(loss, unravel, params, unpack(tree.index(packed, rows)))
            return common.gradient_step(optimizer(hyper, lr), params, opt, gradient), info.to_dict()

        rows = common.minibatch_rows(keys[1:], batch.reward.numel(), config.n_minibatches)
        (flat, opt), info = scan(minibatch, (flat, state.opt), rows)
        state = PQNState(
            params=tree.copy(unravel(flat)),
            opt=opt,
            hyper=hyper,
            key=keys[0],
            steps=steps,
            epsilon=ql.epsilon(hyper, steps / hyper["total_steps"]),
        )
        return state, TensorDict({name: x.mean(0) for name, x in info.items()}).update({"lr": lr, "epsilon": state.epsilon})

    return ql.algorithm(model, spec, config, init, update)
