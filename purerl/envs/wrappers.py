"""Pure environments from pure environments."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import random, spaces, tree
from purerl.base import Env


def check(env: Env) -> None:
    """Take one step of a pure environment, and look whether it is as `Env` and its spec have it.

    Raises:
        ValueError: naming what `reset` or `step` returns and what is wanted.
    """
    keys, name = random.split(random.key(0)), env.spec.id
    state, obs = _checked(name, "reset", ("state", "obs"), env.reset(env.draw(keys[0])))
    wanted_obs = _kinds(tree.index(spaces.zero_obs(env.spec.observation_space, 1), 0))
    _check_kinds(name, "reset", "obs", obs, wanted_obs)
    action = spaces.env_actions(env.spec.action_space, tree.index(spaces.zero_actions(env.spec.action_space, 1), 0))
    names = ("state", "obs", "reward", "terminated", "truncated", "info")
    result = dict(zip(names, _checked(name, "step", names, env.step(state, action, env.draw(keys[1]))), strict=True))
    flag = ["bool []"]
    wanted = {"state": _kinds(state), "obs": wanted_obs, "reward": ["float32 []"], "terminated": flag, "truncated": flag}
    for what, kinds in wanted.items():
        _check_kinds(name, "step", what, result[what], kinds)


def _checked(name: str, function: str, names: Sequence[str], result: Any) -> tuple:
    if not isinstance(result, tuple) or len(result) != len(names):
        found = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise ValueError(f"{name}: {function} returned {found}, but ({', '.join(names)}) is wanted")
    return result


def _kinds(x: Any) -> list[str]:
    """Dtypes and shapes of a tree's leaves, in their order."""
    return [
        f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}" if isinstance(leaf, Tensor) else f"no tensor but {leaf!r}"
        for leaf in tree.leaves(x)
    ]


def _check_kinds(name: str, function: str, what: str, found: Any, wanted: list[str]) -> None:
    if _kinds(found) != wanted:
        raise ValueError(
            f"{name}: {function} returned {what} that is {', '.join(_kinds(found))}, but {', '.join(wanted)} is wanted"
        )


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


def sticky_actions(env: Env, probability: float) -> Env:
    """Repeat the last action of an episode, at first action 0, with a probability (Machado et al. 2018).

    Args:
        env: of discrete actions.

    Raises:
        ValueError: the probability is not in [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"sticky_action_prob = {probability} is not in [0, 1]")

    def draw(key: Tensor) -> tuple[Any, Tensor]:
        key, stick = random.split(key)
        return env.draw(key), random.uniform(stick)

    def reset(noise: Any) -> tuple[TensorDict, Any]:
        state, obs = env.reset(noise[0])
        return TensorDict(inner=state, action=torch.zeros((), dtype=torch.int64, device=noise[1].device)), obs

    def step(state: TensorDict, action: Tensor, noise: Any) -> tuple:
        action = torch.where(noise[1] < probability, state["action"], action)
        inner, *rest = env.step(state["inner"], action, noise[0])
        return TensorDict(inner=inner, action=action), *rest

    return env._replace(reset=reset, step=step, draw=draw)


def choose_actions(env: Env, actions: Sequence[int]) -> Env:
    """Offer some of an environment's discrete actions, in this order."""

    def step(state: Any, action: Tensor, noise: Any) -> tuple:
        chosen = torch.zeros_like(action)
        for i, own in enumerate(actions):
            chosen = torch.where(action == i, own, chosen)
        return env.step(state, chosen, noise)

    return env._replace(spec=env.spec._replace(action_space=gym.spaces.Discrete(len(actions))), step=step)
