"""Atari games through ALE's vector environment, with the preprocessing of Mnih et al. (2015) and Machado et al. (2018)."""

import difflib
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from purerl.base import EnvSpec
from purerl.extras import how_to_install

# What our own vector environments tell in their infos, under names that nobody else's environment uses.
RAW_REWARD, GAME_OVER = "purerl/raw_reward", "purerl/game_over"


class AtariVector(VectorEnv):
    """`num_envs` games on C++ threads: 84 x 84 grey, 4 frames, each the maximum of 2, every 4th, up to 30 no-ops after a reset.

    Its infos hold, as `RAW_REWARD`, the reward before clipping, and as `GAME_OVER` whether a game has ended: a lost life ends an
    episode, but no game.

    Args:
        game: ALE's name of it.
        n_envs, n_threads: how many.
        batch_size: how many environments `receive` gives at a time, the first that are ready; all of them when None.
        episodic_life: a lost life terminates the episode; the next one begins where the game goes on.
        clip_rewards: to their signs.
        sticky: the probability that the emulator repeats the last action instead.
        full_action_space: all 18 actions, not only those that do something.
        max_frames: after which a game is truncated.
        noop_max, frame_skip: of the preprocessing.
    """

    def __init__(
        self,
        game: str,
        n_envs: int,
        n_threads: int,
        batch_size: int | None = None,
        episodic_life: bool = True,
        clip_rewards: bool = True,
        sticky: float = 0.0,
        full_action_space: bool = False,
        max_frames: int = 108_000,
        noop_max: int = 30,
        frame_skip: int = 4,
    ) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self._vec = AtariVectorEnv(
            game,
            n_envs,
            num_threads=n_threads,
            batch_size=batch_size or 0,
            life_loss_info=episodic_life,
            reward_clipping=False,
            repeat_action_probability=sticky,
            full_action_space=full_action_space,
            max_num_frames_per_episode=max_frames,
            noop_max=noop_max,
            frameskip=frame_skip,
        )
        self.num_envs, self.metadata = n_envs, {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.single_observation_space, self.single_action_space = self._vec.single_observation_space, self._vec.single_action_space
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self._clip_rewards = clip_rewards

    def reset(self, *, seed: int | list[int] | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Reset all games, or with `options["reset_mask"]` `[n_envs]` bool some of them."""
        if not isinstance(seed, list):
            return self._vec.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask", np.ones(len(seed), bool))
        return self._vec.reset(seed=np.array(seed)[mask], options=options)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.send(actions)
        return self.receive()

    def send(self, actions: np.ndarray) -> None:
        """Let the environments step that the last `reset` or `receive` gave."""
        self._vec.send(actions)

    def receive(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """What `step` gives, of the first `batch_size` environments that are ready; `info["env_id"]` says which they are."""
        obs, reward, terminated, truncated, info = self._vec.recv()
        info[RAW_REWARD] = reward
        info[GAME_OVER] = (terminated & (info["lives"] == 0)) | truncated
        return obs, np.sign(reward) if self._clip_rewards else reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        self._vec.close()


def describe(id: str, **kwargs: Any) -> tuple[EnvSpec, partial]:
    """The spec of `ALE/<Game>-v5`, and `make_vec(n_envs, n_threads)`.

    Raises:
        ValueError: no such game.
        ImportError: ale-py is not installed.
    """
    try:
        import ale_py
    except ImportError:
        raise ImportError(f"environment: {id!r} needs ale-py; install it with: {how_to_install('atari')}") from None
    gym.register_envs(ale_py)
    if id not in gym.registry:
        near = difflib.get_close_matches(id, [name for name in gym.registry if name.startswith("ALE/")], n=3)
        raise ValueError(f"environment: {id!r} is not known" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    make_vec: partial = partial(AtariVector, gym.registry[id].kwargs["game"], **kwargs)
    try:
        vec = make_vec(1, 1)
    except TypeError as error:
        raise ValueError(f"environment: {id!r} does not take these options: {error}") from None
    spec = EnvSpec(id, vec.single_observation_space, vec.single_action_space)
    vec.close()
    return spec, make_vec
