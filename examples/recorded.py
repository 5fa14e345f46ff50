"""DQN that begins with recorded steps: `python examples/recorded.py [UPDATES [steps.npz]]`.

The file holds arrays `obs`, `action`, `reward`, `terminated`, `truncated` and `next_obs` of one step after the other; where there
is none, steps of random actions are recorded into it first.
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from purerl import DQNConfig, envs, fuse, iterate, make_dqn, random, replay, tree
from purerl.algos import q_learning
from purerl.episodes import mean_return


def record(path: Path, n: int) -> None:
    env = gym.make("CartPole-v1")
    env.action_space.seed(0)
    (obs, _), steps = env.reset(seed=0), []
    for _ in range(n):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((obs, action, reward, terminated, truncated, next_obs))
        obs = env.reset()[0] if terminated or truncated else next_obs
    names = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
    np.savez(path, **{name: np.stack(x) for name, x in zip(names, zip(*steps, strict=True), strict=True)})


updates = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
path = Path(sys.argv[2] if len(sys.argv) > 2 else "steps.npz")
torch.set_num_threads(1)
if not path.exists():
    record(path, 20_000)

env, batch = envs.make("CartPole-v1"), replay.from_arrays(**np.load(path))
config = DQNConfig(n_envs=1, n_steps=10, capacity=len(batch.reward), learning_starts=1, total_steps=updates * 10)
algo, memory = make_dqn(env.spec, config), q_learning.make_replay(env.spec, config)
init, step = fuse(algo, env)
state = init(random.key(0))
filled = memory.add(state.algo.replay, batch, torch.tensor(config.alpha))
state = tree.replace(state, algo=tree.replace(state.algo, replay=filled))
print(f"the replay begins with {memory.size(filled)} transitions")

run, part = iterate(step), -(-updates // 10)
for i in range(part, updates + 1, part):
    state, info = run(state, part)
    print(f"{i * 10:>7} steps  return {mean_return(state.episodes):6.1f}  loss {info['loss']:.3f}")
