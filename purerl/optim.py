"""Optimizers as pure gradient transformations over a tensor or a TensorDict.

`init(params) -> state`; `update(grads, state, params) -> (updates, state)`; `apply_updates` adds the updates. Numbers may be floats
or tensors, so that a learning rate can be a leaf one vmaps over. States do not depend on the numbers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import tree

Number = float | Tensor


class Optimizer(NamedTuple):
    """A gradient transformation: `init(params) -> state`, `update(grads, state, params) -> (updates, state)`."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


def apply_updates(params: Any, updates: Any) -> Any:
    """`params + updates`, leaf by leaf."""
    return tree.map(lambda p, u: p + u, params, updates)


def global_norm(grads: Any) -> Tensor:
    """The Euclidean norm of all leaves together, a 0-d tensor."""
    return torch.sqrt(torch.stack([(g * g).sum() for g in tree.leaves(grads)]).sum())


def _stateless(f: Callable[[Any, Any], Any]) -> Optimizer:
    return Optimizer(lambda params: TensorDict(), lambda grads, state, params: (f(grads, params), state))


def chain(*optimizers: Optimizer) -> Optimizer:
    """Apply transformations one after the other; the state holds theirs under "0", "1", ..."""

    def init(params: Any) -> TensorDict:
        return TensorDict({str(i): optimizer.init(params) for i, optimizer in enumerate(optimizers)})

    def update(grads: Any, states: TensorDict, params: Any) -> tuple[Any, TensorDict]:
        new = {}
        for i, optimizer in enumerate(optimizers):
            grads, new[str(i)] = optimizer.update(grads, states[str(i)], params)
        return grads, TensorDict(new)

    return Optimizer(init, update)


def clip_by_global_norm(max_norm: Number) -> Optimizer:
    """Scale the gradients so that their global norm is at most `max_norm` (as `torch.nn.utils.clip_grad_norm_`)."""

    def clip(grads: Any, params: Any) -> Any:
        scale = torch.clamp(max_norm / (global_norm(grads) + 1e-6), max=1.0)
        return tree.map(lambda g: g * scale, grads)

    return _stateless(clip)


def scale(factor: Number) -> Optimizer:
    """Multiply the gradients; `-learning_rate` makes a descent step of them."""
    return _stateless(lambda grads, params: tree.map(lambda g: g * factor, grads))


def add_decayed_weights(weight_decay: Number) -> Optimizer:
    """Add `weight_decay * params` to the gradients."""
    return _stateless(lambda grads, params: tree.map(lambda g, p: g + weight_decay * p, grads, params))


def trace(momentum: Number, nesterov: bool = False) -> Optimizer:
    """Momentum as PyTorch has it: `m = momentum * m + g`, undamped."""

    def update(grads: Any, state: TensorDict, params: Any) -> tuple[Any, TensorDict]:
        m = tree.map(lambda m, g: momentum * m + g, state["m"], grads)
        return (tree.map(lambda m, g: momentum * m + g, m, grads) if nesterov else m), TensorDict(m=m)

    return Optimizer(lambda params: TensorDict(m=tree.map(torch.zeros_like, params)), update)


def _power(base: Number, count: Tensor) -> Tensor:
    """A decay to the power of a count. A compiler computes an exponential once, but a power anew for each parameter."""
    return torch.exp(count * (base.log() if isinstance(base, Tensor) else math.log(base) if base else -math.inf))


def scale_by_adam(b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8) -> Optimizer:
    """Adam's direction, bias-corrected (Kingma and Ba 2015, algorithm 1, with `eps` outside the root)."""

    def init(params: Any) -> TensorDict:
        moments = {name: tree.map(torch.zeros_like, params) for name in ("mu", "nu")}
        return TensorDict(**moments, count=torch.zeros((), device=tree.leaves(params)[0].device))

    def update(grads: Any, state: TensorDict, params: Any) -> tuple[Any, TensorDict]:
        count = state["count"] + 1
        mu = tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mu"], grads)
        nu = tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["nu"], grads)
        s1, s2 = 1 / (1 - _power(b1, count)), torch.rsqrt(1 - _power(b2, count))
        updates = tree.map(lambda m, v: (m * s1) / (torch.sqrt(v) * s2 + eps), mu, nu)
        return updates, TensorDict(mu=mu, nu=nu, count=count)

    return Optimizer(init, update)


