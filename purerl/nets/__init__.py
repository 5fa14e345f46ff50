"""Networks: ordinary modules, with their parameters and their memory outside."""

from purerl.nets.init import SCHEMES, apply, blank, init, kaiming_uniform, orthogonal, parameters
from purerl.nets.modules import (
    ACTIVATIONS,
    ActorCritic,
    Flatten,
    GaussianHead,
    NatureCNN,
    check_actor_critic,
    check_output,
    is_image,
    is_vector,
    linear,
    mlp,
    torso,
)
from purerl.nets.networks import Network, as_network, check_carry, feed_forward, has_memory, recurrent, step, unroll
from purerl.nets.values import ActionValues, Noisy, Plain, check_action_values

__all__ = [
    "ACTIVATIONS",
    "SCHEMES",
    "ActionValues",
    "ActorCritic",
    "Flatten",
    "GaussianHead",
    "NatureCNN",
    "Network",
    "Noisy",
    "Plain",
    "apply",
    "as_network",
    "blank",
    "check_action_values",
    "check_actor_critic",
    "check_carry",
    "check_output",
    "feed_forward",
    "has_memory",
    "init",
    "is_image",
    "is_vector",
    "kaiming_uniform",
    "linear",
    "mlp",
    "orthogonal",
    "parameters",
    "recurrent",
    "step",
    "torso",
    "unroll",
]
