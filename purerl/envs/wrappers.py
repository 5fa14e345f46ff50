"""Pure environments from pure environments."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import random, tree
from purerl.base import Env


def accept_keys(env: Env) -> Env:
    """Let `reset` and `step` take a key as well as the noise that `env.draw` makes of it."""

    def noise_of(x: Any) -> Any:
        return env.draw(x) if random.is_key(x) else x

    return env._replace(
        reset=lambda noise: env.reset(noise_of(noise)),
        step=lambda state, action, noise: env.step(state, action, noise_of(noise)),
    )


def time_limit(env: Env, max_steps: int) -> Env:
    """Truncate an episode after `max_steps` steps."""

    def reset(noise: Any) -> tuple[TensorDict, Any]:
        state, obs = env.reset(noise)
        return TensorDict(inner=state, steps=torch.zeros((), dtype=torch.int32, device=tree.leaves(obs)[0].device)), obs

    def step(state: TensorDict, action: Tensor, noise: Any) -> tuple:
        inner, obs, reward, terminated, truncated, info = env.step(state["inner"], action, noise)
        steps = state["steps"] + 1
        return TensorDict(inner=inner, steps=steps), obs, reward, terminated, truncated | (steps >= max_steps), info

    return env._replace(spec=env.spec._replace(max_episode_steps=max_steps), reset=reset, step=step)
