"""Stepping some columns of a fragment's environments: one `gym.Env` each, or a `gymnasium.vector.VectorEnv` for all of them."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from purerl import spaces
from purerl.envs import GAME_OVER, RAW_REWARD, HostEnv
from purerl.samplers.fragments import Rows


class EnvError(RuntimeError):
    """An environment raised, hung, or returned what its spaces do not allow; the message names it."""


class Stepper(Protocol):
    """Environments that read their actions from a fragment's rows and write what happens into them."""

    def reset(self) -> None:
        """Open every environment's first episode, with its seed; what it shows becomes what the last fragment left."""

    def step(self, t: int) -> None:
        """Step number `t` of the fragment."""

    def close(self) -> None:
        """Close the environments."""


class Options(NamedTuple):
    """How environments are stepped.

    Attributes:
        wait_reset: an environment whose episode ended waits for the next fragment, whose first step resets it.
        decorrelate: at the start each environment takes up to so many random steps.
    """

    wait_reset: bool = False
    decorrelate: int = 0


def make_stepper(host: HostEnv, rows: Rows, columns: range, options: Options, mark: np.ndarray) -> Stepper:
    """Step these environments of every seed in this process."""
    if host.make is not None:
        return Envs(host.make, rows, columns, options, mark)
    assert host.make_vec is not None
    return Vector(host.make_vec(rows.plan.n_seeds * len(columns), 1), rows, columns, options, mark)


def random_steps(seed: int, options: Options) -> int:
    """How many random steps an environment begins with."""
    return int(np.random.default_rng(seed).integers(options.decorrelate + 1))


def place(rows: Rows, columns: range, j: int) -> tuple[int, int]:
    """The seed and the column of the stepper's environment `j`."""
    return j // len(columns), columns[j % len(columns)]


def name(rows: Rows, columns: range, j: int) -> str:
    """What a user calls that environment."""
    seed, column = place(rows, columns, j)
    return f"environment {column}" + (f" of seed {seed}" if rows.plan.n_seeds > 1 else "")


