"""Torsos and heads as ordinary modules. An actor-critic is any module `forward(obs [N, ...]) -> (params [N, P], value [N])`."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import conv2d

from purerl import distributions
from purerl.spaces import children

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def linear(n_in: int, n_out: int, gain: float = math.sqrt(2.0)) -> nn.Linear:
    """A linear layer that remembers the gain of its initialisation."""
    layer = nn.Linear(n_in, n_out)
    layer.gain = gain  # type: ignore[assignment]
    return layer


class Flatten(nn.Module):
    """Any observation of a space as one vector: `[N, ...] -> [N, width]` float32.

    Boxes and MultiBinary are flattened, Discrete and MultiDiscrete one-hot, the parts of Dict and Tuple concatenated.
    """

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self.parts = list(_parts(space, ()))
        self.width = gym.spaces.flatdim(space)

    def forward(self, obs: Tensor | TensorDict) -> Tensor:
        return torch.cat([vector for path, sizes in self.parts for vector in _vectors(_leaf(obs, path), sizes)], -1)


def _parts(space: gym.Space, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[tuple[int, int], ...]]]:
    """The leaves of a space: where each lies, and the start and size of its one-hot vectors (none for a Box)."""
    match space:
        case gym.spaces.Dict():
            for name, part in space.spaces.items():
                yield from _parts(part, (*path, name))
        case gym.spaces.Tuple():
            for i, part in enumerate(space.spaces):
                yield from _parts(part, (*path, str(i)))
        case gym.spaces.Discrete():
            yield path, ((int(space.start), int(space.n)),)
        case gym.spaces.MultiDiscrete():
            yield path, tuple((int(s), int(n)) for s, n in zip(space.start.reshape(-1), space.nvec.reshape(-1), strict=True))
        case gym.spaces.Box() | gym.spaces.MultiBinary():
            yield path, ()
        case _:
            raise ValueError(f"observation space: {space} is not Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple")


def _leaf(obs: Any, path: tuple[str, ...]) -> Tensor:
    for name in path:
        obs = obs[name]
    return obs


def _vectors(x: Tensor, sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    if not sizes:
        return [x.float().flatten(1)]
    return [_one_hot(column - start, n) for column, (start, n) in zip(x.reshape(len(x), -1).unbind(-1), sizes, strict=True)]


def _one_hot(x: Tensor, n: int) -> Tensor:
    return (x.unsqueeze(-1) == torch.arange(n, device=x.device)).float()


def mlp(n_in: int, hidden: Sequence[int], activation: str = "tanh") -> nn.Sequential:
    """Linear layers, each followed by its activation: `[N, n_in] -> [N, hidden[-1]]`."""
    widths = [n_in, *hidden]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [linear(a, b), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class NatureCNN(nn.Module):
    """The convolutional torso of Mnih et al. 2015: `[N, C, H, W]` uint8 (scaled to [0, 1]) -> `[N, 512]` float32.

    Args:
        shape: `(C, H, W)`.
        width: of the output.
        dtype: in which it computes; parameters and output are float32 all the same.

    Raises:
        ValueError: the image is smaller than 36 x 36, which the three convolutions need.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 512, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        channels, height, wide = shape
        if min(height, wide) < 36:
            raise ValueError(f"observation: an image of {height} x {wide} is too small for NatureCNN, which needs 36 x 36")
        out = [((((n - 8) // 4 + 1) - 4) // 2 + 1) - 2 for n in (height, wide)]
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)
        self.linear = linear(64 * out[0] * out[1], width)
        self.width, self.dtype = width, dtype

    def forward(self, obs: Tensor) -> Tensor:
        def cast(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
            assert layer.bias is not None
            return layer.weight.to(self.dtype), layer.bias.to(self.dtype)

        x = obs.to(self.dtype) / 255.0
        for layer in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv2d(x, *cast(layer), layer.stride))
        return torch.relu(nn.functional.linear(x.flatten(1), *cast(self.linear))).float()


def torso(space: gym.Space, hidden: Sequence[int], activation: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, int]:
    """The torso for an observation space and its width: NatureCNN for `[C, H, W]` uint8 images, else an MLP on the flat vector."""
    if is_image(space):
        cnn = NatureCNN(space.shape, dtype=dtype)  # type: ignore[arg-type]
        return cnn, cnn.width
    flatten = Flatten(space)
    return nn.Sequential(flatten, mlp(flatten.width, hidden, activation)), (hidden[-1] if hidden else flatten.width)


class GaussianHead(nn.Module):
    """Means from the features and free log standard deviations, `[N, width] -> [N, 2 n]`."""

    def __init__(self, width: int, n: int) -> None:
        super().__init__()
        self.mean = linear(width, n, 0.01)
        self.log_std = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


class Heads(nn.Module):
    """Several heads on the same features, their outputs side by side."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


def policy_head(width: int, space: gym.Space) -> nn.Module:
    """From the features to the parameters of `distributions.for_space(space)`: `[N, width] -> [N, n_params]`."""
    match space:
        case gym.spaces.Box():
            return GaussianHead(width, math.prod(space.shape))
        case gym.spaces.Dict() | gym.spaces.Tuple():
            return Heads([policy_head(width, part) for _, part in children(space)])
        case _:
            return linear(width, distributions.for_space(space).n_params, 0.01)


class ActorCritic(nn.Module):
    """A policy and a value head on separate torsos, or on a shared one: `[N, ...] -> (params [N, P], value [N])`.

    Args:
        obs_space, action_space: choose the torso and the policy head.
        hidden, activation: of the MLP torsos.
        shared: one torso for both heads.
        dtype: in which convolutions compute.
    """

    def __init__(
        self,
        obs_space: gym.Space,
        action_space: gym.Space,
        hidden: Sequence[int],
        activation: str,
        shared: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.actor_torso, width = torso(obs_space, hidden, activation, dtype)
        self.critic_torso = None if shared else torso(obs_space, hidden, activation, dtype)[0]
        self.actor = policy_head(width, action_space)
        self.critic = linear(width, 1, 1.0)

    def forward(self, obs: Tensor | TensorDict) -> tuple[Tensor, Tensor]:
        features = self.actor_torso(obs)
        value_features = features if self.critic_torso is None else self.critic_torso(obs)
        return self.actor(features), self.critic(value_features).squeeze(-1)


def is_vector(space: gym.Space) -> bool:
    """Whether a space is a Box of floats."""
    return isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)


def is_image(space: gym.Space) -> bool:
    """Whether a space is a Box of `[C, H, W]` bytes."""
    return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
