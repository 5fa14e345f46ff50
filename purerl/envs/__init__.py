"""Environments: pure ports, probes, and the doors to and from Gymnasium."""

from purerl.envs.registry import PURE, HostEnv, host, make, pure
from purerl.envs.vector import PureVectorEnv, to_gymnasium
from purerl.envs.wrappers import accept_keys, time_limit

__all__ = ["PURE", "HostEnv", "PureVectorEnv", "accept_keys", "host", "make", "pure", "time_limit", "to_gymnasium"]