def scale_by_radam(b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8) -> Optimizer:
    """Adam's direction once its variance is tractable, and momentum's until then (Liu et al. 2020, algorithm 2)."""
    adam = scale_by_adam(b1, b2, 0.0)

    def update(grads: Any, state: TensorDict, params: Any) -> tuple[Any, TensorDict]:
        _, after = adam.update(grads, state, params)
        count = after["count"]
        power = _power(b2, count)
        s1, c2 = 1 / (1 - _power(b1, count)), 1 - power
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * count * power / c2
        rest = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        rectifier = torch.sqrt(torch.clamp(rest, min=0.0))

        def direction(m: Tensor, v: Tensor) -> Tensor:
            return m * s1 * torch.where(length > 5, rectifier * torch.sqrt(c2) / (torch.sqrt(v) + eps), 1.0)

        return tree.map(direction, after["mu"], after["nu"]), after

    return Optimizer(adam.init, update)


def scale_by_rms(decay: Number = 0.99, eps: Number = 1e-8) -> Optimizer:
    """RMSProp's direction as PyTorch defines it: `g / (sqrt(v) + eps)`, `v` from zero."""
    return _scale_by_rms(decay, lambda v: torch.sqrt(v) + eps, torch.zeros_like)


def scale_by_rms_tf(decay: Number = 0.99, eps: Number = 1e-8) -> Optimizer:
    """RMSProp's direction as TensorFlow 1 defines it: `g / sqrt(v + eps)`, `v` from one."""
    return _scale_by_rms(decay, lambda v: torch.sqrt(v + eps), torch.ones_like)


def _scale_by_rms(decay: Number, root: Callable[[Tensor], Tensor], start: Callable[[Tensor], Tensor]) -> Optimizer:
    def update(grads: Any, state: TensorDict, params: Any) -> tuple[Any, TensorDict]:
        v = tree.map(lambda v, g: decay * v + (1 - decay) * g * g, state["v"], grads)
        return tree.map(lambda g, v: g / root(v), grads, v), TensorDict(v=v)

    return Optimizer(lambda params: TensorDict(v=tree.map(start, params)), update)


def sgd(lr: Number, momentum: Number | None = None, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent, as `torch.optim.SGD`."""
    return scale(-lr) if momentum is None else chain(trace(momentum, nesterov), scale(-lr))


def adam(lr: Number, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8) -> Optimizer:
    """Adam, as `torch.optim.Adam`."""
    return chain(scale_by_adam(b1, b2, eps), scale(-lr))


def adamw(lr: Number, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8, weight_decay: Number = 1e-2) -> Optimizer:
    """Adam with decoupled weight decay, as `torch.optim.AdamW` (Loshchilov and Hutter 2019)."""
    return chain(scale_by_adam(b1, b2, eps), add_decayed_weights(weight_decay), scale(-lr))


def radam(lr: Number, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8) -> Optimizer:
    """Rectified Adam, as `torch.optim.RAdam`."""
    return chain(scale_by_radam(b1, b2, eps), scale(-lr))


def rmsprop(lr: Number, decay: Number = 0.99, eps: Number = 1e-8) -> Optimizer:
    """RMSProp, as `torch.optim.RMSprop`."""
    return chain(scale_by_rms(decay, eps), scale(-lr))


def rmsprop_tf(lr: Number, decay: Number = 0.99, eps: Number = 1e-8) -> Optimizer:
    """RMSProp as TensorFlow 1 defines it (Mnih et al.'s published agents were trained with it)."""
    return chain(scale_by_rms_tf(decay, eps), scale(-lr))


def linear_schedule(start: Number, end: Number, fraction: Number) -> Number:
    """From `start` to `end` along a straight line, at `fraction` (clipped to [0, 1]) of the way."""
    return start + (end - start) * torch.clamp(torch.as_tensor(fraction), 0.0, 1.0)


def cosine_schedule(start: Number, end: Number, fraction: Number) -> Number:
    """From `start` to `end` along half a cosine (Loshchilov and Hutter 2017), at `fraction` (clipped to [0, 1]) of the way."""
    turn = torch.clamp(torch.as_tensor(fraction), 0.0, 1.0) * torch.pi
    return end + (start - end) * 0.5 * (1.0 + torch.cos(turn))


SCHEDULES: dict[str, Callable[[Number], Number]] = {
    "constant": lambda fraction: 1.0,
    "linear": lambda fraction: linear_schedule(1.0, 0.0, fraction),
    "cosine": lambda fraction: cosine_schedule(1.0, 0.0, fraction),
}
