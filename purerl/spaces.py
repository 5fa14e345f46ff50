"""Between Gymnasium's spaces and the core's tensors."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from purerl.base import EnvSpec


def to_tensors(x: Any) -> Tensor | TensorDict:
    """A numpy observation of any nesting as tensors.

    Dict and Tuple become TensorDicts (a Tuple's keys are "0", "1", ...), float64 becomes float32.
    """
    if isinstance(x, dict):
        return TensorDict({name: to_tensors(part) for name, part in x.items()})
    if isinstance(x, tuple):
        return TensorDict({str(i): to_tensors(part) for i, part in enumerate(x)})
    x = np.asarray(x)
    return torch.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x)


def zero_actions(space: gym.Space, n: int, device: torch.device | None = None) -> Tensor:
    """Zeros `[n, *action_shape]`: int64 for the discrete spaces, float32 for Box."""
    dtype = torch.float32 if isinstance(space, gym.spaces.Box) else torch.int64
    return torch.zeros((n, *(space.shape or ())), dtype=dtype, device=device)


def env_actions(space: gym.Space, action: Tensor) -> Tensor:
    """What the environment receives: a Box's actions clipped to its bounds, discrete ones counted from the space's `start`."""

    def like(bound: Any) -> Tensor:
        return torch.as_tensor(bound, dtype=action.dtype, device=action.device)

    match space:
        case gym.spaces.Box():
            return torch.minimum(torch.maximum(action, like(space.low)), like(space.high))
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete():
            return action + like(space.start)
        case _:
            return action


def check_spaces(found: EnvSpec, wanted: EnvSpec) -> None:
    """Refuse an environment whose spaces are not those an algorithm was made for.

    Raises:
        ValueError: naming the space and both its values.
    """
    for name in ("observation_space", "action_space"):
        if getattr(found, name) != getattr(wanted, name):
            raise ValueError(
                f"{found.id}: {name} is {getattr(found, name)}, but the algorithm was made for {getattr(wanted, name)}"
            )
