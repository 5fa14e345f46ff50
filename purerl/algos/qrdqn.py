"""Quantile regression DQN (Dabney et al. 2018): the distribution of the return as its quantiles."""

import dataclasses

from torch import Tensor, nn

from purerl import config as cfg
from purerl.algos import fields
from purerl.algos import q_learning as ql
from purerl.base import Algorithm, EnvSpec
from purerl.losses import quantile_huber_loss


@dataclasses.dataclass(frozen=True)
class QRDQNConfig:
    """Defaults for classic control, as those of C51; `default_config` has the paper's for images. Floats can be swept.

    `kappa` is to be of the size of the errors that matter. Far below it the loss is that of a median, which is blind to what
    happens seldom: where one state in twenty is the last one and returns are near 100, values with `kappa` of 1 grow without end.
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
    n_quantiles: int = cfg.count(51, "quantiles of the return")
    kappa: float = cfg.constant(10.0, "errors up to which the loss is quadratic, and linear beyond", low=1e-9)
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


def default_config(spec: EnvSpec) -> QRDQNConfig:
    """Settings for an environment's observations: for images the paper's, at the rate of steps and updates of the others here."""
    return QRDQNConfig(**ql.settings(spec, lr=5e-5, adam_eps=0.01 / 32, n_quantiles=200, kappa=1.0, target_every=2500))


def head(n_quantiles: int, kappa: float) -> ql.Head:
    """Quantiles of the return; the error of a transition is that of its mean."""

    def loss(quantiles: Tensor, next_quantiles: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        returns = reward[:, None] + discount[:, None] * next_quantiles
        error = returns.mean(-1) - quantiles.mean(-1)
        return quantile_huber_loss(quantiles, returns, kappa), error.detach()

    return ql.Head(size=n_quantiles, values=lambda quantiles: quantiles.mean(-1), loss=loss)


def make_qrdqn(spec: EnvSpec, config: QRDQNConfig | None = None, net: nn.Module | None = None) -> Algorithm:
    """QR-DQN for discrete actions.

    Args:
        spec: the environment's.
        config: what shapes the program, and the start values of `state.hyper`; `default_config(spec)` when omitted.
        net: your own module `forward(obs [N, ...]) -> [N, A, n_quantiles]`, on any device; only its shapes are used.

    Raises:
        ValueError: an action space that is not discrete, a network that returns something else, or a replay that is too small.
    """
    config = cfg.given(config, default_config, spec)
    return ql.make(spec, config, head(config.n_quantiles, config.kappa), net)
