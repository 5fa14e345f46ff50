"""Speed against Stable-Baselines3 and against the floors, in one run: `python examples/bench.py [--scale X]`.

Prints ratios: whole runs of the same work on both sides, compilation reported beside; then the floors, which are the empty
compiled call and the bare matrix products of the run.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import torch

from purerl import PPOConfig, compile, envs, make_ppo, random, tree, vmap
from purerl.train import Program, guard, host_program, pure_program

CORES = torch.get_num_threads()
BATCH, MINIBATCHES = 4 * 128, 4 * 4


def seconds(f: Callable[[], Any], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        f()
    return (time.perf_counter() - start) / n


def sb3_cartpole(steps: int) -> float:
    """Stable-Baselines3's env steps a second with the same settings."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    settings = {"n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4, "ent_coef": 0.01, "device": "cpu"}
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 4), **settings)
    model.learn(512)
    start = time.perf_counter()
    model.learn(steps)
    return steps / (time.perf_counter() - start)


def drive(program: Program, state: Any, updates: int) -> tuple[float, float]:
    """Seconds of compilation, and of `updates` updates of all lanes."""
    start = time.perf_counter()
    state, _ = program.step(state)
    compiled = time.perf_counter()
    for _ in range(updates):
        state, _ = program.step(state)
    return compiled - start, time.perf_counter() - compiled


def cartpole(seeds: int, updates: int) -> tuple[float, float]:
    """Seconds of compilation, and env steps a second in all lanes."""
    env = envs.make("CartPole-v1")
    program = pure_program(make_ppo(env.spec, PPOConfig()), env, seeds)
    compilation, run = drive(program, program.init(random.split(random.key(0), seeds)), updates)
    program.close()
    return compilation, updates * BATCH * seeds / run


def empty_call(seeds: int) -> float:
    """Seconds a step of a compiled call that takes and gives the whole state but computes nothing."""
    from purerl import fuse

    env = envs.make("CartPole-v1")
    init, _ = fuse(make_ppo(env.spec), env)
    state = vmap(init)(random.split(random.key(0), seeds))
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
    program = host_program(algo, host, 0)
    state = program.init(random.split(random.key(0), 1))
    state, _ = program.step(state)
    state, _ = program.step(state)
    _, run = drive(program, state, updates)
    program.close()
    torch.set_num_threads(1)
    vec = host.make_vec(8)
    vec.reset(seed=0)
    actions = [vec.action_space.sample() for _ in range(256)]
    [vec.step(a) for a in actions]
    stepping = seconds(lambda: [vec.step(a) for a in actions], updates)
    from purerl import samplers

    keys = random.split(random.key(0), 1)
    learn = compile(vmap(guard(lambda s, b: _update(algo, s, b))))
    with samplers.serial(host, algo, keys) as feed:
        feed.publish(state.algo)
        batch = next(feed)
    learn(state, batch)
    return run / updates, stepping, seconds(lambda: learn(state, batch), updates)


def _update(algo: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    new, info = algo.update(state.algo, batch)
    return state.replace(algo=new), info


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="length of the runs")
    scale = parser.parse_args().scale
    print(f"PPO CartPole-v1, 4 environments x 128 steps, 4 minibatches x 4 epochs, 64x64 tanh, {CORES} cores\n")
    peer = sb3_cartpole(int(50_000 * scale))
    print(f"{'':22}{'steps/s':>10}{'ratio':>8}{'compiled in':>13}{'empty call':>12}{'products':>10}{'step':>10}")
    print(f"{'Stable-Baselines3':22}{peer:>10,.0f}{1:>7.1f}x")
    for seeds, updates in ((1, 1000), (16, 300), (64, 100)):
        compilation, rate = cartpole(seeds, int(updates * scale))
        step = BATCH * seeds / rate * 1e3
        floors = f"{empty_call(seeds) * 1e3:>9.2f} ms{matrix_products(seeds) * 1e3:>7.1f} ms{step:>7.1f} ms"
        print(f"{f'purerl, {seeds} seeds':22}{rate:>10,.0f}{rate / peer:>7.1f}x{compilation:>11.1f} s{floors}", flush=True)
    whole, stepping, gradients = half_cheetah(int(15 * scale) or 1)
    print("\nPPO HalfCheetah-v5 through Gymnasium, 8 environments x 256 steps, 32 minibatches x 10 epochs")
    share = (stepping + gradients) / whole
    parts = f"stepping {stepping * 1e3:.0f} + gradient steps {gradients * 1e3:.0f} + rest"
    print(f"update {whole * 1e3:.0f} ms = {parts}; {share:.0%} of the limit")


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
