"""Your own environment as pure functions: a ship on a line, which is to stop at a buoy.

python examples/own_env.py [UPDATES]                                                # in a loop of its own
purerl train ppo --env own_env:make_ship --seeds 16 --steps 200000 --out runs/ship  # in examples/
"""

import sys

import gymnasium as gym
import torch
from tensordict import TensorDict

from purerl import Env, EnvSpec, PPOConfig, compile, envs, fuse, make_ppo, random, vmap
from purerl.episodes import mean_return


def make_ship(push: float = 0.1) -> Env:
    """One ship, without batch axes: `vmap` makes fleets of it. There is no `if` on a tensor and no write into one."""

    def draw(key):
        """What `reset` and `step` need of chance: both take it, or the key in its place."""
        return TensorDict(buoy=random.uniform(key, (), -1.0, 1.0))

    def observe(state):
        return torch.stack([state["buoy"] - state["x"], state["speed"]])

    def reset(noise):
        zero = torch.zeros_like(noise["buoy"])
        state = TensorDict(x=zero, speed=zero, buoy=noise["buoy"])
        return state, observe(state)

    def step(state, action, noise):
        speed = 0.9 * state["speed"] + push * (action - 1)  # back, nothing, ahead
        x = state["x"] + speed
        there = ((state["buoy"] - x).abs() < 0.05) & (speed.abs() < 0.05)
        away = x.abs() > 2.0
        reward = torch.where(there, 10.0, torch.where(away, -10.0, -0.1))
        state = TensorDict(x=x, speed=speed, buoy=state["buoy"])
        return state, observe(state), reward, there | away, torch.zeros_like(there), {}

    spec = EnvSpec("Ship", gym.spaces.Box(-5.0, 5.0, (2,)), gym.spaces.Discrete(3), max_episode_steps=100)
    return Env(spec, reset, step, draw)


if __name__ == "__main__":
    updates = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    env = envs.pure(make_ship())  # with the time limit of its spec
    init, step = fuse(make_ppo(env.spec, PPOConfig(total_steps=updates * 512)), env)
    state, step = vmap(init)(random.split(random.key(0), 8)), compile(vmap(step))
    for i in range(1, updates + 1):
        state, info = step(state)
        if i % 20 == 0 or i == updates:
            print(f"{i * 512:>7} steps  return {vmap(mean_return)(state.episodes).mean():7.2f}")
