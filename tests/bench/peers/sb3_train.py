"""Stable-Baselines3's actor-critics, in a process of their own: several OpenMP teams in one process put each other to sleep.
Arguments: SAC or TD3, environment, steps a turn, and as JSON what it is made with."""

import json
import sys

import stable_baselines3 as sb3
from turns import serve

name, env, steps, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
model = getattr(sb3, name)("MlpPolicy", env, device="cpu", **settings)


def turn() -> float:
    model.learn(steps, reset_num_timesteps=False)
    return steps


turn()
serve(turn)
