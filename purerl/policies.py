"""A network as the policy that a sampler acts with, for a training loop of one's own."""

from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from purerl import distributions, nets
from purerl.base import EnvSpec, Inputs, Policy, check_spec
from purerl.spaces import blank_inputs


def make_policy(spec: EnvSpec, net: nn.Module) -> Policy:
    """The stochastic policy of a network; its state, which a feed's `publish` takes, are the parameters.

    Args:
        spec: the environment's.
        net: `forward(obs [N, ...])` gives the parameters `[N, P]` of `distributions.for_space(spec.action_space)`, or a tuple of
            them and more.

    Returns:
        The policy; `act` puts the action's `log_prob` into the batch's extras.

    Raises:
        ValueError: an action space that no distribution is known for, or parameters of another width.
    """
    check_spec(spec)
    dist = distributions.for_space(spec.action_space)

    def dist_params(params: TensorDict, inputs: Inputs) -> Tensor:
        out = nets.apply(net, params, inputs.obs)
        chosen = out[0] if isinstance(out, tuple) else out
        nets.check_output("action parameters", chosen, (len(inputs.first), dist.n_params))
        return chosen

    def act(params: TensorDict, inputs: Inputs, carry: TensorDict, noise: Tensor) -> tuple[Any, TensorDict, TensorDict]:
        chosen = dist_params(params, inputs)
        action = dist.sample(chosen, noise)
        return action, TensorDict(log_prob=dist.log_prob(chosen, action)), carry

    def mode(params: TensorDict, inputs: Inputs, carry: TensorDict) -> tuple[Any, TensorDict]:
        return dist.mode(dist_params(params, inputs)), carry

    dist_params(nets.blank(net), blank_inputs(spec, 2))
    return Policy(
        init=lambda key: nets.init(net, key), act=act, mode=mode, draw=dist.draw, carry=lambda n_envs: TensorDict(), spec=spec
    )
