"""Q-learning whole, against Stable-Baselines3, rejax, and its matrix products; and its gradient step on images."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import gymnasium as gym
import numpy as np
import torch
from bench.contest import Contest, Side, by_turns, repeated
from bench.rivals import installed, rival
from bench.trainings import training
from tensordict import TensorDict
from torch import Tensor, nn

from purerl import Batch, EnvSpec, Inputs, algos, compile, random, tree
from purerl.spaces import blank_inputs

BATCH, WIDTHS = 128, (4, 120, 84, 2)
STEPS = {(1, 1): 1_000, (16, 1): 200, (1, 10): 10_000, (16, 10): 2_000}  # by seeds and steps an update: of a turn
Layers = Sequence[tuple[int, int]]  # n_in, n_out
PRECISIONS = {"purerl": "float32", "purerl, bfloat16": "bfloat16"}  # of the convolutions
HEADS: dict[str, tuple[int, Layers]] = {  # forward passes of a gradient step, and the layers of one
    "c51": (2, [(4, 120), (120, 84), (84, 202)]),
    "qrdqn": (2, [(4, 120), (120, 84), (84, 102)]),
    "rainbow": (3, [(4, 120), (120, 84), (120, 84), (84, 202), (84, 101)]),
}


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


def forward(rows: int, layers: Layers) -> Callable[[], None]:
    """The bare matrix products of a forward pass."""
    parts = [(torch.rand(rows, a), torch.rand(a, b)) for a, b in layers]

    def step() -> None:
        for x, w in parts:
            x @ w

    return step


def backward(rows: int, layers: Layers) -> Callable[[], None]:
    """Those of a backward pass, which needs no gradient of the first layer's input."""
    parts = [(torch.rand(rows, a), torch.rand(a, b), torch.rand(rows, b)) for a, b in layers]

    def step() -> None:
        for i, (x, w, gradient) in enumerate(parts):
            x.T @ gradient
            if i:
                gradient @ w.T

    return step


def gradient_step(n_forward: int, layers: Layers) -> Callable[[], None]:
    """Those of a gradient step of `BATCH` rows."""
    parts = [forward(BATCH, layers)] * n_forward + [backward(BATCH, layers)]
    return lambda: [part() for part in parts] and None


