"""Deep Q-learning (Mnih et al. 2015), with double, dueling, n-step and prioritized learning and noisy layers as options."""

import dataclasses

from torch import Tensor, nn

from purerl import config as cfg
from purerl import losses
from purerl.algos import fields
from purerl.algos import q_learning as ql
from purerl.base import Algorithm, EnvSpec

LOSSES = {"squared": losses.squared_loss, "huber": losses.huber_loss}


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """Defaults for classic control, CleanRL's `dqn.py` with a learning rate that falls; `default_config` has those for images.

    Floats can be swept.
    """

    n_envs: int = fields.n_envs(1)
    n_steps: int = fields.n_steps(10)
    capacity: int = fields.capacity(10_000)
    batch_size: int = fields.batch_size(128)
    replay_ratio: float = fields.replay_ratio(12.8)
    learning_starts: int = fields.learning_starts(10_000)
    lr: float = fields.lr(2.5e-4)
    lr_schedule: str = fields.lr_schedule("linear")
    adam_eps: float = fields.adam_eps(1e-8)
    max_grad_norm: float | None = fields.max_grad_norm(None)
    gamma: float = fields.gamma(0.99)
    n_step: int = fields.n_step(1)
    loss: str = cfg.option("squared", "of the temporal difference", tuple(LOSSES))
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


def default_config(spec: EnvSpec) -> DQNConfig:
    """CleanRL's settings for an environment's observations: `dqn.py`, or `dqn_atari.py` for images."""
    return DQNConfig(**ql.settings(spec, lr=1e-4, target_every=250))


def head(loss: str) -> ql.Head:
    """One number an action: its expected return."""

    def td(out: Tensor, next_out: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        error = reward + discount * next_out.squeeze(-1) - out.squeeze(-1)
        return LOSSES[loss](error), error

    return ql.Head(size=1, values=lambda out: out.squeeze(-1), loss=td)


def make_dqn(spec: EnvSpec, config: DQNConfig | None = None, net: nn.Module | None = None) -> Algorithm:
    """DQN for discrete actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> [N, A]`, on any device; only its shapes are used.

    Raises:
        ValueError: an action space that is not discrete, a network that returns something else, or a replay that is too small.
    """
    config = cfg.given(config, default_config, spec)
    return ql.make(spec, config, head(config.loss), net)
