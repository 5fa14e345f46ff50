"""Continuous control whole, against Stable-Baselines3 and rejax; and gradient steps against their matrix products."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from bench.contest import Contest, Side, by_turns, repeated
from bench.rivals import installed, rival
from bench.trainings import training
from tensordict import TensorDict

from purerl import Batch, EnvSpec, algos, compile, random, tree, vmap
from purerl.spaces import blank_inputs, env_actions, zero_actions

BATCH, HIDDEN, N_OBS, N_ACTIONS = 256, 256, 17, 6
SMALL = {"capacity": 100_000, "learning_starts": 100}
CRITIC = [(N_OBS + N_ACTIONS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
ACTOR = [(N_OBS, HIDDEN), (HIDDEN, HIDDEN)]
Products = Callable[[], object]


SB3 = {
    "buffer_size": SMALL["capacity"],
    "learning_starts": SMALL["learning_starts"],
    "batch_size": BATCH,
    "train_freq": 1,
    "gradient_steps": 1,
    "policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]},
}


@contextmanager
def cheetah(algo: str, rounds: int) -> Iterator[Mapping[str, Side]]:
    """SB3 has the same settings, and updates the policy of SAC as often."""
    with (
        training(algo, SMALL, 1, 300, max(rounds, 15) + 2, "HalfCheetah-v5") as side,
        rival("", "sb3_train.py", algo.upper(), "HalfCheetah-v5", 200, json.dumps(SB3)) as sb3,
    ):
        yield {"purerl": side, "SB3": sb3}


@contextmanager
def pendulum(seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    """A turn of rejax is a whole training."""
    n = 300
    with (
        training("sac", SMALL, seeds, n, max(rounds, 15) + 2, "Pendulum-v1") as side,
        rival("jax", "rejax_train.py", "sac", "Pendulum-v1", seeds, 2 * n) as rejax,
    ):
        yield {"purerl": side, "rejax": rejax}


def forward(layers: list[tuple[int, int]]) -> Products:
    parts = [(torch.rand(BATCH, a), torch.rand(a, b)) for a, b in layers]
    return lambda: [x @ w for x, w in parts]


def to_weights(layers: list[tuple[int, int]]) -> Products:
    """The products of a backward pass that give the weights' gradients."""
    parts = [(torch.rand(a, BATCH), torch.rand(BATCH, b)) for a, b in layers]
    return lambda: [x @ g for x, g in parts]


def to_inputs(layers: list[tuple[int, int]]) -> Products:
    """The products of a backward pass that give the inputs' gradients."""
    parts = [(torch.rand(BATCH, b), torch.rand(b, a)) for a, b in layers]
    return lambda: [g @ w for g, w in parts]


def of_sac() -> list[Products]:
    """Both critics' step, with the targets; then the policy's, through both critics; then the temperature's."""
    actor = [*ACTOR, (HIDDEN, 2 * N_ACTIONS)]
    critics = [forward(actor), *[f(CRITIC) for f in (forward, forward, to_weights) for _ in range(2)], *[to_inputs(CRITIC[1:])] * 2]
    through = [f(CRITIC) for f in (forward, to_inputs) for _ in range(2)]
    return [*critics, forward(actor), *through, to_weights(actor), to_inputs(actor[1:]), forward(actor)]


def of_td3() -> list[Products]:
    """Both critics' step, with the targets; and every other time the policy's, through the first critic."""
    actor = [*ACTOR, (HIDDEN, N_ACTIONS)]
    critics = [forward(actor), *[f(CRITIC) for f in (forward, forward, to_weights) for _ in range(2)], *[to_inputs(CRITIC[1:])] * 2]
    policy = [forward(actor), forward(CRITIC), to_inputs(CRITIC), to_weights(actor), to_inputs(actor[1:])]
    turns = 0

    def every_other() -> None:
        nonlocal turns
        turns += 1
        for part in policy if turns % 2 else ():
            part()

    return [*critics, every_other]


PRODUCTS = {"sac": of_sac, "td3": of_td3}


def batch(spec: EnvSpec, n_steps: int) -> Batch:
    """Steps of an episode that goes on."""
    blank = tree.map(lambda x: x.expand(n_steps, *x.shape).clone(), blank_inputs(spec, 1))
    zeros = torch.zeros(n_steps, 1)
    action = env_actions(spec.action_space, zero_actions(spec.action_space, n_steps)[:, None]).float()
    return Batch(
        inputs=tree.replace(blank, obs=torch.randn_like(blank.obs), first=torch.zeros_like(blank.first)),
        action=action,
        reward=zeros + 1,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        valid=~zeros.bool(),
        extras=TensorDict(),
        carry=TensorDict(),
        last=tree.index(blank, -1),
        episode=TensorDict(),
    )


@contextmanager
def gradient_steps(algo: str, seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    """Those of a batch of four steps, with what it costs to put it into the replay, in one thread."""
    spec = EnvSpec("box", gym.spaces.Box(-9.0, 9.0, (N_OBS,)), gym.spaces.Box(-1.0, 1.0, (N_ACTIONS,)))
    config: Any = algos.config_class(algo)
    made = algos.make(algo, spec, config(**SMALL))
    state = vmap(made.init)(random.split(random.key(0), seeds))
    batches = tree.map(lambda x: x.expand(seeds, *x.shape).clone(), batch(spec, made.n_steps))
    update = compile(vmap(made.update))

    def ours() -> None:
        nonlocal state
        state, _ = update(state, batches)

    torch.set_num_threads(1)
    for _ in range(50):
        ours()
    floor = PRODUCTS[algo]()
    yield {
        "purerl": repeated(ours, 10, made.n_steps * seeds),
        "matrix products": repeated(lambda: [part() for part in floor], 40 * seeds, 1),
    }


@by_turns(
    *(
        Contest(
            name=f"{algo}-cheetah",
            title=f"{algo} HalfCheetah-v5, 1 seed, an update of {BATCH} every step, 256x256",
            sides=("purerl", "SB3"),
            open=partial(cheetah, algo),
            peers=("SB3",),
            rounds=8,
        )
        for algo in ("sac", "td3")
    ),
    *(
        Contest(
            name=f"sac-rejax-{seeds}",
            title=f"SAC Pendulum-v1, {seeds} seeds, an update of {BATCH} every step, 256x256",
            sides=("purerl", peer),
            open=partial(pendulum, seeds),
            peers=(peer,),
            rounds=6,
        )
        for peer in installed(rejax="jax")
        for seeds in (1, 4)
    ),
    *(
        Contest(
            name=f"{algo}-step-{seeds}",
            title=f"{algo}, a gradient step on {BATCH} transitions of HalfCheetah's sizes, {seeds} seeds, one thread",
            sides=("purerl", "matrix products"),
            open=partial(gradient_steps, algo, seeds),
            floors={"purerl": lambda seconds: seconds["matrix products"]},
            rounds=15,
            unit="gradient steps",
            per=1,
        )
        for algo in PRODUCTS
        for seeds in (1, 4)
    ),
)
def test_continuous(replay: Callable[[], None]) -> None:
    replay()
