"""A pure environment handed out as an ordinary `gymnasium.vector.VectorEnv`."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from purerl import autoreset, random
from purerl.base import Env
from purerl.spaces import to_tensors
from purerl.transforms import vmap


def _to_numpy(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.numpy()
    return {name: _to_numpy(part) for name, part in x.items()}


class PureVectorEnv(VectorEnv):
    """`num_envs` copies of a pure environment behind Gymnasium's interface, with NEXT_STEP autoreset.

    Args:
        env: the pure environment.
        num_envs: how many.
    """

    def __init__(self, env: Env, num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs = {num_envs} is not at least 1")
        self.env, self.num_envs = env, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.single_observation_space, self.single_action_space = env.spec.observation_space, env.spec.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._key: torch.Tensor | None = None
        self._done = torch.zeros(num_envs, dtype=torch.bool)

    def _noise(self) -> Any:
        assert self._key is not None
        self._key, key = random.split(self._key)
        return vmap(self.env.draw)(random.split(key, self.num_envs))

    def reset(self, *, seed: int | list[int] | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Reset all environments; one seed (or the first of a list) determines them all."""
        if isinstance(seed, list):
            seed = seed[0]
        if seed is not None or self._key is None:
            entropy = np.random.SeedSequence().generate_state(1)[0] if seed is None else seed
            self._key = random.key(int(entropy))
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(int(entropy))
        self._state, obs = vmap(self.env.reset)(self._noise())
        self._done = torch.zeros(self.num_envs, dtype=torch.bool)
        return _to_numpy(obs), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        if self._key is None:
            raise gym.error.ResetNeeded("call reset before step")
        if not self.action_space.contains(actions):
            raise ValueError(f"actions: {actions!r} is not in {self.action_space}")
        noise, done = self._noise(), self._done
        stepped = autoreset.step(self.env, self._state, to_tensors(actions), noise, done)
        self._state, obs, reward, terminated, truncated = stepped
        self._done = terminated | truncated
        return _to_numpy(obs), reward.numpy(), terminated.numpy(), truncated.numpy(), {}


def to_gymnasium(env: Env, num_envs: int) -> PureVectorEnv:
    """A pure environment as a `gymnasium.vector.VectorEnv`."""
    return PureVectorEnv(env, num_envs)