@contextmanager
def cartpole(seeds: int, every: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    config = {"n_steps": every, "replay_ratio": BATCH / every, "learning_starts": 128, "target_every": max(1, 500 // every)}
    floor = gradient_step(2, list(itertools.pairwise(WIDTHS)))
    with training("dqn", config, seeds, STEPS[seeds, every], max(rounds, 15) + 2) as side:
        yield {"purerl": side, "SB3": sb3(every), "matrix products": repeated(floor, 500, every)}


@contextmanager
def beside_rejax(seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    """With its network of 64 x 64 and its double Q-learning, an update every step; a turn of its is a whole training."""
    n = STEPS[seeds, 1]
    config = {"n_steps": 1, "replay_ratio": float(BATCH), "learning_starts": 128, "hidden": (64, 64), "double": True}
    with (
        training("dqn", config, seeds, n, max(rounds, 15) + 2) as side,
        rival("jax", "rejax_train.py", "dqn", "CartPole-v1", seeds, 10 * n) as rejax,
    ):
        yield {"purerl": side, "rejax": rejax}


@contextmanager
def variant(algo: str, rounds: int) -> Iterator[Mapping[str, Side]]:
    with training(algo, {"learning_starts": 128}, 1, 2_000, max(rounds, 15) + 2) as side:
        yield {"purerl": side, "matrix products": repeated(gradient_step(*HEADS[algo]), 100, 10)}


@contextmanager
def minatar(seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    """PQN with its preset for boards. The products: a forward pass to act, one for targets, and both passes twice to learn."""
    n_envs, n_steps, epochs, n_minibatches, places = 128, 32, 2, 32, 64
    filters, dense = [(4 * 9, 16)], [(16 * places, 128), (128, 3)]
    rows = n_envs * n_steps // n_minibatches
    acting = [forward(n_envs * places, filters), forward(n_envs, dense)]
    learning = [f(n, layers) for f in (forward, backward) for n, layers in ((rows * places, filters), (rows, [(0, 0), *dense]))]

    def update() -> None:
        for _ in range(2 * n_steps):
            for part in acting:
                part()
        for _ in range(epochs * n_minibatches):
            for part in learning:
                part()

    with training("pqn", {}, seeds, 2 * n_envs * n_steps, max(rounds, 15) + 2, "MinAtar/Breakout-v1") as side:
        yield {"purerl": side, "matrix products": repeated(update, 1, n_envs * n_steps)}


def nature() -> nn.Module:
    convolutions = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 4))


@contextmanager
def atari(rounds: int) -> Iterator[Mapping[str, Side]]:
    """The update of a batch of four steps, with one gradient step, beside the passes of torch's own modules over as many images."""
    online, target, obs = nature(), nature(), torch.rand(32, 4, 84, 84)

    def bare() -> None:
        with torch.no_grad():
            target(obs)
        online.zero_grad()
        online(obs).mean().backward()

    ours = {name: repeated(atari_update(precision), 10, 1) for name, precision in PRECISIONS.items()}
    yield {**ours, "bare passes": repeated(bare, 10, 1)}


def atari_update(precision: str) -> Callable[[], None]:
    """One update after the other, from a replay that has something in it."""
    images = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    spec = EnvSpec("ALE/Breakout-v5", images, gym.spaces.Discrete(4), None)
    config = {**algos.q_learning.ATARI, "capacity": 20_000, "learning_starts": 100, "precision": precision}
    algo = algos.make_dqn(spec, algos.DQNConfig(**config))
    state, update = algo.init(random.key(0)), compile(algo.update)
    batch = frames(spec, algo.n_steps)

    def ours() -> None:
        nonlocal state
        state, _ = update(state, batch)

    for _ in range(200):
        ours()
    return ours


def frames(spec: EnvSpec, n_steps: int) -> Batch:
    """A batch of an episode that goes on: noise, whose newest frame is that of the stack after it."""
    blank = tree.map(lambda x: x.expand(n_steps, *x.shape).clone(), blank_inputs(spec, 1))
    film = torch.randint(1, 256, (n_steps + 4, 84, 84), dtype=torch.uint8)
    obs = torch.stack([film[t : t + 4] for t in range(n_steps + 1)])[:, None]
    zeros = torch.zeros(n_steps, 1)

    def inputs(obs: Tensor, like: Inputs) -> Inputs:
        return tree.replace(like, obs=obs, first=torch.zeros_like(like.first))

    return Batch(
        inputs=inputs(obs[:-1], blank),
        action=zeros.long(),
        reward=zeros + 0.1,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        valid=~zeros.bool(),
        extras=TensorDict(),
        carry=TensorDict(),
        last=inputs(obs[-1], tree.index(blank, -1)),
        episode=TensorDict(),
    )


FLOOR = {"purerl": lambda seconds: seconds["matrix products"]}


@by_turns(
    *(
        Contest(
            name=f"dqn-{seeds}-{every}",
            title=f"DQN CartPole-v1, {seeds} seeds, an update of {BATCH} every {every} steps, 120x84",
            sides=("purerl", "SB3", "matrix products"),
            open=partial(cartpole, seeds, every),
            peers=("SB3",),
            floors=FLOOR,
            rounds=10,
        )
        for seeds, every in STEPS
    ),
    *(
        Contest(
            name=f"dqn-rejax-{seeds}",
            title=f"Double DQN CartPole-v1, {seeds} seeds, an update of {BATCH} every step, 64x64",
            sides=("purerl", peer),
            open=partial(beside_rejax, seeds),
            peers=(peer,),
            rounds=10,
        )
        for peer in installed(rejax="jax")
        for seeds in (1, 16)
    ),
    *(
        Contest(
            name=algo,
            title=f"{algo} CartPole-v1, 1 seed, an update of {BATCH} every 10 steps, 120x84",
            sides=("purerl", "matrix products"),
            open=partial(variant, algo),
            floors=FLOOR,
            rounds=10,
        )
        for algo in HEADS
    ),
    *(
        Contest(
            name=f"pqn-{seeds}",
            title=f"PQN MinAtar/Breakout-v1, {seeds} seeds",
            sides=("purerl", "matrix products"),
            open=partial(minatar, seeds),
            floors=FLOOR,
            rounds=6,
        )
        for seeds in (1, 8)
    ),
    Contest(
        name="atari",
        title="DQN, a gradient step on 32 stacks of 84 x 84 from a replay of frames, Nature CNN",
        sides=(*PRECISIONS, "bare passes"),
        open=atari,
        floors=dict.fromkeys(PRECISIONS, lambda seconds: seconds["bare passes"]),
        unit="updates",
        per=1,
    ),
)
def test_q_learning(replay: Callable[[], None]) -> None:
    replay()
