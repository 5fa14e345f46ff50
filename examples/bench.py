"""Speed against Stable-Baselines3 and against the floors, in one run: `python examples/bench.py [--scale X]`.

Prints ratios: whole runs of the same work on both sides, by turns, compilation reported beside; then the floors, which are the
empty compiled call and the bare matrix products of the run.
"""

import argparse
import gc
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import torch

from purerl import PPOConfig, compile, envs, fuse, make_ppo, random, samplers, train, tree, vmap
from purerl.logs import RATE, read_rows

CORES = torch.get_num_threads()
BATCH, MINIBATCHES = 4 * 128, 4 * 4


def seconds(f: Callable[[], object], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        f()
    return (time.perf_counter() - start) / n


def sb3_cartpole() -> Callable[[int], float]:
    """Env steps a second of Stable-Baselines3 over some steps, with the same settings, warmed up."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    settings = {"n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4, "ent_coef": 0.01, "device": "cpu"}
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 4), **settings)
    model.learn(512)

    def rate(steps: int) -> float:
        start = time.perf_counter()
        model.learn(steps)
        return steps / (time.perf_counter() - start)

    return rate


def cartpole(seeds: int, updates: int, peer: Callable[[int], float]) -> tuple[float, float, float, float]:
    """Seconds before the second update, env steps a second in all lanes and of the peer, and their ratio, in a whole `train`.

    Between two reports the peer runs for a moment: the machine's own pace changes from second to second, so each stretch of
    training is compared with the peer just before and after it. Medians over the stretches.
    """
    run = train.plan("ppo", "CartPole-v1", seeds, updates * BATCH, {})
    start = time.perf_counter()
    marks: list[tuple[float, float, int, float]] = []  # entered, left, steps so far, the peer's rate

    def report(p: train.Progress) -> None:
        entered = time.perf_counter()
        torch.set_num_threads(1)  # no faster with two, for the peer too, and two would get into the tiles' way
        rate = peer(1024)
        marks.append((entered, time.perf_counter(), p.steps, rate))

    torch.set_num_threads(CORES)
    with tempfile.TemporaryDirectory() as folder:
        train.prepare(Path(folder), run)
        train.train(run, Path(folder), report=report)
    rates = [(b[2] - a[2]) * seeds / (b[0] - a[1]) for a, b in itertools.pairwise(marks)]
    peers = [(a[3] + b[3]) / 2 for a, b in itertools.pairwise(marks)]
    ratios = [rate / other for rate, other in zip(rates, peers, strict=True)]
    return marks[0][0] - start, statistics.median(rates), statistics.median(peers), statistics.median(ratios)


def empty_call(seeds: int) -> float:
    """Seconds a step of a compiled call that takes and gives the whole state, packed as `train` packs it, and computes nothing."""
    env = envs.make("CartPole-v1")
    init, _ = fuse(make_ppo(env.spec), env)
    state, _ = tree.pack(vmap(init)(random.split(random.key(0), seeds)), axes=1)
    call = compile(lambda state: tree.map(torch.clone, state))
    call(state)
    return seconds(lambda: call(state), 200)


def matrix_products(seeds: int) -> float:
    """Seconds of the bare matrix products of one update of all seeds: those of the rollout and of the minibatches."""
    tiles = CORES if seeds % CORES == 0 else 1
    s = seeds // tiles
    w, heads = [torch.rand(s, n, m) for n, m in ((4, 64), (64, 64))], [torch.rand(s, 64, n) for n in (2, 1)]
    few, many = torch.rand(s, 4, 4), torch.rand(s, 128, 4)

    def forward(x: torch.Tensor, head: torch.Tensor) -> list[torch.Tensor]:
        h1 = torch.bmm(x, w[0])
        h2 = torch.bmm(h1, w[1])
        return [h1, h2, torch.bmm(h2, head)]

    def update() -> None:
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

    with ThreadPoolExecutor(tiles) as pool:
        run = lambda: list(pool.map(lambda _: update(), range(tiles)))  # noqa: E731
        run()
        return seconds(run, 20)


def half_cheetah(updates: int) -> tuple[float, float, float]:
    """Seconds an update through Gymnasium with 8 environments, of their bare stepping, and of the bare gradient steps."""
    host = envs.make("HalfCheetah-v5")
    algo = make_ppo(
        host.spec, PPOConfig(n_envs=8, n_steps=256, epochs=10, n_minibatches=32, normalize_obs=True, normalize_reward=True)
    )
    program = train.host_program(algo, host, 0, train.Collecting(sampler="serial"))
    start = program.init(random.split(random.key(0), 1), {})
    lanes = train.Lanes(learner=start, going=torch.ones(1, dtype=torch.bool), updates=torch.zeros(1, dtype=torch.int64))
    lanes, _ = program.step(lanes, 2)
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    lanes, _ = program.step(lanes, updates)
    run = time.perf_counter() - start
    program.close()
    torch.set_num_threads(1)
    vec = envs.to_vector(host, 8)
    vec.reset(seed=0)
    actions = [vec.action_space.sample() for _ in range(256)]
    [vec.step(a) for a in actions]
    stepping = seconds(lambda: [vec.step(a) for a in actions], updates)
    learn, state = compile(vmap(algo.update)), lanes.learner.algo
    with samplers.serial(host, algo, 8, 256, random.split(random.key(0), 1)) as feed:
        feed.publish(state)
        batch = next(feed)
    learn(state, batch)
    return run / updates, stepping, seconds(lambda: learn(state, batch), updates)


def side_by_side(updates: int) -> tuple[float, float, list[float]]:
    """Env steps a second of PPO on Pong: alone with all cores, alone with one thread, and of two at once with one thread each."""

    def trainings(n: int, threads: int) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            run = "train ppo --env ALE/Pong-v5 --precision bfloat16 --steps {} --threads {} --out {}/{}"
            commands = [run.format(updates * 1024, threads, folder, i).split() for i in range(n)]
            children = [subprocess.Popen([sys.executable, "-m", "purerl", *c], stderr=subprocess.DEVNULL) for c in commands]
            for child in children:
                child.wait()
            tables = [read_rows(Path(folder) / str(i) / "seed_000" / "progress.csv")[1] for i in range(n)]
            return [float(table[-1][RATE]) for table in tables]

    return trainings(1, 0)[0], trainings(1, 1)[0], trainings(2, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="length of the runs")
    scale = parser.parse_args().scale
    print(f"PPO CartPole-v1, 4 environments x 128 steps, 4 minibatches x 4 epochs, 64x64 tanh, {CORES} cores\n")
    sb3 = sb3_cartpole()
    print(f"{'':18}{'steps/s':>10}{'SB3':>9}{'ratio':>8}{'compiled in':>13}{'empty call':>12}{'products':>10}{'step':>10}")
    for seeds, updates in ((1, 2000), (16, 400), (64, 100)):
        compilation, rate, peer, ratio = cartpole(seeds, int(updates * scale), sb3)
        step = BATCH * seeds / rate * 1e3
        floors = f"{empty_call(seeds) * 1e3:>9.2f} ms{matrix_products(seeds) * 1e3:>7.1f} ms{step:>7.1f} ms"
        print(f"{f'purerl, {seeds} seeds':18}{rate:>10,.0f}{peer:>9,.0f}{ratio:>7.1f}x{compilation:>11.1f} s{floors}", flush=True)
    whole, stepping, gradients = half_cheetah(int(15 * scale) or 1)
    print("\nPPO HalfCheetah-v5 through Gymnasium, 8 environments x 256 steps, 32 minibatches x 10 epochs")
    share = (stepping + gradients) / whole
    parts = f"stepping {stepping * 1e3:.0f} + gradient steps {gradients * 1e3:.0f} + rest"
    print(f"update {whole * 1e3:.0f} ms = {parts}; {share:.0%} of the limit")
    alone, thread, both = side_by_side(int(12 * scale) or 2)
    print("\nPPO ALE/Pong-v5, convolutions in bfloat16: trainings side by side")
    print(f"alone {alone:,.0f} steps/s, with --threads 1 {thread:,.0f}; two at once like that {both[0]:,.0f} and {both[1]:,.0f}")
    print(f"two of the same length cost {2 * alone / sum(both):.2f} times one alone")


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
