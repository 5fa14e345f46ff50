"""Action distributions as records of pure functions; the parameters are one tensor, a network's output.

Sampling takes noise, not a key: `draw(key) -> noise` makes it for one action, so that a rollout draws for all its steps at once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import logsigmoid

from purerl import random
from purerl.spaces import children

_LOG_2PI = math.log(2 * math.pi)


class Distribution(NamedTuple):
    """A family of distributions over actions `[..., *action_shape]` (nested spaces': TensorDicts), of parameters `[..., n_params]`.

    Attributes:
        n_params: width of the parameter tensor.
        draw: `draw(key) -> noise [n_noise]` for one action.
        sample: `sample(params [..., P], noise [..., n_noise]) -> action`.
        mode: `mode(params) -> action`.
        log_prob: `log_prob(params, action) -> [...]`.
        entropy: `entropy(params) -> [...]`; exact, but for `tanh_gaussian`, which says how it approximates.
        kl: `kl(params_p, params_q) -> [...]`, KL(p || q).
        sample_and_log_prob: `sample_and_log_prob(params, noise) -> (action, [...])`, both of one pass; where an action was
            squashed, of what it was before, which an action near the walls does not tell any more.
    """

    n_params: int
    draw: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, Tensor], Any]
    mode: Callable[[Tensor], Any]
    log_prob: Callable[[Tensor, Any], Tensor]
    entropy: Callable[[Tensor], Tensor]
    kl: Callable[[Tensor, Tensor], Tensor]
    sample_and_log_prob: Callable[[Tensor, Tensor], tuple[Any, Tensor]]


def _both(sample: Callable[[Tensor, Tensor], Any], log_prob: Callable[[Tensor, Any], Tensor]) -> Callable:
    """A sample and its log-probability, where the sample tells it."""

    def sample_and_log_prob(params: Tensor, noise: Tensor) -> tuple[Any, Tensor]:
        action = sample(params, noise)
        return action, log_prob(params, action)

    return sample_and_log_prob


def _pick(log_p: Tensor, action: Tensor) -> Tensor:
    return torch.gather(log_p, -1, action.unsqueeze(-1)).squeeze(-1)


def categorical(n: int) -> Distribution:
    """Actions `0, ..., n - 1` (int64 `[...]`) from logits `[..., n]`."""

    def entropy(logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, -1)
        return -(log_p.exp() * log_p).sum(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def sample(logits: Tensor, noise: Tensor) -> Tensor:
        return torch.argmax(logits + noise, -1)

    def log_prob(logits: Tensor, action: Tensor) -> Tensor:
        return _pick(torch.log_softmax(logits, -1), action)

    return Distribution(
        n_params=n,
        draw=lambda key: random.gumbel(key, (n,)),
        sample=sample,
        mode=lambda logits: torch.argmax(logits, -1),
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        sample_and_log_prob=_both(sample, log_prob),
    )


def multi_categorical(ns: tuple[int, ...]) -> Distribution:
    """Independent categoricals: actions `[..., len(ns)]` int64 from concatenated logits `[..., sum(ns)]`."""
    parts = [categorical(n) for n in ns]

    def each(name: str, *tensors: Tensor) -> list[Tensor]:
        cut = zip(*(x.split(ns, -1) for x in tensors), strict=True)
        return [getattr(part, name)(*xs) for part, xs in zip(parts, cut, strict=True)]

    def log_prob(logits: Tensor, action: Tensor) -> Tensor:
        split = zip(parts, logits.split(ns, -1), action.unbind(-1), strict=True)
        return torch.stack([part.log_prob(x, a) for part, x, a in split]).sum(0)

    def sample(logits: Tensor, noise: Tensor) -> Tensor:
        return torch.stack(each("sample", logits, noise), -1)

    return Distribution(
        n_params=sum(ns),
        draw=lambda key: random.gumbel(key, (sum(ns),)),
        sample=sample,
        mode=lambda logits: torch.stack(each("mode", logits), -1),
        log_prob=log_prob,
        entropy=lambda logits: torch.stack(each("entropy", logits)).sum(0),
        kl=lambda p, q: torch.stack(each("kl", p, q)).sum(0),
        sample_and_log_prob=_both(sample, log_prob),
    )


def diagonal_gaussian(shape: tuple[int, ...]) -> Distribution:
    """Actions `[..., *shape]` float32; parameters are the flattened means, then the log standard deviations, `[..., 2 n]`."""
    n = math.prod(shape)

    def moments(params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = params.split(n, -1)
        return mean, log_std

    def shaped(flat: Tensor) -> Tensor:
        return flat.reshape(*flat.shape[:-1], *shape)

    def sample(params: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = moments(params)
        return shaped(mean + log_std.exp() * noise)

    def log_prob(params: Tensor, action: Tensor) -> Tensor:
        mean, log_std = moments(params)
        z = (action.reshape(mean.shape) - mean) * torch.exp(-log_std)
        return (-0.5 * z * z - log_std - 0.5 * _LOG_2PI).sum(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        (mean_p, log_p), (mean_q, log_q) = moments(p), moments(q)
        variances = torch.exp(2 * (log_p - log_q)) + ((mean_p - mean_q) * torch.exp(-log_q)) ** 2
        return (log_q - log_p + 0.5 * (variances - 1.0)).sum(-1)

    return Distribution(
        n_params=2 * n,
        draw=lambda key: random.normal(key, (n,)),
        sample=sample,
        mode=lambda params: shaped(moments(params)[0]),
        log_prob=log_prob,
        entropy=lambda params: (moments(params)[1] + 0.5 * (1.0 + _LOG_2PI)).sum(-1),
        kl=kl,
        sample_and_log_prob=_both(sample, log_prob),
    )


def tanh_gaussian(low: Tensor, high: Tensor) -> Distribution:
    """A diagonal Gaussian squashed by tanh into the box `(low, high)` (Haarnoja et al. 2018, appendix C).

    Its entropy has no closed form: `entropy` is the one-point estimate at the mode's pre-image, log p's expansion around the mean
    (the Gaussian's entropy plus the log-Jacobian there). `kl` is exact: KL is invariant under the bijection.
    """
    base = diagonal_gaussian(tuple(low.shape))
    centre, half = (high + low) / 2, (high - low) / 2
    # float32's tanh reaches 1 near 9: the inverse keeps one ulp away from the walls.
    wall = 1.0 - 2.0**-23

    def squash(u: Tensor) -> Tensor:
        return centre.to(u.device) + half.to(u.device) * torch.tanh(u)

    def log_jacobian(u: Tensor) -> Tensor:
        log_det = torch.log(half).to(u.device) + 2.0 * (math.log(2.0) + logsigmoid(2.0 * u) - u)
        return log_det.reshape(*u.shape[: u.ndim - half.ndim], -1).sum(-1)

    def log_prob(params: Tensor, action: Tensor) -> Tensor:
        u = torch.atanh(((action - centre.to(action.device)) / half.to(action.device)).clamp(-wall, wall))
        return base.log_prob(params, u) - log_jacobian(u)

    def sample_and_log_prob(params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        u, log_p = base.sample_and_log_prob(params, noise)
        return squash(u), log_p - log_jacobian(u)

    return Distribution(
        n_params=base.n_params,
        draw=base.draw,
        sample=lambda params, noise: squash(base.sample(params, noise)),
        mode=lambda params: squash(base.mode(params)),
        log_prob=log_prob,
        entropy=lambda params: base.entropy(params) + log_jacobian(base.mode(params)),
        kl=base.kl,
        sample_and_log_prob=sample_and_log_prob,
    )


def joint(parts: dict[str, Distribution]) -> Distribution:
    """Independent parts: an action is a TensorDict of theirs, the parameters are theirs side by side in this order."""
    widths = [part.n_params for part in parts.values()]
    lengths = [part.draw(torch.zeros(2, dtype=torch.int32)).shape[-1] for part in parts.values()]

    def cut(params: Tensor) -> zip:
        return zip(parts.items(), params.split(widths, -1), strict=True)

    def sample(params: Tensor, noise: Tensor) -> TensorDict:
        drawn = noise.split(lengths, -1)
        return TensorDict({name: part.sample(p, z) for ((name, part), p), z in zip(cut(params), drawn, strict=True)})

    def log_prob(params: Tensor, action: TensorDict) -> Tensor:
        return torch.stack([part.log_prob(p, action[name]) for (name, part), p in cut(params)]).sum(0)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        both = zip(parts.values(), p.split(widths, -1), q.split(widths, -1), strict=True)
        return torch.stack([part.kl(x, y) for part, x, y in both]).sum(0)

    return Distribution(
        n_params=sum(widths),
        draw=lambda key: torch.cat([d.draw(k) for d, k in zip(parts.values(), random.split(key, len(parts)), strict=True)], -1),
        sample=sample,
        mode=lambda params: TensorDict({name: part.mode(p) for (name, part), p in cut(params)}),
        log_prob=log_prob,
        entropy=lambda params: torch.stack([part.entropy(p) for (_, part), p in cut(params)]).sum(0),
        kl=kl,
        sample_and_log_prob=_both(sample, log_prob),
    )


def for_space(space: gym.Space) -> Distribution:
    """The policy-gradient distribution of an action space.

    Discrete: categorical; MultiDiscrete and MultiBinary: independent categoricals; Box: diagonal Gaussian (clip to the box when
    acting); Dict and Tuple: their parts, independent. Actions count from zero: the environment's side adds a Discrete's `start`.

    Raises:
        ValueError: another kind of space.
    """
    match space:
        case gym.spaces.Discrete():
            return categorical(int(space.n))
        case gym.spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return multi_categorical(tuple(int(n) for n in space.nvec))
        case gym.spaces.MultiBinary() if np.ndim(space.n) == 0:
            return multi_categorical((2,) * int(np.asarray(space.n)))
        case gym.spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return diagonal_gaussian(space.shape)
        case gym.spaces.Dict() | gym.spaces.Tuple():
            return joint({name: for_space(part) for name, part in children(space)})
        case _:
            axes = " with one axis" if isinstance(space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary) else ""
            raise ValueError(f"action space: {space} is not Discrete, MultiDiscrete, MultiBinary{axes} or a Box of floats")
