"""Ensembles of critics of continuous control: what they say of a return, how they learn it, and what a policy is to raise."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import losses, nets, random, tree
from purerl.algos.c51 import check_support
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
        bound: the largest return in absolute value that they can say.
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
    bound: float = float("inf")


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
        project: `project(params) -> params`, where their parameters are to stay, which follows every gradient step.
    """

    init: Callable[[Tensor], TensorDict]
    head: Head
    kept: Mapping[str, Tensor]
    at: Callable[[TensorDict, Any, Tensor, Tensor], Tensor]
    both: Callable[..., tuple[Tensor, Tensor, dict[str, Tensor]]]
    targets: tuple[str, ...]
    project: Callable[[TensorDict], TensorDict] | None = None


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


def together(
    critic: nets.BatchNormalizedPairs, scheme: Scheme, n_critics: int, head: Head, momentum: float, unit_weights: bool = False
) -> Critics:
    """Both ends of transitions are one batch, by which both are normalised, and there are no target networks (Bhatt et al. 2024).

    Args:
        momentum: how much of the statistics, by which critics are normalised while the policy learns, stays at each step.
        unit_weights: the weights that make a hidden number, of which the normalisation takes the size away, have the length one,
            so that it does not grow, and with it the gradients do not fall (Palenicek et al. 2025).
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

    def project(params: TensorDict) -> TensorDict:
        return TensorDict({name: unit_rows(x) if name in units else x for name, x in params.items()})

    def init(key: Tensor) -> TensorDict:
        params = vmap(lambda key: nets.init(critic, key, scheme))(random.split(key, n_critics))
        return project(params) if unit_weights else params

    units = [f"hidden.{i}.weight" for i in range(len(critic.hidden))]
    none = torch.zeros(n_critics, sum(critic.widths))
    return Critics(
        init=init,
        head=head,
        kept={"statistics": torch.stack([none, none + 1.0], 1)},
        at=at,
        both=both,
        targets=(),
        project=project if unit_weights else None,
    )


def unit_rows(x: Any) -> Tensor:
    """`[..., n]` vectors, brought to the length one."""
    return torch.nn.functional.normalize(x, dim=-1)


def random_subset(out: Tensor, subset: int, key: Tensor) -> Tensor:
    """`[subset, ...]` what some of the critics `[N, ...]` say, all or a random subset of them (Chen et al. 2021)."""
    return out if subset == len(out) else out[random.permutation(key, len(out))[:subset]]


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
        return reward + discount * (random_subset(values(next_out), subset, key).amin(0) - cost)

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


def categorical(n_atoms: int, v_min: float, v_max: float, subset: int, belief: str = "least") -> Head:
    """Probabilities of returns from `v_min` to `v_max` (Bellemare et al. 2017), learnt by the cross-entropy; targets are made of
    the distribution with the least mean, of all critics or of a random subset.

    Args:
        belief: of `BELIEFS`, about the means.
    """

    def support(like: Tensor) -> Tensor:
        return torch.linspace(v_min, v_max, n_atoms, device=like.device)

    def values(out: Tensor) -> Tensor:
        return losses.categorical_mean(support(out), out)

    def wanted(next_out: Tensor, reward: Tensor, discount: Tensor, cost: Tensor, key: Tensor) -> Tensor:
        asked = random_subset(next_out, subset, key)
        which = values(asked).argmin(0)[None, :, None].expand(1, *asked.shape[1:])
        probs = torch.softmax(asked.gather(0, which)[0], -1)
        return losses.categorical_projection(support(probs), probs, reward - discount * cost, discount)

    def loss(out: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        return losses.categorical_loss(out, wanted), ((wanted * support(wanted)).sum(-1) - values(out)).detach()

    return Head(n_atoms, values, lambda out: BELIEFS[belief](values(out)), wanted, loss, max(-v_min, v_max))


def check_head(config: Any) -> None:
    """Raise a `ValueError` if a config drops all quantiles that it has, asks for two distributions, or for one over nothing."""
    name = type(config).__name__
    if 0 < config.n_quantiles <= config.n_dropped:
        raise ValueError(f"{name}.n_dropped = {config.n_dropped} is not less than n_quantiles = {config.n_quantiles}")
    if config.n_quantiles and config.n_atoms:
        raise ValueError(f"{name}.n_atoms = {config.n_atoms} and n_quantiles = {config.n_quantiles}: one of them has to be 0")
    if config.n_atoms:
        check_support(config)


def head(config: Any) -> Head:
    """The head of a config with `n_quantiles` and `n_atoms`, where none of both means one number a critic."""
    if config.n_quantiles:
        return truncated_quantiles(config.n_quantiles, config.n_dropped)
    if config.n_atoms:
        return categorical(config.n_atoms, config.v_min, config.v_max, config.subset, config.belief)
    return number(config.subset, config.belief)
