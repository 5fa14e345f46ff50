"""PPO whole: against Stable-Baselines3, against its matrix products and its simulators, and two trainings side by side."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from bench.contest import Contest, Side, Stretch, by_turns, repeated
from bench.rivals import installed, rival
from bench.trainings import training

from purerl import PPOConfig, compile, envs, fuse, make_ppo, random, samplers, tree, vmap
from purerl import training as runs
from purerl.logs import RATE, read_rows
from purerl.samplers.arrangements import cores

BATCH, MINIBATCHES = 4 * 128, 4 * 4
UPDATES = {1: 125, 16: 25, 64: 6}  # by seeds, of a turn of half a second
PONG = "train ppo --env ALE/Pong-v5 --precision bfloat16 --steps 5120 --threads {} --out {}"


def sb3() -> Side:
    """Stable-Baselines3 with the same settings."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    settings = {"n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4, "ent_coef": 0.01, "device": "cpu"}
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 4), **settings)
    return repeated(lambda: model.learn(1024), 1, 1024)


def empty_call(seeds: int) -> Callable[[], object]:
    """A compiled call that takes and gives the whole state, packed as `train` packs it, and computes nothing."""
    env = envs.make("CartPole-v1")
    init, _ = fuse(make_ppo(env.spec), env)
    state, _ = tree.pack(vmap(init)(random.split(random.key(0), seeds)), axes=1)
    call = compile(lambda state: tree.map(torch.clone, state))
    return lambda: call(state)


def products(seeds: int, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """The bare matrix products of one update of all seeds: those of the rollout and of the minibatches."""
    tiles = cores() if seeds % cores() == 0 else 1
    s = seeds // tiles
    w, heads = [torch.rand(s, n, m) for n, m in ((4, 64), (64, 64))], [torch.rand(s, 64, n) for n in (2, 1)]
    few, many = torch.rand(s, 4, 4), torch.rand(s, 128, 4)

    def forward(x: torch.Tensor, head: torch.Tensor) -> list[torch.Tensor]:
        h1 = torch.bmm(x, w[0])
        h2 = torch.bmm(h1, w[1])
        return [h1, h2, torch.bmm(h2, head)]

    def update(_: int) -> None:
        torch.set_num_threads(1)
        for _ in range(128):
            forward(few, heads[0])
        for _ in range(MINIBATCHES):
            for head in heads:
                h1, h2, out = forward(many, head)
                torch.bmm(h2.transpose(1, 2), out)
                back = torch.bmm(out, head.transpose(1, 2))
                torch.bmm(h1.transpose(1, 2), back)
                back = torch.bmm(back, w[1].transpose(1, 2))
                torch.bmm(many.transpose(1, 2), back)

    return lambda: list(pool.map(update, range(tiles)))


@contextmanager
def cartpole(seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    with training("ppo", {}, seeds, UPDATES[seeds] * BATCH, max(rounds, 15) + 2) as side, ThreadPoolExecutor(cores()) as pool:
        floors = {
            "matrix products": repeated(products(seeds, pool), 5, seeds * BATCH),
            "empty call": repeated(empty_call(seeds), 50, seeds * BATCH),
        }
        yield {"purerl": side, "SB3": sb3(), **floors}


@contextmanager
def beside_rejax(seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    """A turn of rejax is a whole training of as many steps."""
    n = UPDATES[seeds] * BATCH
    with (
        training("ppo", {}, seeds, n, max(rounds, 15) + 2) as side,
        rival("jax", "rejax_train.py", "ppo", "CartPole-v1", seeds, 2 * n) as rejax,
    ):
        yield {"purerl": side, "rejax": rejax}


@contextmanager
def half_cheetah(rounds: int) -> Iterator[Mapping[str, Side]]:
    host = envs.make("HalfCheetah-v5")
    config = PPOConfig(n_envs=8, n_steps=256, epochs=10, n_minibatches=32, normalize_obs=True, normalize_reward=True)
    algo = make_ppo(host.spec, config)
    run = runs.Run("ppo", "HalfCheetah-v5", 1, 1, {}, collecting=runs.Collecting(sampler="serial"))
    lanes = runs.initial_state(run, algo, host)
    runner = runs.make_runner(run, algo, host, lanes, 0)

    vec = envs.to_vector(host, 8)
    vec.reset(seed=0)
    actions = [vec.action_space.sample() for _ in range(256)]
    learn, state = compile(vmap(algo.update)), lanes.learner.algo
    with samplers.serial(host, algo, 8, 256, random.split(random.key(0), 1)) as feed:
        feed.publish(state)
        batch = next(feed)
    stepping = repeated(lambda: [vec.step(action) for action in actions], 1, 8 * 256)
    try:
        yield {
            "purerl": repeated(lambda: runner.step(1), 1, 8 * 256),
            "bare stepping": stepping,
            "gradient steps": repeated(lambda: learn(state, batch), 1, 8 * 256),
        }
    finally:
        runner.close()


@contextmanager
def pong(rounds: int) -> Iterator[Mapping[str, Side]]:
    """`purerl train` after its first update, so many at once in processes of their own."""

    def trainings(n: int, threads: int) -> Stretch:
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder) / str(i) for i in range(n)]
            commands = [[sys.executable, "-m", "purerl", *PONG.format(threads, out).split()] for out in outs]
            for child in [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]:
                child.wait()
            return Stretch(sum(float(read_rows(out / "seed_000" / "progress.csv")[1][-1][RATE]) for out in outs), 1.0)

    kinds = {"alone": (1, 0), "alone, --threads 1": (1, 1), "two at once, --threads 1": (2, 1)}
    yield {name: partial(trainings, *kind) for name, kind in kinds.items()}


@by_turns(
    *(
        Contest(
            name=f"cartpole-{seeds}",
            title=f"PPO CartPole-v1, {seeds} seeds, 4 environments x 128 steps, 4 minibatches x 4 epochs, 64x64 tanh",
            sides=("purerl", "SB3", "matrix products", "empty call"),
            open=partial(cartpole, seeds),
            peers=("SB3",),
            floors={"purerl": lambda seconds: seconds["matrix products"]},
        )
        for seeds in UPDATES
    ),
    *(
        Contest(
            name=f"cartpole-rejax-{seeds}",
            title=f"PPO CartPole-v1, {seeds} seeds, as above",
            sides=("purerl", peer),
            open=partial(beside_rejax, seeds),
            peers=(peer,),
        )
        for peer in installed(rejax="jax")
        for seeds in UPDATES
    ),
    Contest(
        name="cheetah",
        title="PPO HalfCheetah-v5 through Gymnasium, 8 environments x 256 steps, 32 minibatches x 10 epochs",
        sides=("purerl", "bare stepping", "gradient steps"),
        open=half_cheetah,
        floors={"purerl": lambda seconds: seconds["bare stepping"] + seconds["gradient steps"]},
    ),
    Contest(
        name="pong",
        title="PPO ALE/Pong-v5, convolutions in bfloat16: trainings side by side, steps of all",
        sides=("alone", "alone, --threads 1", "two at once, --threads 1"),
        open=pong,
        peers=("alone",),
        rounds=2,
        warm=False,
    ),
)
def test_ppo(replay: Callable[[], None]) -> None:
    replay()
