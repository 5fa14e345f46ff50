"""Categorical DQN, C51 (Bellemare et al. 2017): the distribution of the return over fixed values."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from purerl import config as cfg
from purerl.algos import fields
from purerl.algos import q_learning as ql
from purerl.base import Algorithm, EnvSpec
from purerl.losses import categorical_loss, categorical_mean, categorical_projection


@dataclasses.dataclass(frozen=True)
class C51Config:
    """Defaults for classic control, CleanRL's `c51.py`; `default_config` has those for images.

    Floats can be swept.
    """

    n_envs: int = fields.n_envs(1)
    n_steps: int = fields.n_steps(10)
    capacity: int = fields.capacity(10_000)
    batch_size: int = fields.batch_size(128)
    replay_ratio: float = fields.replay_ratio(12.8)
    learning_starts: int = fields.learning_starts(10_000)
    lr: float = fields.lr(2.5e-4)
    lr_schedule: str = fields.lr_schedule("constant")
    adam_eps: float = fields.adam_eps(0.01 / 128)
    max_grad_norm: float | None = fields.max_grad_norm(None)
    gamma: float = fields.gamma(0.99)
    n_step: int = fields.n_step(1)
    n_atoms: int = fields.n_atoms(101)
    v_min: float = fields.v_min(-100.0)
    v_max: float = fields.v_max(100.0)
    tau: float = fields.tau(1.0)
    target_every: int = fields.target_every(50)
    double: bool = fields.double(False)
    epsilon_start: float = fields.epsilon_start(1.0)
    epsilon_end: float = fields.epsilon_end(0.05)
    epsilon_spread: float = fields.epsilon_spread(0.0)
    exploration: float = fields.exploration(0.5)
    noisy: bool = fields.noisy(False)
    prioritized: bool = fields.prioritized(False)
    alpha: float = fields.alpha(0.6)
    beta: float = fields.beta(0.4)
    total_steps: int = fields.total_steps(500_000)
    dueling: bool = fields.dueling(False)
    hidden: tuple[int, ...] = fields.hidden((120, 84))
    activation: str = fields.activation("relu")
    frames: int = fields.frames(0)
    precision: str = fields.precision("float32")
    init: str = fields.init("torch")

    def __post_init__(self) -> None:
        cfg.check(self)
        check_support(self)


def check_support(config: Any) -> None:
    """Raise a `ValueError` if the values between which returns lie are not in order."""
    if config.v_min >= config.v_max:
        raise ValueError(f"{type(config).__name__}.v_min = {config.v_min} is not less than v_max = {config.v_max}")


def default_config(spec: EnvSpec) -> C51Config:
    """CleanRL's settings for an environment's observations: `c51.py`, or `c51_atari.py` for images."""
    return C51Config(**ql.settings(spec, adam_eps=0.01 / 32, n_atoms=51, v_min=-10.0, v_max=10.0, target_every=2500))


def head(n_atoms: int, v_min: float, v_max: float) -> ql.Head:
    """Logits over returns from `v_min` to `v_max`; the error is the cross-entropy, as in Rainbow (Hessel et al. 2018)."""

    def support(like: Tensor) -> Tensor:
        return torch.linspace(v_min, v_max, n_atoms, device=like.device)

    def values(logits: Tensor) -> Tensor:
        return categorical_mean(support(logits), logits)

    def loss(logits: Tensor, next_logits: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        target = categorical_projection(support(logits), torch.softmax(next_logits, -1), reward, discount)
        losses = categorical_loss(logits, target)
        return losses, losses.detach()

    return ql.Head(size=n_atoms, values=values, loss=loss)


def make_c51(spec: EnvSpec, config: C51Config | None = None, net: nn.Module | None = None) -> Algorithm:
    """C51 for discrete actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> [N, A, n_atoms]` logits, on any device; only its shapes are used.

    Raises:
        ValueError: an action space that is not discrete, a network that returns something else, or a replay that is too small.
    """
    config = cfg.given(config, default_config, spec)
    return ql.make(spec, config, head(config.n_atoms, config.v_min, config.v_max), net)
