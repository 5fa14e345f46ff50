"""Environments: pure ports, probes, and the doors to and from Gymnasium and ALE."""

from purerl.envs.atari import GAME_OVER, RAW_REWARD, AtariVector
from purerl.envs.registry import (
    MAKERS,
    PURE,
    RAISED,
    HostEnv,
    atari,
    host,
    make,
    pure,
    route_mujoco_warnings,
    to_vector,
    vector_host,
)
from purerl.envs.vector import PureVectorEnv, to_gymnasium
from purerl.envs.wrappers import accept_keys, check, choose_actions, sticky_actions, time_limit

__all__ = [
    "GAME_OVER",
    "MAKERS",
    "PURE",
    "RAISED",
    "RAW_REWARD",
    "AtariVector",
    "HostEnv",
    "PureVectorEnv",
    "accept_keys",
    "atari",
    "check",
    "choose_actions",
    "host",
    "make",
    "pure",
    "route_mujoco_warnings",
    "sticky_actions",
    "time_limit",
    "to_gymnasium",
    "to_vector",
    "vector_host",
]
