"""Q-learning whole, against Stable-Baselines3 and its matrix products."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from bench.contest import Contest, Side, by_turns, repeated
from bench.trainings import training

BATCH, WIDTHS = 128, (4, 120, 84, 2)
STEPS = {(1, 1): 1_000, (16, 1): 200, (1, 10): 10_000, (16, 10): 2_000}  # by seeds and steps an update: of a turn


def sb3(every: int) -> Side:
    """Stable-Baselines3 with the same settings."""
    from stable_baselines3 import DQN

    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=2.5e-4,
        buffer_size=10_000,
        learning_starts=128,
        batch_size=BATCH,
        train_freq=every,
        target_update_interval=500,
        policy_kwargs={"net_arch": list(WIDTHS[1:-1])},
        device="cpu",
    )
    model.learn(256)
    n = 100 * every
    return repeated(lambda: model.learn(n, reset_num_timesteps=False), 1, n)


def products() -> None:
    """The bare matrix products of a gradient step: forward of two networks, backward of one."""
    weights = [torch.rand(a, b) for a, b in itertools.pairwise(WIDTHS)]
    for backward in (False, True):
        layers = [torch.rand(BATCH, WIDTHS[0])]
        for w in weights:
            layers.append(layers[-1] @ w)
        back = layers.pop()
        for w, x in zip(reversed(weights), reversed(layers), strict=True) if backward else ():
            x.T @ back
            back = back @ w.T


@contextmanager
def cartpole(seeds: int, every: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    config = {"n_steps": every, "replay_ratio": BATCH / every, "learning_starts": 128, "target_every": max(1, 500 // every)}
    with training("dqn", config, seeds, STEPS[seeds, every], max(rounds, 15) + 2) as side:
        yield {"purerl": side, "SB3": sb3(every), "matrix products": repeated(products, 500, every)}


@by_turns(
    *(
        Contest(
            name=f"dqn-{seeds}-{every}",
            title=f"DQN CartPole-v1, {seeds} seeds, an update of {BATCH} every {every} steps, 120x84",
            sides=("purerl", "SB3", "matrix products"),
            open=partial(cartpole, seeds, every),
            peers=("SB3",),
            floors={"purerl": lambda seconds: seconds["matrix products"]},
            rounds=10,
        )
        for seeds, every in STEPS
    )
)
def test_q_learning(replay: Callable[[], None]) -> None:
    replay()