class Envs:
    """One `gym.Env` after the other.

    Args:
        mark: `[1]` int64, where it notes the number of the environment call under way.
    """

    def __init__(self, make: Callable[[], gym.Env], rows: Rows, columns: range, options: Options, mark: np.ndarray) -> None:
        self._rows, self._columns, self._options = rows, columns, options
        self._mark = memoryview(mark)  # type: ignore[arg-type]
        self._places = [place(rows, columns, j) for j in range(rows.plan.n_seeds * len(columns))]
        self._envs: list[gym.Env] = []
        try:
            for _ in self._places:
                self._envs.append(make())
        except BaseException:
            self.close()
            raise
        space = self._envs[0].observation_space
        self._obs = [
            (path, part.shape or (), part.dtype, out)
            for (path, part), out in zip(spaces.parts(space), rows.numpy["obs"], strict=True)
        ]
        self._nested = bool(self._obs[0][0])
        action_space = self._envs[0].action_space
        self._compose = spaces.composer(action_space) if spaces.parts(action_space)[0][0] else None
        self._resets = [False] * len(self._envs)
        self._calls = 0

    def reset(self) -> None:
        n_steps = self._rows.plan.n_steps
        for j, ((s, b), env) in enumerate(zip(self._places, self._envs, strict=True)):
            seed = int(self._rows.numpy["seeds"][0][0, s, b])
            obs, over = self._call(j, "reset", partial(env.reset, seed=seed))[0], False
            actions = copy.deepcopy(env.action_space)
            actions.seed(seed)
            for _ in range(random_steps(seed, self._options)):
                action = actions.sample()
                if over:
                    obs, over = self._call(j, "reset", env.reset)[0], False
                    continue
                obs, _, terminated, truncated, info = self._call(j, "step", partial(env.step, action))
                over = info.get(GAME_OVER, terminated or truncated)
            self._see(n_steps, j, obs)
            self._resets[j] = over

    def _actions(self, t: int) -> Any:
        """What each environment is sent; a copy, which it may keep."""
        start, stop = self._columns.start, self._columns.stop
        leaves = [x[t, :, start:stop].copy().reshape(len(self._envs), *x.shape[3:]) for x in self._rows.numpy["sent"]]
        return leaves[0] if self._compose is None else [self._compose(list(one)) for one in zip(*leaves, strict=True)]

    def step(self, t: int) -> None:
        rows, resets, mark, see = self._rows.numpy, self._resets, self._mark, self._see
        rewards: list[Any] = []
        call = self._calls
        for j, (env, action) in enumerate(zip(self._envs, self._actions(t), strict=True)):
            if resets[j]:
                rewards.append(0.0)
                self._open(t, j)
                continue
            mark[0] = call + j
            try:
                obs, reward, terminated, truncated, info = env.step(action)
            except Exception as error:
                raise self._failed(j, "step", error) from error
            see(t + 1, j, obs)
            rewards.append(reward)
            if info:
                raw = info.get(RAW_REWARD)
                if raw is not None:
                    rows["raw_reward"][0][(t, *self._places[j])] = raw
            if terminated or truncated:
                self._end(t, j, terminated, truncated, info)
        self._calls += len(self._envs)
        start, stop = self._columns.start, self._columns.stop
        try:
            rows["reward"][0][t + 1, :, start:stop].flat[:] = rewards
        except (ValueError, TypeError):
            j = next(j for j, r in enumerate(rewards) if np.ndim(r) or not np.isreal(r))
            raise EnvError(f"{self._name(j)}: step returned the reward {rewards[j]!r}, which is not a number") from None

    def _open(self, t: int, j: int) -> None:
        """The step after an episode's end: reset, or wait."""
        rows, (s, b) = self._rows.numpy, self._places[j]
        rows["valid"][0][t, s, b] = False
        if self._options.wait_reset and t > 0:
            for out in rows["obs"]:
                out[t + 1, s, b] = out[t, s, b]
            return
        self._see(t + 1, j, self._call(j, "reset", self._envs[j].reset)[0])
        rows["first"][0][t + 1, s, b] = rows["opens"][0][t, s, b] = True
        self._resets[j] = False

    def _end(self, t: int, j: int, terminated: bool, truncated: bool, info: dict) -> None:
        """An episode's end, of the game too unless the environment says otherwise."""
        rows, at = self._rows.numpy, (t, *self._places[j])
        rows["terminated"][0][at], rows["truncated"][0][at] = terminated, truncated
        over = bool(info.get(GAME_OVER, True))
        rows["over"][0][at] = self._resets[j] = over
        if not over:
            rows["first"][0][(t + 1, *self._places[j])] = True
        else:
            for key, out in zip(self._rows.plan.infos, rows["infos"], strict=True):
                out[at] = info_value(info, key, self._name(j))

    def _see(self, t: int, j: int, obs: Any) -> None:
        s, b = self._places[j]
        for path, shape, dtype, out in self._obs:
            x = spaces.leaf(obs, path) if self._nested else obs
            if x.__class__ is not np.ndarray or x.dtype is not dtype or x.shape != shape:
                self._check_kind(j, path, x, shape, dtype)
            out[t, s, b] = x

    def _check_kind(self, j: int, path: tuple, x: Any, shape: tuple, dtype: Any) -> None:
        x, field = np.asarray(x), "".join(f"[{key!r}]" for key in path)
        if x.shape != shape:
            raise EnvError(f"{self._name(j)}: observation{field} has shape {x.shape}, but its space has {shape}")
        if not np.can_cast(x.dtype, dtype, "same_kind"):
            raise EnvError(f"{self._name(j)}: observation{field} has dtype {x.dtype}, but its space has {dtype}")

    def _call(self, j: int, what: str, f: Callable[[], Any]) -> Any:
        self._mark[0] = self._calls + j
        self._calls += len(self._envs)
        try:
            return f()
        except Exception as error:
            raise self._failed(j, what, error) from error

    def _failed(self, j: int, what: str, error: Exception) -> EnvError:
        return EnvError(f"{self._name(j)}: {what} raised {type(error).__name__}: {error}")

    def _name(self, j: int) -> str:
        return name(self._rows, self._columns, int(j))

    def close(self) -> None:
        for env in self._envs:
            env.close()


