"""Networks as records of pure functions over fragments `[T, B]`; a feed-forward one is the case without a memory."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl import random, tree
from purerl.base import Carry, Inputs
from purerl.nets.init import Scheme, apply, blank, orthogonal
from purerl.nets.init import init as draw
from purerl.transforms import shapes


class Forward(Protocol):
    def __call__(self, params: TensorDict, inputs: Inputs, carry: TensorDict, /) -> tuple[Any, TensorDict]:
        """Run over a fragment.

        Args:
            params: as `init` draws them.
            inputs: `[T, B]`.
            carry: `[B]` the memory before the first step; it is taken for a new one wherever `inputs.first`.

        Returns:
            The output, a tree with leaves `[T, B, ...]`, and the memory after the last step `[B]`.
        """


class Network(NamedTuple):
    """A network apart from its parameters.

    Attributes:
        init: `init(key) -> params`.
        forward: `forward(params, inputs [T, B], carry [B]) -> (out [T, B, ...], carry [B])`.
        carry: `carry(n_envs) -> TensorDict [B]`, the memory before an episode; empty where there is none.
    """

    init: Callable[[Tensor], TensorDict]
    forward: Forward
    carry: Carry = lambda n_envs: TensorDict()


# What looks at a network's output and at the leading axes it should have, and raises.
Check = Callable[[Any, Sequence[int]], None]


def _check_nothing(out: Any, lead: Sequence[int]) -> None:
    pass


def feed_forward(module: nn.Module, scheme: Scheme = orthogonal, check: Check = _check_nothing) -> Network:
    """The network of a module `forward(obs [N, ...]) -> out [N, ...]`, which reads nothing but observations.

    Args:
        module: on any device; only its shapes are used.
        scheme: draws the parameters.
        check: of the module's output.
    """

    def forward(params: TensorDict, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
        lead = inputs.first.shape
        out = apply(module, params, tree.map(lambda x: x.flatten(0, 1), inputs.obs))
        check(out, (lead.numel(),))
        return tree.map(lambda x: _split(x, lead), out), carry

    return Network(lambda key: draw(module, key, scheme), forward)


def _split(x: Tensor, lead: torch.Size) -> Tensor:
    if x.ndim == 0 or len(x) != lead.numel():
        raise ValueError(f"net: an output of {lead.numel()} observations has shape {list(x.shape)}, not [{lead.numel()}, ...]")
    return x.unflatten(0, lead)


def recurrent(module: nn.Module, carry: Carry, scheme: Scheme = orthogonal) -> Network:
    """The network of a module `forward(inputs [T, B], carry [B]) -> (out [T, B, ...], carry [B])`; `unroll` helps to write one.

    Args:
        module: on any device; only its shapes are used.
        carry: `carry(n_envs) -> TensorDict [B]`, the memory before an episode.
        scheme: draws the parameters.
    """

    def forward(params: TensorDict, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
        out, after = apply(module, params, inputs, carry)
        return out, after

    return Network(lambda key: draw(module, key, scheme), forward, carry)


def as_network(net: nn.Module | Network, scheme: Scheme, check: Check, example: Inputs) -> Network:
    """The network of a module `forward(obs [N, ...])`, or the one that is given, with its output checked.

    Args:
        scheme: draws a module's parameters.
        check: of the output, now and whenever it is traced.
        example: `[T, B]`, to try it out on.

    Raises:
        ValueError: what `check` and `check_carry` raise.
    """
    if isinstance(net, Network):
        network, params = net._replace(forward=_checked(net.forward, check)), net.init(random.key(0))
    else:
        network, params = feed_forward(net, scheme, check), blank(net)
    carry = network.carry(example.first.shape[1])
    check_carry(carry, shapes(lambda *args: network.forward(*args)[1], params, example, carry))
    return network


def _checked(forward: Forward, check: Check) -> Forward:
    def checked(params: TensorDict, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
        out, carry = forward(params, inputs, carry)
        check(out, tuple(inputs.first.shape))
        return out, carry

    return checked


def check_carry(before: TensorDict, after: TensorDict) -> None:
    """Raise a `ValueError` if a memory `[B]` has not the names, shapes and dtypes of the one before it."""
    kinds = [
        {name: (list(x.shape), x.dtype) for name, x in carry.items(include_nested=True, leaves_only=True)}
        for carry in (before, after)
    ]
    if [*kinds[0].items()] != [*kinds[1].items()]:
        raise ValueError(f"carry: the memory after a step is {kinds[1]}, but {kinds[0]} went in")


def unroll(
    step: Callable[[Inputs, TensorDict], tuple[Any, TensorDict]], start: TensorDict, inputs: Inputs, carry: TensorDict
) -> tuple[Any, TensorDict]:
    """`step(inputs [B], carry [B]) -> (out [B, ...], carry [B])` over a fragment `[T, B]`, which may be differentiated through.

    All steps become part of the program: it is for short fragments.

    Args:
        start: `[B]` the memory before an episode, in the place of the last one where `first`.
    """
    outs = []
    for t in range(len(inputs.first)):
        now = tree.index(inputs, t)
        out, carry = step(now, tree.where(now.first, start, carry))
        outs.append(out)
    return tree.stack(outs), carry


def step(net: Network, params: TensorDict, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
    """A network's output `[B, ...]` for one step's inputs `[B]`, and its memory after it."""
    out, carry = net.forward(params, tree.map(lambda x: x[None], inputs), carry)
    return tree.map(lambda x: x.squeeze(0), out), carry


def of_obs(net: Network, params: TensorDict, obs: Any) -> Any:
    """The output `[M, ...]` of a network without memory for observations `[M, ...]` alone."""
    m, device = len(tree.leaves(obs)[0]), tree.leaves(obs)[0].device
    none = torch.zeros(m, device=device)
    out, _ = step(net, params, Inputs(obs=obs, prev_action=none.long(), prev_reward=none, first=none.bool()), TensorDict())
    return out


def has_memory(net: Network) -> bool:
    """Whether a network carries anything from step to step."""
    return bool(tree.leaves(net.carry(1)))
