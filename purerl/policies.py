"""A network as the policy that a sampler acts with, for a training loop of one's own."""

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from purerl import distributions, nets, tree
from purerl.base import EnvSpec, Inputs, Policy, check_spec
from purerl.spaces import blank_inputs


def make_policy(spec: EnvSpec, net: nn.Module | nets.Network) -> Policy:
    """The stochastic policy of a network; its state, which a feed's `publish` takes, are the parameters.

    Args:
        spec: the environment's.
        net: `forward(obs [N, ...])` gives the parameters `[N, P]` of `distributions.for_space(spec.action_space)`, or a tuple of
            them and more; or a `Network`, which gives them `[T, B, P]`.

    Returns:
        The policy; `act` puts the action's `log_prob` into the batch's extras.

    Raises:
        ValueError: an action space that no distribution is known for, or parameters of another width.
    """
    check_spec(spec)
    dist = distributions.for_space(spec.action_space)

    def first(out: Any) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    def check(out: Any, lead: Sequence[int]) -> None:
        nets.check_output("action parameters", first(out), lead, (dist.n_params,))

    example = tree.map(lambda x: x[None], blank_inputs(spec, 2))
    network = nets.as_network(net, nets.orthogonal, check, example)

    def act(params: TensorDict, inputs: Inputs, carry: TensorDict, noise: Tensor) -> tuple[Any, TensorDict, TensorDict]:
        out, carry = nets.step(network, params, inputs, carry)
        action = dist.sample(first(out), noise)
        return action, TensorDict(log_prob=dist.log_prob(first(out), action)), carry

    def mode(params: TensorDict, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
        out, carry = nets.step(network, params, inputs, carry)
        return dist.mode(first(out)), carry

    return Policy(init=network.init, act=act, mode=mode, draw=dist.draw, spec=spec, carry=network.carry)