class Vector:
    """A `VectorEnv` with NEXT_STEP autoreset.

    Args:
        mark: `[1]` int64, where it notes the number of the call under way, as a negative number.
    """

    def __init__(self, vec: VectorEnv, rows: Rows, columns: range, options: Options, mark: np.ndarray) -> None:
        self._vec, self._rows, self._columns, self._options, self._mark = vec, rows, columns, options, mark
        mode = vec.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode != AutoresetMode.NEXT_STEP:
            raise ValueError(f"env: a VectorEnv with autoreset_mode {mode.value} cannot be used, only NextStep")
        if options.wait_reset:
            raise ValueError("reset = 'wait' needs environments that are stepped one by one, not a VectorEnv")
        n = rows.plan.n_seeds * len(columns)
        if vec.num_envs != n:
            raise ValueError(f"env: the VectorEnv has {vec.num_envs} environments, but n_envs asks for {n}")
        self._paths = [path for path, _ in spaces.parts(vec.single_observation_space)]
        self._action = spaces.composer(vec.single_action_space)
        self._seen = [x[:, :, columns.start : columns.stop] for x in rows.numpy["obs"]]
        self._sent = [x[:, :, columns.start : columns.stop] for x in rows.numpy["sent"]]
        self._over = np.zeros(n, bool)

    def reset(self) -> None:
        start, stop = self._columns.start, self._columns.stop
        seeds = [int(x) for x in self._rows.numpy["seeds"][0][0, :, start:stop].flatten()]
        try:
            obs, _ = self._vec.reset(seed=seeds)  # type: ignore[arg-type]
        except gym.error.Error:
            obs, _ = self._vec.reset(seed=seeds[0])  # it takes one seed for all
        self._over[:] = False
        counts = np.array([random_steps(seed, self._options) for seed in seeds])
        if counts.any():
            obs = self._decorrelate(obs, seeds, counts)
        self._see(self._rows.plan.n_steps, obs)

    def _decorrelate(self, obs: Any, seeds: list[int], counts: np.ndarray) -> Any:
        """An environment is reset with its seed again when there are as many random steps left as it is to take."""
        space = self._vec.single_action_space
        samplers = [copy.deepcopy(space) for _ in seeds]
        for sampler, seed in zip(samplers, seeds, strict=True):
            sampler.seed(seed)
        for left in range(counts.max(), -1, -1):
            begins = counts == left
            if begins.any():
                obs, _ = self._vec.reset(seed=seeds, options={"reset_mask": begins})  # type: ignore[arg-type]
                self._over &= ~begins
            if left:
                sampled = [
                    sampler.sample() if count >= left else space.sample() for sampler, count in zip(samplers, counts, strict=True)
                ]
                actions: Any = concatenate(space, sampled, create_empty_array(space, len(seeds)))  # type: ignore[arg-type]
                obs, _, terminated, truncated, info = self._vec.step(actions)
                self._over = info.get(GAME_OVER, terminated | truncated)
        return obs

    def step(self, t: int) -> None:
        actions = [x[t].reshape(self._vec.num_envs, *x.shape[3:]) for x in self._sent]
        self._mark[0] -= 1
        try:
            obs, reward, terminated, truncated, info = self._vec.step(self._action(actions))
        except Exception as error:
            who = f"environments {self._columns.start} to {self._columns.stop - 1}"
            raise EnvError(f"{who}: step raised {type(error).__name__}: {error}") from error
        self._see(t + 1, obs)
        resets, ended = self._over, terminated | truncated
        self._over = info.get(GAME_OVER, ended)
        self._put("reward", t + 1, reward)
        if RAW_REWARD in info:
            self._put("raw_reward", t, info[RAW_REWARD])
        if resets.any() or ended.any():
            for key, x in (
                ("valid", ~resets),
                ("opens", resets),
                ("terminated", terminated),
                ("truncated", truncated),
                ("over", self._over),
            ):
                self._put(key, t, x)
            self._put("first", t + 1, resets | (ended & ~self._over))
            for j in np.flatnonzero(self._over):
                for key, out in zip(self._rows.plan.infos, self._rows.numpy["infos"], strict=True):
                    value = info_value(info, key, name(self._rows, self._columns, int(j)))
                    out[(t, *place(self._rows, self._columns, int(j)))] = value[j]

    def _put(self, key: str, t: int, x: np.ndarray) -> None:
        self._rows.numpy[key][0][t][:, self._columns.start : self._columns.stop] = x.reshape(-1, len(self._columns))

    def _see(self, t: int, obs: Any) -> None:
        for path, out in zip(self._paths, self._seen, strict=True):
            x = spaces.leaf(obs, path)
            x = x.reshape(-1, len(self._columns), *x.shape[1:])
            if x.shape != out.shape[1:]:
                raise EnvError(f"environments: observations have shape {x.shape[2:]}, but their space has {out.shape[3:]}")
            out[t] = x

    def close(self) -> None:
        self._vec.close()


def check_numbers(rows: Rows) -> None:
    """No observation and no reward of the fragment is NaN.

    Raises:
        EnvError: naming the environment.
    """
    n_envs, floats = rows.plan.n_envs, [x for x in rows.numpy["obs"] if x.dtype.kind == "f"]
    for what, x in [*(("observation", x) for x in floats), ("reward", rows.numpy["reward"][0])]:
        seen = x[:, :, :n_envs]
        if np.isnan(seen.sum()) and np.isnan(seen).any():
            t, s, b = np.argwhere(np.isnan(seen))[0][:3]
            who = name(rows, range(n_envs), int(s * n_envs + b))
            raise EnvError(f"{who}: {what} is NaN after step {t} of {rows.plan.n_steps} of the batch")


def info_value(info: dict, key: str, who: str) -> Any:
    """What an environment's info says at the end of an episode.

    Raises:
        EnvError: it does not say it.
    """
    if key not in info:
        raise EnvError(f"{who}: its info has no {key!r} at the end of an episode; it has {', '.join(map(str, info)) or 'nothing'}")
    return info[key]
