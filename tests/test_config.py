"""Every field is checked, by its type and by what is allowed."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import CONTINUOUS

from purerl import algos, envs
from purerl import config as cfg
from purerl.algos import A2CConfig, DQNConfig, PPOConfig
from purerl.training import Collecting, Evaluating


@pytest.mark.parametrize(
    ("config", "field", "value", "allowed"),
    [
        (PPOConfig, "normalize_obs", "False", "True or False"),
        (PPOConfig, "normalize_obs", 0, "True or False"),
        (PPOConfig, "normalize_obs", None, "True or False"),
        (A2CConfig, "shared_torso", np.bool_(True), "True or False"),
        (PPOConfig, "hidden", 64, "a tuple of integers at least 1, such as (64, 64)"),
        (PPOConfig, "hidden", (-64,), "a tuple of integers at least 1, such as (64, 64)"),
        (PPOConfig, "hidden", [64, 64], "a tuple of integers at least 1, such as (64, 64)"),
        (PPOConfig, "hidden", (64.0,), "a tuple of integers at least 1, such as (64, 64)"),
        (PPOConfig, "n_envs", True, "an integer at least 1"),
        (PPOConfig, "n_envs", 4.0, "an integer at least 1"),
        (PPOConfig, "n_envs", "4", "an integer at least 1"),
        (PPOConfig, "n_envs", 0, "an integer at least 1"),
        (PPOConfig, "lr", "1e-3", "a number at least 0.0"),
        (PPOConfig, "lr", float("nan"), "a number at least 0.0"),
        (PPOConfig, "lr", True, "a number at least 0.0"),
        (PPOConfig, "lr", None, "a number at least 0.0"),
        (PPOConfig, "gamma", 1.5, "a number between 0.0 and 1.0"),
        (PPOConfig, "activation", "sine", "one of tanh, relu, elu, silu"),
        (PPOConfig, "activation", None, "one of tanh, relu, elu, silu"),
        (Collecting, "infos", "score", "of type tuple[str, ...]"),
        (Collecting, "infos", (1,), "of type tuple[str, ...]"),
        (Evaluating, "eval_background", "no", "True or False"),
    ],
)
def test_values_that_are_refused(config, field, value, allowed):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config(**{field: value})
    assert str(error.value) == f"{config.__name__}.{field} = {value!r} is not {allowed}"


def test_values_that_are_taken():
    config = PPOConfig(lr=1, gamma=np.float32(0.5), target_kl=None, max_grad_norm=float("inf"), hidden=())
    assert cfg.sweepable(config)["lr"] == 1.0
    assert "target_kl" not in cfg.sweepable(config)


def test_numbers_that_a_state_starts_with():
    found = cfg.start({"lr": 1.0, "gamma": 0.5}, {"lr": 2})
    assert (found["lr"], found["gamma"], found["lr"].dtype) == (2.0, 0.5, torch.float32)
    for value, kind in (
        (torch.ones(3), r"\(torch.float32, \[3\]\)"),
        (torch.tensor(1), r"\(torch.int64, \[\]\)"),
        (torch.tensor(1.0).double(), r"\(torch.float64, \[\]\)"),
        ("1", "str"),
        ([1.0], "list"),
        (True, "bool"),
    ):
        with pytest.raises(ValueError, match=rf"hyper: lr is {kind}, but \(torch.float32, \[\]\) is wanted"):
            cfg.start({"lr": 1.0}, {"lr": value})


def test_a_config_of_ones_own():
    """Whose annotations may be words, and whose fields need no declaration."""

    @dataclasses.dataclass(frozen=True)
    class Mine:
        n: "int" = 3
        anything: object = None

        def __post_init__(self):
            cfg.check(self)

    assert Mine(anything=[1]).n == 3
    with pytest.raises(ValueError, match=r"^Mine.n = 'x' is not of type int$"):
        Mine(n="x")


@pytest.mark.parametrize("name", algos.ALGORITHMS)
def test_an_algorithm_takes_a_spec_and_a_config_of_its_own(name):
    env = envs.make("Pendulum-v1" if name in CONTINUOUS else "CartPole-v1")
    make = algos.find(name)
    for not_one in (env, env.spec.id):
        with pytest.raises(ValueError, match=f"^spec: {type(not_one).__name__} is not an environment's spec; envs.make"):
            make(not_one)
    other = PPOConfig() if name != "ppo" else A2CConfig()
    with pytest.raises(ValueError, match=f"^config: {type(other).__name__}.* is no {algos.config_class(name).__name__}$"):
        make(env.spec, other)


def test_a_number_that_has_no_effect():
    cfg.check_needs(DQNConfig(prioritized=True), "alpha")
    cfg.check_needs(DQNConfig(), "lr")
    with pytest.raises(ValueError, match=r"^DQNConfig.alpha = 0.7 has no effect without prioritized$"):
        cfg.check_needs(DQNConfig(alpha=0.7), "alpha")
