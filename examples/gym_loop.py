"""An ordinary PyTorch loop over an environment of the outside world: `python examples/gym_loop.py [UPDATES]`."""

import sys

import torch

from purerl import PPOConfig, compile, envs, make_ppo, random, samplers
from purerl.episodes import init_episodes, mean_return, record_episodes

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 500
torch.set_num_threads(1)  # these networks are too small to share between threads

env = envs.make("gym:CartPole-v1")
algo = make_ppo(env.spec, PPOConfig(n_envs=4, n_steps=128, total_steps=updates * 512))
key, init_key = random.split(random.key(0))
state, update = algo.init(init_key), compile(algo.update)
episodes = init_episodes(4)

with samplers.serial(env, algo, 4, 128, key) as feed:
    feed.publish(state)
    for i, batch in enumerate(feed, start=1):
        state, info = update(state, batch)
        feed.publish(state)
        episodes = record_episodes(episodes, batch)
        if i % 50 == 0 or i == updates:
            print(f"{state.steps:>7} steps  return {mean_return(episodes):6.1f}  loss {info['loss']:.3f}")
        if i == updates:
            break
