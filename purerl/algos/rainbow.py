"""Rainbow (Hessel et al. 2018): categorical, double, dueling, n-step, prioritized and noisy Q-learning together."""

import dataclasses

from torch import nn

from purerl import config as cfg
from purerl.algos import fields
from purerl.algos import q_learning as ql
from purerl.algos.c51 import check_support, head
from purerl.base import Algorithm, EnvSpec


@dataclasses.dataclass(frozen=True)
class RainbowConfig:
    """Defaults for classic control; `default_config` has CleanRL's of `rainbow_atari.py` for images. Floats can be swept.

    Here actions are random at first, as DQN's are: the noise of a new network alone leaves some seeds without a single end of
    Acrobot for 100,000 steps.
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
    max_grad_norm: float | None = fields.max_grad_norm(10.0)
    gamma: float = fields.gamma(0.99)
    n_step: int = fields.n_step(3)
    n_atoms: int = fields.n_atoms(101)
    v_min: float = fields.v_min(-100.0)
    v_max: float = fields.v_max(100.0)
    tau: float = fields.tau(1.0)
    target_every: int = fields.target_every(50)
    double: bool = fields.double(True)
    epsilon_start: float = fields.epsilon_start(1.0)
    epsilon_end: float = fields.epsilon_end(0.0)
    epsilon_spread: float = fields.epsilon_spread(0.0)
    exploration: float = fields.exploration(0.5)
    noisy: bool = fields.noisy(True)
    prioritized: bool = fields.prioritized(True)
    alpha: float = fields.alpha(0.5)
    beta: float = fields.beta(0.4)
    total_steps: int = fields.total_steps(500_000)
    dueling: bool = fields.dueling(True)
    hidden: tuple[int, ...] = fields.hidden((120, 84))
    activation: str = fields.activation("relu")
    frames: int = fields.frames(0)
    precision: str = fields.precision("float32")
    init: str = fields.init("torch")

    def __post_init__(self) -> None:
        cfg.check(self)
        check_support(self)


def default_config(spec: EnvSpec) -> RainbowConfig:
    """Settings for an environment's observations: for images those of CleanRL's `rainbow_atari.py`, without random actions."""
    own = {"lr": 6.25e-5, "adam_eps": 1.5e-4, "n_atoms": 51, "v_min": -10.0, "v_max": 10.0, "target_every": 2000}
    found = ql.settings(spec, **own)
    return RainbowConfig(**{**found, "epsilon_start": 0.0, "epsilon_end": 0.0} if found else {})


def make_rainbow(spec: EnvSpec, config: RainbowConfig | None = None, net: nn.Module | None = None) -> Algorithm:
    """Rainbow for discrete actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> [N, A, n_atoms]` logits, on any device; only its shapes are used. It has no
            noise, so let `epsilon_start` and `epsilon_end` explore.

    Raises:
        ValueError: an action space that is not discrete, a network that returns something else, or a replay that is too small.
    """
    config = cfg.given(config, default_config, spec)
    return ql.make(spec, config, head(config.n_atoms, config.v_min, config.v_max), net)
