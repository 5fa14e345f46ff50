"""Networks: ordinary modules, with their parameters outside."""

from purerl.nets.init import SCHEMES, apply, blank, init, kaiming_uniform, orthogonal, parameters
from purerl.nets.modules import (
    ACTIVATIONS,
    ActorCritic,
    Flatten,
    GaussianHead,
    NatureCNN,
    actor_critic,
    check_output,
    is_image,
    is_vector,
    linear,
    mlp,
    torso,
)

__all__ = [
    "ACTIVATIONS",
    "SCHEMES",
    "ActorCritic",
    "Flatten",
    "GaussianHead",
    "NatureCNN",
    "actor_critic",
    "apply",
    "blank",
    "check_output",
    "init",
    "is_image",
    "is_vector",
    "kaiming_uniform",
    "linear",
    "mlp",
    "orthogonal",
    "parameters",
    "torso",
]
