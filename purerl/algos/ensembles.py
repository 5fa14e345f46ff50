"""Ensembles of critics of continuous control: what they say of a return, how they learn it, and what a policy is to raise."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import losses, nets, random, tree
from purerl.nets.init import Scheme
from purerl.replay import Transitions
from purerl.transforms import vmap

BELIEFS: dict[str, Callable[[Tensor], Tensor]] = {"least": lambda q: q.amin(0), "mean": lambda q: q.mean(0)}


class Head(NamedTuple):
    """What N critics say of the return of M pairs of observation and action, and how they learn it.

    Attributes:
        size: numbers a pair, of each critic.
        values: `values(out [..., size]) -> [...]`, the expected return.
        believe: `believe(out [N, M, size]) -> [M]`, what a policy is to raise.
        wanted: `wanted(next_out [N, M, size], reward [M], discount [M], cost [M], key) -> wanted`, what all of them are to say, of
            what they say of the next pair and of what comes off its value, as the temperature times the logarithm of the action's
            probability.
        loss: `loss(out [N, M, size], wanted) -> (loss [N, M], error [N, M])`; the absolute error is what priorities are made of.
    """

    size: int
    values: Callable[[Tensor], Tensor]
    believe: Callable[[Tensor], Tensor]
    wanted: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]
    loss: Callable[[Tensor, Any], tuple[Tensor, Tensor]]


class Critics(NamedTuple):
    """An ensemble of N critics apart from their parameters.

    Attributes:
        init: `init(key) -> params`, leaves `[N, ...]`.
        head: reads what they say.
        kept: what they keep besides, by name, as it is at first: it is learnt by no gradient.
        at: `at(params, obs [M, ...], action [M, n], key) -> out [N, M, size]`, by the state's `params["critics"]`, to be raised.
        both: `both(critics, params, target, it, next_action [M, n], key) -> (out, next_out, kept)`, of both ends of transitions,
            what is learnt and what it is learnt from, where `critics` stand in for those in `params`; and what is kept then.
        targets: the names in `params` of which another network, which follows, says what comes next.
    """

    init: Callable[[Tensor], TensorDict]
    head: Head
    kept: Mapping[str, Tensor]
    at: Callable[[TensorDict, Any, Tensor, Tensor], Tensor]
    both: Callable[..., tuple[Tensor, Tensor, dict[str, Tensor]]]
    targets: tuple[str, ...]


def apart(critic: nets.Network, n_critics: int, n_noise: int, head: Head) -> Critics:
    """What comes next is said by target networks (Mnih et al. 2015).

    Args:
        critic: its output is `[T, B, size]`, and it sees `obs`, `action` and `noise`, of which `n_noise` numbers uniform in [0, 1),
            as its observation.
    """

    def ask(params: TensorDict, obs: Any, action: Tensor, key: Tensor) -> Tensor:
        def one(params: TensorDict, noise: Tensor) -> Tensor:
            out: Tensor = nets.of_obs(critic, params, TensorDict(obs=obs, action=action, noise=noise))
            return out

        noise = random.uniform(key, (len(tree.leaves(params)[0]), len(action), n_noise))
        out: Tensor = vmap(one)(params, noise)
        return out

    def both(
        critics: TensorDict, params: TensorDict, target: TensorDict, it: Transitions, next_action: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        keys = random.split(key)
        return ask(critics, it.obs, it.action, keys[0]), ask(target["critics"], it.next_obs, next_action, keys[1]), {}

    return Critics(
        init=lambda key: vmap(critic.init)(random.split(key, n_critics)),
        head=head,
        kept={},
        at=lambda params, *pairs: ask(params["critics"], *pairs),
        both=both,
        targets=("critics",),
    )


def together(critic: nets.BatchNormalizedPairs, scheme: Scheme, n_critics: int, head: Head, momentum: float) -> Critics:
    """Both ends of transitions are one batch, by which both are normalised, and there are no target networks (Bhatt et al. 2024).

    Args:
        momentum: how much of the statistics, by which critics are normalised while the policy learns, stays at each step.
    """

    def both(
        critics: TensorDict, params: TensorDict, target: TensorDict, it: Transitions, next_action: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        obs = tree.map(lambda x, y: torch.cat([x, y]), it.obs, it.next_obs)
        pairs = TensorDict(obs=obs, action=torch.cat([it.action, next_action]))
        out, found = vmap(lambda params: nets.apply(critic, params, pairs))(critics)
        kept = momentum * params["statistics"] + (1.0 - momentum) * found.detach()
        now, then = out.unflatten(1, (2, -1)).unbind(1)
        return now, then, {"statistics": kept}

    def at(params: TensorDict, obs: Any, action: Tensor, key: Tensor) -> Tensor:
        def one(params: TensorDict, statistics: Tensor) -> Tensor:
            out: Tensor = nets.apply(critic, params, TensorDict(obs=obs, action=action, statistics=statistics))[0]
            return out

        out: Tensor = vmap(one)(params["critics"], params["statistics"])
        return out

    none = torch.zeros(n_critics, sum(critic.widths))
    return Critics(
        init=lambda key: vmap(lambda key: nets.init(critic, key, scheme))(random.split(key, n_critics)),
        head=head,
        kept={"statistics": torch.stack([none, none + 1.0], 1)},
        at=at,
        both=both,
        targets=(),
    )


def least(q: Tensor, subset: int, key: Tensor) -> Tensor:
    """`[M]` the least value of some critics `[N, M]`, of all or of a random subset (Chen et al. 2021)."""
    if subset == len(q):
        return q.amin(0)
    return q[random.permutation(key, len(q))[:subset]].amin(0)


def check_subset(config: Any) -> None:
    """Raise a `ValueError` if a config asks for more critics than it has."""
    if config.subset > config.n_critics:
        raise ValueError(f"{type(config).__name__}.subset = {config.subset} is more than n_critics = {config.n_critics}")


def number(subset: int, belief: str = "least") -> Head:
    """The expected return, with the squared error; targets are of the least of the critics, against overestimation (Fujimoto et al.
    2018), or of a random subset of them.

    Args:
        belief: of `BELIEFS`.
    """

    def values(out: Tensor) -> Tensor:
        return out.squeeze(-1)

    def wanted(next_out: Tensor, reward: Tensor, discount: Tensor, cost: Tensor, key: Tensor) -> Tensor:
        return reward + discount * (least(values(next_out), subset, key) - cost)

    def loss(out: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        error = wanted - values(out)
        return error**2, error

    return Head(1, values, lambda out: BELIEFS[belief](values(out)), wanted, loss)


def truncated_quantiles(n_quantiles: int, n_dropped: int) -> Head:
    """Quantiles of the return (Kuznetsov et al. 2020): those of all critics together make the targets, but for the highest, as many
    a critic as are to be dropped. A policy raises the mean of all."""

    def wanted(next_out: Tensor, reward: Tensor, discount: Tensor, cost: Tensor, key: Tensor) -> Tensor:
        n_critics, m, _ = next_out.shape
        pooled, _ = next_out.movedim(0, 1).reshape(m, -1).sort(-1)
        kept = pooled[:, : n_critics * (n_quantiles - n_dropped)]
        return reward[:, None] + discount[:, None] * (kept - cost[:, None])

    def loss(out: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        each = losses.quantile_huber_loss(out, wanted.expand(len(out), *wanted.shape)) / n_quantiles
        return each, (wanted.mean(-1) - out.mean(-1)).detach()

    return Head(n_quantiles, lambda out: out.mean(-1), lambda out: out.mean((0, -1)), wanted, loss)


def check_quantiles(config: Any) -> None:
    """Raise a `ValueError` if a config drops all quantiles that it has."""
    if 0 < config.n_quantiles <= config.n_dropped:
        name = type(config).__name__
        raise ValueError(f"{name}.n_dropped = {config.n_dropped} is not less than n_quantiles = {config.n_quantiles}")


def head(config: Any) -> Head:
    """The head of a config with `n_quantiles`, where none means one number a critic."""
    if config.n_quantiles:
        return truncated_quantiles(config.n_quantiles, config.n_dropped)
    return number(config.subset, config.belief)
