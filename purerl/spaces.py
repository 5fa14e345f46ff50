"""Between Gymnasium's spaces and the core's tensors."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from tensordict import TensorDict
from torch import Tensor

from purerl.base import EnvSpec, Inputs


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


def zero_obs(space: gym.Space, n: int) -> Tensor | TensorDict:
    """Zeros as observations `[n, *obs_shape]`, of any nesting."""
    return to_tensors(create_empty_array(space, n))


def blank_inputs(spec: EnvSpec, n: int) -> Inputs:
    """What a policy sees of `n` environments before anything happened."""
    return Inputs(
        obs=zero_obs(spec.observation_space, n),
        prev_action=zero_actions(spec.action_space, n),
        prev_reward=torch.zeros(n),
        first=torch.ones(n, dtype=torch.bool),
    )


def parts(space: gym.Space) -> list[tuple[tuple[str | int, ...], gym.Space]]:
    """The leaves of a space, each with the keys that lead to it, in the order of its TensorDict's leaves."""
    match space:
        case gym.spaces.Dict():
            for key in space.spaces:
                if not isinstance(key, str):
                    raise ValueError(f"space: the key {key!r} of {space} is not a string")
            inner: list[tuple[str | int, gym.Space]] = list(space.spaces.items())
        case gym.spaces.Tuple():
            inner = list(enumerate(space.spaces))
        case _:
            return [((), space)]
    return [((key, *path), leaf_space) for key, part in inner for path, leaf_space in parts(part)]


def leaf(x: Any, path: tuple[str | int, ...]) -> Any:
    """The part of a nested value that keys lead to."""
    for key in path:
        x = x[key]
    return x


def field(name: str, path: tuple[str | int, ...]) -> str:
    """What a user calls a part of a nested value: `observation['camera'][0]`."""
    return name + "".join(f"[{key!r}]" for key in path)


def bounds(space: gym.Space) -> tuple[Any, Any] | None:
    """The least and the greatest value of a space whose values are counted, each a number or an array; None for a Box."""
    match space:
        case gym.spaces.Discrete():
            return space.start, space.start + space.n - 1
        case gym.spaces.MultiDiscrete():
            return space.start, space.start + space.nvec - 1
        case gym.spaces.MultiBinary():
            return 0, 1
    return None


def composer(space: gym.Space) -> Callable[[list], Any]:
    """What makes a nested value of a space from its leaves."""

    def compose(space: gym.Space, leaves: Iterator) -> Any:
        match space:
            case gym.spaces.Dict():
                return {key: compose(part, leaves) for key, part in space.spaces.items()}
            case gym.spaces.Tuple():
                return tuple(compose(part, leaves) for part in space.spaces)
            case _:
                return next(leaves)

    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        return lambda leaves: compose(space, iter(leaves))
    return lambda leaves: leaves[0]


def zero_actions(space: gym.Space, n: int, device: torch.device | None = None) -> Tensor | TensorDict:
    """Zeros `[n, *action_shape]`: int64 for the discrete spaces, float32 for Box, a TensorDict for Dict and Tuple."""
    match space:
        case gym.spaces.Dict() | gym.spaces.Tuple():
            return TensorDict({name: zero_actions(part, n, device) for name, part in children(space)})
        case _:
            dtype = torch.float32 if isinstance(space, gym.spaces.Box) else torch.int64
            return torch.zeros((n, *(space.shape or ())), dtype=dtype, device=device)


def children(space: gym.spaces.Dict | gym.spaces.Tuple) -> list[tuple[str, gym.Space]]:
    """The parts of a nested space under their names in a TensorDict."""
    items = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
    return [(str(key), part) for key, part in items]


def env_actions(space: gym.Space, action: Any) -> Any:
    """What the environment receives: a Box's actions clipped to its bounds in its own dtype, discrete ones counted from `start`."""

    def like(bound: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(bound, dtype=dtype or action.dtype, device=action.device)

    match space:
        case gym.spaces.Dict() | gym.spaces.Tuple():
            return TensorDict({name: env_actions(part, action[name]) for name, part in children(space)})
        case gym.spaces.Box():
            dtype = getattr(torch, str(space.dtype))  # a float64 bound may lie between two float32 numbers
            return torch.minimum(torch.maximum(action.to(dtype), like(space.low, dtype)), like(space.high, dtype))
        case gym.spaces.Discrete():
            return action + int(space.start)
        case gym.spaces.MultiDiscrete():
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
