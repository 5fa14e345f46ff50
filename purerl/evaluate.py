"""Whole episodes with the mode of the policy."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from purerl import autoreset, envs, spaces, tree
from purerl.base import Algorithm, Env, Inputs, Policy
from purerl.envs.generators import seeded, stream
from purerl.extras import how_to_install
from purerl.nets import check_carry
from purerl.samplers import EnvError
from purerl.spaces import env_actions, to_tensors, zero_actions
from purerl.transforms import vmap

MAX_STEPS = 100_000  # of an environment: an episode that has not ended by then counts as it stands


class Evaluation(NamedTuple):
    """The episodes of each of `L` lanes, float64 arrays `[n]` in no particular order.

    Attributes:
        returns: sums of the environment's own rewards.
        lengths: steps.
    """

    returns: list[np.ndarray]
    lengths: list[np.ndarray]


def evaluate(
    policy: Algorithm | Policy, env: Env | envs.HostEnv, state: Any, episodes: int, seed: int, steps: int = 0
) -> Evaluation:
    """Play whole episodes with each of `L` states at once, as the environment is meant to be evaluated, where the states live.

    Every environment plays one episode, or goes on until it has taken its share of the steps, to the end of the episode it is in
    then. To stop all at the first so many episodes that end would favour short ones.

    Args:
        state: the algorithm's or the policy's, with a leading axis `[L]`.
        episodes: environments a lane.
        seed: of the environments; the same for the same results.
        steps: environment steps to play in all in each lane; 0 for one episode in each environment.

    Raises:
        EnvError: an environment raises, or an observation or reward is not finite.
    """
    return play(policy, env, policy.acting(state), len(tree.leaves(state)[0]), episodes, seed, steps)


def play(
    policy: Algorithm | Policy, env: Env | envs.HostEnv, acting: Any, lanes: int, episodes: int, seed: int, steps: int = 0
) -> Evaluation:
    """`evaluate` of what acting needs of the states, `[L]` with `L = lanes`."""
    with stream(seeded(seed)):  # what environments may draw from global generators
        n = lanes * episodes
        vec = envs.to_gymnasium(env, n) if isinstance(env, Env) else envs.to_vector(env.evaluation or env, n)
        try:
            return _play(policy, vec, acting, (lanes, episodes), seed, steps)
        finally:
            vec.close()


def _play(
    policy: Algorithm | Policy, vec: gym.vector.VectorEnv, acting: Any, shape: tuple[int, int], seed: int, steps: int
) -> Evaluation:
    """Play with `shape`: lanes, and environments a lane."""
    (lanes, episodes), spec = shape, policy.spec
    device = next((x.device for x in tree.leaves(acting)), torch.device("cpu"))
    act = vmap(policy.mode)
    obs, _ = _call("reset", vec.reset, seed=seed)
    carry = tree.expand(tree.to(policy.carry(episodes), device), lanes)
    action = tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), zero_actions(spec.action_space, lanes * episodes))
    reward, first = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
    compose = spaces.composer(spec.action_space)
    returns, lengths, taken, resets = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    finished: tuple[list[list[float]], list[list[float]]] = ([[] for _ in range(lanes)], [[] for _ in range(lanes)])
    running = np.ones(shape, bool)
    for _ in range(MAX_STEPS):
        seen = tree.map(lambda x: x.reshape(shape + x.shape[1:]), to_tensors(obs))
        for (path, part), x in zip(spaces.parts(spec.observation_space), tree.leaves(seen), strict=True):
            _check(spaces.field("observation", path), x, torch.isfinite(x), "finite")
            bounds = spaces.bounds(part)
            if bounds is not None:
                low, high = (torch.as_tensor(bound) for bound in bounds)
                _check(spaces.field("observation", path), x, (x >= low) & (x <= high), f"in {part}")
        inputs = Inputs(obs=seen, prev_action=autoreset.previous(first, action), prev_reward=reward, first=first)
        leaves, structure = tree.flatten(inputs)
        inputs = tree.unflatten(tree.batched(structure, 1), [x.to(device) for x in leaves])
        action, after = act(acting, inputs, carry)
        check_carry(carry, after)
        carry = after
        action = tree.map(lambda x: x.cpu(), action)
        sent = [x.flatten(0, 1).numpy() for x in tree.leaves(env_actions(spec.action_space, action))]
        obs, rewards, terminated, truncated, _ = _call("step", vec.step, compose(sent))
        rewards = np.reshape(rewards, shape)
        reward = torch.as_tensor(rewards, dtype=torch.float32)
        _check("reward", reward, torch.isfinite(reward), "finite")
        counts = running & ~resets
        returns += counts * rewards
        lengths += counts
        taken += counts
        done = np.reshape(terminated | truncated, shape)
        for lane, column in np.argwhere(done & counts):
            finished[0][lane].append(returns[lane, column])
            finished[1][lane].append(lengths[lane, column])
        returns[done], lengths[done] = 0.0, 0.0
        running &= ~done | (taken < steps / episodes)
        first, resets = torch.from_numpy(resets), done
        if not running.any():
            break
    for lane, column in np.argwhere(running & (lengths > 0)):
        finished[0][lane].append(returns[lane, column])
        finished[1][lane].append(lengths[lane, column])
    return Evaluation([np.array(x) for x in finished[0]], [np.array(x) for x in finished[1]])


def _call(what: str, f: Callable, *args: Any, **kwargs: Any) -> Any:
    try:
        return f(*args, **kwargs)
    except envs.RAISED as error:
        raise EnvError(f"evaluation: {what} raised {type(error).__name__}: {error}") from error


def _check(what: str, x: torch.Tensor, right: torch.Tensor, wanted: str) -> None:
    """Raise an `EnvError` that names lane and environment of a number `[L, n, ...]` that is not as it should be."""
    if not right.all():
        lane, i, *_ = (~right).nonzero()[0].tolist()
        raise EnvError(f"evaluation: {what} of environment {i} of lane {lane} is {x[~right][0].item()}, not {wanted}")


def record_video(policy: Algorithm | Policy, env: Env | envs.HostEnv, state: Any, path: str, seed: int) -> float:
    """Play one episode with one state, on the CPU, and write it as a video: of what the environment renders, or of what is seen.

    Args:
        state: the algorithm's or the policy's, without a leading axis.
        path: of the video; the ending chooses the format (`.mp4`, `.gif`). Its folder is made if there is none.

    Returns:
        The episode's return.

    Raises:
        ValueError, ImportError: as `check_video`; what the environment renders with is not installed.
        OSError: the environment cannot be drawn here, or the video cannot be written.
    """
    check_video(path)
    from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

    with stream(seeded(seed)):
        frames, total, fps = _film(policy, env, tree.map(lambda x: x.cpu(), policy.acting(state)), seed)
    clip = ImageSequenceClip(frames, fps=fps)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.lower().endswith(".gif"):
        clip.write_gif(path, logger=None)
    else:
        clip.write_videofile(path, logger=None)
    if not Path(path).is_file():
        raise OSError(f"video: {path} could not be written")
    return total


def check_video(path: str) -> None:
    """Raise before any work is done.

    Raises:
        ValueError: the path does not end in `.mp4` or `.gif`.
        ImportError: `moviepy` is not installed.
    """
    if not path.lower().endswith((".mp4", ".gif")):
        raise ValueError(f"video: {path} does not end in .mp4 or .gif")
    try:
        import moviepy  # noqa: F401
    except ImportError as error:
        raise _no_video(error) from None


def _film(policy: Algorithm | Policy, env: Env | envs.HostEnv, acting: Any, seed: int) -> tuple[list[np.ndarray], float, int]:
    """The frames of an episode, its return, and how many frames are shown a second."""
    if isinstance(env, envs.HostEnv) and env.make is None:
        stage: Any = _Screen(envs.to_vector(env.evaluation or env, 1), _newest_frame)
    elif isinstance(env, envs.HostEnv):
        stage = _render(env.spec.id, env.make_drawn)
    elif env.render is not None:
        draw = env.render
        stage = _Screen(envs.to_gymnasium(env, 1), lambda obs: draw(to_tensors(obs)).numpy())
    else:
        stage = _render(env.spec.id, partial(gym.make, env.spec.id, render_mode="rgb_array"))
    obs = stage.reset(seed=seed)[0]
    frames = [np.array(stage.render())]  # copies: an environment may draw into the same array again
    carry, space = policy.carry(1), policy.spec.action_space
    action = zero_actions(space, 1)
    total, reward, first, done = 0.0, torch.zeros(1), torch.ones(1, dtype=torch.bool), False
    while not done and len(frames) < MAX_STEPS:
        seen = tree.map(lambda x: x[None], to_tensors(obs))
        action, carry = policy.mode(acting, Inputs(obs=seen, prev_action=action, prev_reward=reward, first=first), carry)
        sent = [x[0].numpy() for x in tree.leaves(env_actions(space, action))]
        obs, r, terminated, truncated, _ = stage.step(spaces.composer(space)([x.item() if x.ndim == 0 else x for x in sent]))
        total, done = total + float(r), terminated or truncated
        reward, first = torch.tensor([float(r)]), torch.zeros(1, dtype=torch.bool)
        frames.append(np.array(stage.render()))
    stage.close()
    return frames, total, stage.metadata.get("render_fps", 30)


def _render(id: str, make: Callable[[], gym.Env] | None) -> gym.Env:
    """An environment that draws itself, after its first drawing."""
    if make is None:
        raise OSError(f"video: {id} cannot be drawn: it is not made with render_mode='rgb_array'")
    try:
        env = make()
        env.reset()
        drawn: Any = env.render()
        if np.ndim(drawn) != 3:
            raise OSError(f"render returned {type(drawn).__name__}, not an array [H, W, 3]")
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _no_video(error) from None
    except envs.RAISED as error:  # each renderer has errors of its own for a machine without a display
        raise OSError(f"video: {id} cannot be drawn ({error}); {_drawing_advice(error)}") from None
    return env


def _drawing_advice(error: BaseException) -> str:
    if isinstance(error, TypeError) and "render_mode" in str(error):
        return "let its constructor take render_mode, and its render() return an array [H, W, 3]"
    return "without a display, MuJoCo draws with MUJOCO_GL=egl"


def _no_video(error: Exception) -> ImportError:
    return ImportError(f"video: {error}; install what it needs with: {how_to_install('video')}")


def _newest_frame(frames: np.ndarray) -> np.ndarray:
    """The last of the grey frames `[C, H, W]`, four times as large."""
    return np.repeat(frames[-1].repeat(4, 0).repeat(4, 1)[..., None], 3, -1)


class _Screen:
    """A vector environment of one game as an environment that draws what it shows: `draw(obs) -> [H, W, 3]`."""

    metadata = {"render_fps": 15}

    def __init__(self, vec: gym.vector.VectorEnv, draw: Callable[[Any], np.ndarray]) -> None:
        self._vec, self._draw = vec, draw

    def reset(self, seed: int) -> tuple[Any, dict]:
        obs, info = self._vec.reset(seed=[seed])  # type: ignore[arg-type]
        self._obs = obs[0]
        return obs[0], info

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self._vec.step(np.array([action]))
        self._obs = obs[0]
        return obs[0], reward[0], terminated[0], truncated[0], info

    def render(self) -> np.ndarray:
        return self._draw(self._obs)

    def close(self) -> None:
        self._vec.close()
