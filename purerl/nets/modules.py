"""Torsos and heads as ordinary modules. An actor-critic is any module `forward(obs [N, ...]) -> (params [N, P], value [N])`."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.functional import conv2d

from purerl import distributions
from purerl.spaces import children, parts

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def linear(n_in: int, n_out: int, gain: float = math.sqrt(2.0)) -> nn.Linear:
    """A linear layer that remembers the gain of its initialisation."""
    layer = nn.Linear(n_in, n_out)
    layer.gain = gain  # type: ignore[assignment]
    return layer


class Flatten(nn.Module):
    """Any observation of a space as one vector: `[N, ...] -> [N, width]` float32.

    Boxes and MultiBinary are flattened (Boxes of bytes scaled from their bounds to [0, 1]), Discrete and MultiDiscrete one-hot, the
    parts of Dict and Tuple concatenated.
    """

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self.parts = [_Part.of(path, part) for path, part in parts(space)]
        self.width = gym.spaces.flatdim(space)
        if not self.parts:
            raise ValueError(f"observation space: {space} is empty")

    def forward(self, obs: Tensor | TensorDict) -> Tensor:
        return torch.cat([vector for part in self.parts for vector in part.vectors(obs)], -1)


class _Part(NamedTuple):
    """A leaf of a space.

    Attributes:
        path: where it lies.
        one_hot: the start and the size of each of its one-hot vectors; none for a Box.
        low, span: of bytes, which are scaled to [0, 1].
    """

    path: tuple[str, ...]
    one_hot: tuple[tuple[int, int], ...] = ()
    low: float = 0.0
    span: float = 1.0

    @classmethod
    def of(cls, keys: tuple[str | int, ...], space: gym.Space) -> Self:
        path = tuple(map(str, keys))
        match space:
            case gym.spaces.Discrete():
                return cls(path, ((int(space.start), int(space.n)),))
            case gym.spaces.MultiDiscrete():
                sizes = zip(space.start.reshape(-1), space.nvec.reshape(-1), strict=True)
                return cls(path, tuple((int(s), int(n)) for s, n in sizes))
            case gym.spaces.Box() if space.dtype == np.uint8 and space.shape != (0,):
                low = float(space.low.min())
                return cls(path, low=low, span=max(float(space.high.max()) - low, 1.0))
            case gym.spaces.Box() | gym.spaces.MultiBinary():
                return cls(path)
            case _:
                raise ValueError(f"observation space: {space} is not Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple")

    def vectors(self, obs: Any) -> list[Tensor]:
        """What the leaf is in the flat vector, parts `[N, width]` float32."""
        for name in self.path:
            obs = obs[name]
        x: Tensor = obs.reshape(len(obs), -1)
        if self.one_hot:
            return [_one_hot(column - start, n) for column, (start, n) in zip(x.unbind(-1), self.one_hot, strict=True)]
        x = x.float()
        return [x if (self.low, self.span) == (0.0, 1.0) else (x - self.low) / self.span]


def _one_hot(x: Tensor, n: int) -> Tensor:
    return (x.unsqueeze(-1) == torch.arange(n, device=x.device)).float()


class Norm(NamedTuple):
    """What stands between a layer and its activation.

    Attributes:
        vector: `vector(width) -> layers` for `[..., width]`.
        image: `image(channels) -> layers` for `[N, channels, H, W]`.
    """

    vector: Callable[[int], list[nn.Module]]
    image: Callable[[int], list[nn.Module]]


UNNORMALIZED = Norm(lambda width: [], lambda channels: [])
LAYER_NORM = Norm(lambda width: [nn.LayerNorm(width)], lambda channels: [nn.GroupNorm(1, channels)])  # Ba et al. 2016
NORMS = {"none": UNNORMALIZED, "layer": LAYER_NORM}


def mlp(n_in: int, hidden: Sequence[int], activation: str = "tanh", norm: Norm = UNNORMALIZED) -> nn.Sequential:
    """Linear layers, each followed by its normalisation and its activation: `[N, n_in] -> [N, hidden[-1]]`."""
    widths = [n_in, *hidden]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [linear(a, b), *norm.vector(b), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class Convolutions(nn.Module):
    """The three convolutions of Mnih et al. 2015: `[N, C, H, W]` uint8 (scaled to [0, 1]) -> `[N, width]` float32.

    Args:
        shape: `(C, H, W)`.
        dtype: in which it computes; parameters and output are float32 all the same.
        norm: what normalises each layer.

    Raises:
        ValueError: the image is smaller than 36 x 36, which the three convolutions need.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, norm: Norm = UNNORMALIZED) -> None:
        super().__init__()
        channels, height, wide = shape
        if min(height, wide) < 36:
            raise ValueError(f"observation: an image of {height} x {wide} is too small for the Nature CNN, which needs 36 x 36")
        out = [((((n - 8) // 4 + 1) - 4) // 2 + 1) - 2 for n in (height, wide)]
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)
        self.norms = nn.ModuleList([nn.Sequential(*norm.image(n)) for n in (32, 64, 64)])
        self.width, self.dtype = 64 * out[0] * out[1], dtype

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.to(self.dtype) / 255.0
        for layer, norm in zip((self.conv1, self.conv2, self.conv3), self.norms, strict=True):
            assert layer.bias is not None
            x = torch.relu(norm(conv2d(x, layer.weight.to(self.dtype), layer.bias.to(self.dtype), layer.stride)))
        return x.flatten(1).float()


class Patches(nn.Module):
    """The convolution of Young and Tian 2019: `[N, C, H, W]` float32 -> 16 filters of 3 x 3 -> `[N, width]` float32.

    The convolution is a product of matrices: mapped over lanes that have weights of their own, that is much faster.

    Args:
        shape: `(C, H, W)`.
        dtype: in which it computes; parameters and output are float32 all the same.
        norm: what normalises the filters' outputs, at each place by itself.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, norm: Norm = UNNORMALIZED) -> None:
        super().__init__()
        channels, height, wide = shape
        self.conv = nn.Conv2d(channels, 16, 3)
        self.norm = nn.Sequential(*norm.vector(16))
        self.width, self.dtype = 16 * (height - 2) * (wide - 2), dtype

    def forward(self, obs: Tensor) -> Tensor:
        patches = obs.to(self.dtype).unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        assert self.conv.bias is not None
        features = nn.functional.linear(patches, self.conv.weight.flatten(1).to(self.dtype), self.conv.bias.to(self.dtype))
        return torch.relu(self.norm(features)).flatten(1).float()


class CNN(nn.Module):
    """Convolutions and a dense layer: `[N, ...] -> [N, width]` float32.

    Args:
        convolutions: from images to vectors `[N, n_in]`.
        width: of the output.
        dtype: in which the dense layer computes; parameters and output are float32 all the same.
    """

    def __init__(self, convolutions: nn.Module, n_in: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolutions, self.linear, self.dtype = convolutions, linear(n_in, width), dtype

    def forward(self, obs: Tensor) -> Tensor:
        weight, bias = self.linear.weight.to(self.dtype), self.linear.bias.to(self.dtype)
        return torch.relu(nn.functional.linear(self.convolutions(obs).to(self.dtype), weight, bias)).float()


class ChannelsFirst(nn.Module):
    """`[N, H, W, C] -> [N, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def trunk(space: gym.Space, dtype: torch.dtype = torch.float32, norm: Norm = UNNORMALIZED) -> tuple[nn.Module, int]:
    """What turns observations of a space into vectors, and their width: convolutions for images and boards, else `Flatten`.

    Boards are `[C, H, W]`; images are `[C, H, W]`, or `[H, W, C]` where the last axis is the shortest.
    """
    if is_image(space):
        a, b, c = space.shape  # type: ignore[misc]
        last = c < min(a, b)
        convolutions = Convolutions((c, a, b) if last else (a, b, c), dtype, norm)
        return (nn.Sequential(ChannelsFirst(), convolutions) if last else convolutions), convolutions.width
    if is_board(space):
        patches = Patches(space.shape, dtype, norm)  # type: ignore[arg-type]
        return patches, patches.width
    flatten = Flatten(space)
    return flatten, flatten.width


def torso(space: gym.Space, hidden: Sequence[int], activation: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, int]:
    """The torso for an observation space and its width: the networks of Mnih et al. 2015 for images and of Young and Tian 2019 for
    boards, else an MLP on the flat vector."""
    base, width = trunk(space, dtype)
    if isinstance(base, Flatten):
        return nn.Sequential(base, mlp(width, hidden, activation)), (hidden[-1] if hidden else width)
    dense = 128 if isinstance(base, Patches) else 512
    return CNN(base, width, dense, dtype), dense


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


def check_actor_critic(out: Any, lead: Sequence[int], n_params: int) -> None:
    """Check what an actor-critic returns for observations `[*lead, ...]`.

    Args:
        out: the parameters of the action distribution `[*lead, n_params]` and the value `[*lead]`.

    Raises:
        ValueError: it is something else, which would broadcast to wrong numbers.
    """
    if not (isinstance(out, tuple | list) and len(out) == 2):
        axes = "N" if len(lead) == 1 else "T, B"
        wanted = f"(action parameters [{axes}, {n_params}], value [{axes}])"
        raise ValueError(f"net: it returns {type(out).__name__}, but {wanted} is wanted")
    check_output("action parameters", out[0], lead, (n_params,))
    check_output("value", out[1], lead)


def check_output(what: str, x: Tensor, lead: Sequence[int], rest: Sequence[int] = ()) -> None:
    """Raise a `ValueError` if a network's output for observations `[*lead, ...]` has not the shape `[*lead, *rest]`."""
    wanted = (*lead, *rest)
    if tuple(x.shape) != wanted:
        squeeze = "; squeeze(-1) takes the last axis away" if tuple(x.shape) == (*wanted, 1) else ""
        names, n = [list(shape) for shape in (x.shape, wanted)], " x ".join(map(str, lead))
        raise ValueError(f"net: the {what} of {n} observations has shape {names[0]}, but {names[1]} is wanted{squeeze}")


def is_vector(space: gym.Space) -> bool:
    """Whether a space is a Box of floats."""
    return isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)


def is_image(space: gym.Space) -> bool:
    """Whether a space is a Box of bytes with three axes."""
    return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def is_board(space: gym.Space) -> bool:
    """Whether a space is a Box of floats in [0, 1] with channels, and 3 to 35 rows and columns: too small for the Nature CNN."""
    if not is_vector(space) or len(space.shape or ()) != 3:
        return False
    low, high, (_, *sides) = space.low, space.high, space.shape  # type: ignore[attr-defined,misc]
    return bool((low == 0).all() and (high == 1).all()) and all(3 <= side < 36 for side in sides)
