"""Learning rates x seeds in one call: swept numbers enter with the key: `python examples/sweep.py [UPDATES]`."""

import sys

import torch

from purerl import PPOConfig, compile, envs, fuse, make_ppo, random, vmap
from purerl.episodes import mean_return

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 100
torch.set_num_threads(1)

env = envs.make("CartPole-v1")
init, step = fuse(make_ppo(env.spec, PPOConfig(lr_schedule="constant")), env, n_envs=4, n_steps=128)

lrs, n_seeds = torch.tensor([1e-4, 1e-3, 1e-2]), 4
keys = random.split(random.key(0), n_seeds)
state = vmap(init)(keys.repeat(len(lrs), 1), {"lr": lrs.repeat_interleave(n_seeds)})

step = compile(vmap(step))
for _ in range(updates):
    state, _ = step(state)

returns = mean_return(state.episodes).reshape(len(lrs), n_seeds)
for lr, r in zip(lrs.tolist(), returns, strict=True):
    print(f"lr {lr:.0e}  return {r.mean():6.1f} +- {r.std():.1f} over {n_seeds} seeds")
