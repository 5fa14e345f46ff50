"""Whole episodes with the mode of the policy."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from purerl import envs, tree
from purerl.base import Algorithm, Env, Inputs
from purerl.spaces import env_actions, to_tensors, zero_actions
from purerl.transforms import vmap

MAX_STEPS = 100_000


def evaluate(algo: Algorithm, env: Env | envs.HostEnv, state: Any, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Play `episodes` episodes with each of `L` states at once, one environment an episode.

    Args:
        state: the algorithm's, with a leading axis `[L]`.
        seed: of the environments; the same for the same results.

    Returns:
        Returns `[L, episodes]` and lengths `[L, episodes]`, float64.
    """
    lanes = len(state.steps)
    shape = (lanes, episodes)
    vec = envs.to_gymnasium(env, lanes * episodes) if isinstance(env, Env) else envs.to_vector(env, lanes * episodes)
    act = vmap(algo.mode)
    obs, _ = vec.reset(seed=seed)
    carry = algo.carry(episodes).expand(lanes)
    action = zero_actions(env.spec.action_space, lanes * episodes).reshape(*shape, *(env.spec.action_space.shape or ()))
    reward, first = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
    returns, lengths, running = np.zeros(shape), np.zeros(shape), np.ones(shape, bool)
    device = tree.leaves(state)[0].device
    for _ in range(MAX_STEPS):
        seen = tree.map(lambda x: x.reshape(shape + x.shape[1:]), to_tensors(obs))
        inputs = Inputs(obs=seen, prev_action=action, prev_reward=reward, first=first, batch_size=[lanes])
        action, carry = act(state, inputs.to(device), carry)
        action = action.cpu()
        obs, rewards, terminated, truncated, _ = vec.step(env_actions(env.spec.action_space, action).flatten(0, 1).numpy())
        returns += running * np.reshape(rewards, shape)
        lengths += running
        running &= ~np.reshape(terminated | truncated, shape)
        reward, first = torch.as_tensor(np.reshape(rewards, shape), dtype=torch.float32), torch.zeros_like(first)
        if not running.any():
            break
    vec.close()
    return returns, lengths


def record_video(algo: Algorithm, env_id: str, state: Any, path: str, seed: int) -> float:
    """Play one episode with one state and write it as a video.

    Args:
        state: the algorithm's, without a leading axis.
        path: of the video; the ending chooses the format (`.mp4`, `.gif`).

    Returns:
        The episode's return.

    Raises:
        ImportError: `moviepy`, or what the environment renders with, is not installed.
        OSError: the environment cannot be drawn here.
    """
    try:
        from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

        env = gym.make(env_id.removeprefix("gym:"), render_mode="rgb_array")
        obs, _ = env.reset(seed=seed)
        frames: list[Any] = [env.render()]
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(f'video: {error}; install what it needs with: pip install "purerl[video]"') from None
    except Exception as error:  # each renderer has errors of its own for a machine without a display
        raise OSError(f"video: {env_id} cannot be drawn ({error}); without a display, MuJoCo draws with MUJOCO_GL=egl") from None
    carry = algo.carry(1)
    action = zero_actions(env.action_space, 1)
    total, reward, first, done = 0.0, torch.zeros(1), torch.ones(1, dtype=torch.bool), False
    while not done and len(frames) < MAX_STEPS:
        seen = tree.map(lambda x: x[None], to_tensors(obs))
        action, carry = algo.mode(state, Inputs(obs=seen, prev_action=action, prev_reward=reward, first=first), carry)
        sent = env_actions(env.action_space, action)[0].numpy()
        obs, r, terminated, truncated, _ = env.step(sent.item() if sent.ndim == 0 else sent)
        total, reward, first, done = (
            total + float(r),
            torch.tensor([float(r)]),
            torch.zeros(1, dtype=torch.bool),
            terminated or truncated,
        )
        frames.append(env.render())
    fps = env.metadata.get("render_fps", 30)
    env.close()
    clip = ImageSequenceClip(frames, fps=fps)
    if path.endswith(".gif"):
        clip.write_gif(path, logger=None)
    else:
        clip.write_videofile(path, logger=None)
    return total
