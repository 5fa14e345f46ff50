"""Sixty-four seeds of PPO at once: `python examples/many_seeds.py [UPDATES [SEEDS]]`."""

import sys
import time

import torch

from purerl import PPOConfig, compile, envs, fuse, make_ppo, random, vmap
from purerl.episodes import mean_return

updates, seeds = (int(x) for x in (sys.argv[1:] + ["200", "64"][len(sys.argv) - 1 :]))
torch.set_num_threads(1)

env = envs.make("CartPole-v1")
init, step = fuse(make_ppo(env.spec, PPOConfig(total_steps=updates * 512)), env, n_envs=4, n_steps=128)
state = vmap(init)(random.split(random.key(0), seeds))
step = compile(vmap(step))

start = time.perf_counter()
for i in range(1, updates + 1):
    state, info = step(state)
    if i == 1:
        print(f"compiled in {time.perf_counter() - start:.0f} s")
        start = time.perf_counter()
    if i % 20 == 0 or i == updates:
        returns = mean_return(state.episodes)
        rate = (i - 1) * 512 * seeds / (time.perf_counter() - start)
        print(f"{i * 512:>7} steps  return {returns.mean():6.1f} +- {returns.std():5.1f}  {rate:,.0f} steps/s")
