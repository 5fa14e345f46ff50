"""Stepping some columns of a fragment's environments: one `gym.Env` each, or a `gymnasium.vector.VectorEnv` for all of them."""

import copy
import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from purerl import spaces
from purerl.envs import GAME_OVER, RAISED, RAW_REWARD, HostEnv, route_mujoco_warnings
from purerl.envs.generators import Streams
from purerl.samplers import saving
from purerl.samplers.fragments import RolloutBuffer

FLAGS = (bool, np.bool_)
LARGEST = float(np.finfo(np.float32).max)
OLD_API = "; for environments of the old Gym API there are the wrappers of the package shimmy"


class EnvError(RuntimeError):
    """An environment raised, hung, or returned what its spaces do not allow; the message names it."""


class Environments(Protocol):
    """Those of a fragment, whoever steps them."""

    def reset(self) -> None:
        """Open every environment's first episode, with its seed; what it shows becomes what the last fragment left."""

    def save(self) -> "Saved":
        """Their state between two fragments.

        Raises:
            EnvError: one of them cannot be saved.
        """

    def restore(self, saved: "Saved") -> None:
        """Go on with what `save` gave, in the place of the environments that there are.

        Raises:
            EnvError: one of them cannot be restored.
        """


Saved = Mapping[tuple[int, int], Any]  # of the environments by seed and column, or of a `VectorEnv` by those of its first one


class Stepper(Environments, Protocol):
    """Environments that read their actions from a rollout buffer and write what happens into it."""

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


def make_stepper(host: HostEnv, buffer: RolloutBuffer, columns: range, options: Options, heartbeat: np.ndarray) -> Stepper:
    """Step these environments of every seed in this process."""
    if host.make is not None:
        return Envs(host.make, buffer, columns, options, heartbeat)
    assert host.make_vec is not None
    return Vector(host.make_vec(buffer.plan.n_seeds * len(columns), 1), buffer, columns, options, heartbeat)


def random_steps(seed: int, options: Options) -> int:
    """How many random steps an environment begins with."""
    return int(np.random.default_rng(seed).integers(options.decorrelate + 1))


def place(buffer: RolloutBuffer, columns: range, j: int) -> tuple[int, int]:
    """The seed and the column of the stepper's environment `j`."""
    return j // len(columns), columns[j % len(columns)]


def seeds_of(buffer: RolloutBuffer, columns: range) -> list[int]:
    """The seeds in the buffer of the stepper's environments."""
    return [int(x) for x in buffer.numpy["seeds"][0][0, :, columns.start : columns.stop].flatten()]


def name(buffer: RolloutBuffer, columns: range, j: int) -> str:
    """What a user calls that environment."""
    seed, column = place(buffer, columns, j)
    return f"environment {column}" + (f" of seed {seed}" if buffer.plan.n_seeds > 1 else "")


class Envs:
    """One `gym.Env` after the other.

    Args:
        heartbeat: `[1]` int64, where it notes the number of the environment call under way.
    """

    def __init__(
        self, make: Callable[[], gym.Env], buffer: RolloutBuffer, columns: range, options: Options, heartbeat: np.ndarray
    ) -> None:
        self._buffer, self._columns, self._options = buffer, columns, options
        self._heartbeat = memoryview(heartbeat)  # type: ignore[arg-type]
        self._places = [place(buffer, columns, j) for j in range(buffer.plan.n_seeds * len(columns))]
        self._envs: list[gym.Env] = []
        self._streams = Streams(seeds_of(buffer, columns))
        self._calls = 0
        try:
            for j in range(len(self._places)):
                self._envs.append(self._call(j, "its making", make))
        except BaseException:
            self.close()
            raise
        route_mujoco_warnings()
        space = self._envs[0].observation_space
        self._obs = [
            (path, part.shape or (), part.dtype, out)
            for (path, part), out in zip(spaces.parts(space), buffer.numpy["obs"], strict=True)
        ]
        self._nested = bool(self._obs[0][0])
        action_space = self._envs[0].action_space
        self._compose = spaces.composer(action_space) if spaces.parts(action_space)[0][0] else None
        self._resets = [False] * len(self._envs)

    def reset(self) -> None:
        seeds = seeds_of(self._buffer, self._columns)
        self._streams.reseed(seeds)
        for j, (seed, env) in enumerate(zip(seeds, self._envs, strict=True)):
            obs, over = self._reset(j, seed=seed), False
            actions = copy.deepcopy(env.action_space)
            actions.seed(seed)
            for _ in range(random_steps(seed, self._options)):
                action = actions.sample()
                if over:
                    obs, over = self._reset(j), False
                    continue
                obs, _, *ends, _ = self._five(j, self._call(j, "step", partial(env.step, action)))
                over = any(self._flag(j, *end) for end in zip(("terminated", "truncated"), ends, strict=True))
            self._see(self._buffer.plan.n_steps, j, obs)
            self._resets[j] = over

    def save(self) -> Saved:
        streams = self._streams.save()
        return {
            place: (self._call(j, "its saving", partial(saving.dumps, env)), self._resets[j], streams[j])
            for j, (place, env) in enumerate(zip(self._places, self._envs, strict=True))
        }

    def restore(self, saved: Saved) -> None:
        self.close()
        mine = [saved[place] for place in self._places]
        self._envs = [self._call(j, "its restoring", partial(saving.loads, data)) for j, (data, _, _) in enumerate(mine)]
        self._resets = [resets for _, resets, _ in mine]
        self._streams.reseed(seeds_of(self._buffer, self._columns))
        self._streams.restore([stream for _, _, stream in mine])

    def _reset(self, j: int, seed: int | None = None) -> Any:
        """The observation that opens an episode."""
        reset = self._envs[j].reset
        result = self._call(j, "reset", reset if seed is None else partial(reset, seed=seed))
        if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], dict | None)):
            wanted = "(observation, info)"
            raise EnvError(f"{self._name(j)}: reset returned {_kind(result)}, but Gymnasium's returns {wanted}{OLD_API}")
        return result[0]

    def _actions(self, t: int) -> Any:
        """What each environment is sent; a copy, which it may keep."""
        start, stop = self._columns.start, self._columns.stop
        leaves = [x[t, :, start:stop].copy().reshape(len(self._envs), *x.shape[3:]) for x in self._buffer.numpy["sent"]]
        return leaves[0] if self._compose is None else [self._compose(list(one)) for one in zip(*leaves, strict=True)]

    def step(self, t: int) -> None:
        resets, heartbeat, see, call = self._resets, self._heartbeat, self._see, self._calls
        streams = None if self._streams.free else self._streams
        rewards: list[float] = []
        for j, (env, action) in enumerate(zip(self._envs, self._actions(t), strict=True)):
            if resets[j]:
                rewards.append(0.0)
                self._open(t, j)
                continue
            heartbeat[0] = call + j
            try:
                result = env.step(action) if streams is None else streams.call(j, env.step, action)
            except RAISED as error:
                raise self._failed(j, "step", error) from error
            try:
                obs, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                self._five(j, result)
                raise
            see(t + 1, j, obs)
            if not (isinstance(reward, float) and -LARGEST <= reward <= LARGEST):
                reward = self._reward(t, j, reward)
            rewards.append(reward)
            if terminated is not False or truncated is not False:
                if not (isinstance(terminated, FLAGS) and isinstance(truncated, FLAGS)):
                    terminated, truncated = self._flag(j, "terminated", terminated), self._flag(j, "truncated", truncated)
                if terminated or truncated:
                    self._end(t, j, terminated, truncated, info)
        self._calls += len(self._envs)
        self._buffer.numpy["reward"][0][t + 1, :, self._columns.start : self._columns.stop].flat[:] = rewards
        if streams is not None:
            streams.stepped()

    def _five(self, j: int, result: Any) -> tuple:
        """What `step` returned, if it is what Gymnasium's returns."""
        if isinstance(result, tuple | list) and len(result) == 5:
            return tuple(result)
        wanted = "(observation, reward, terminated, truncated, info)"
        raise EnvError(f"{self._name(j)}: step returned {_kind(result)}, but Gymnasium's returns {wanted}{OLD_API}")

    def _reward(self, t: int, j: int, reward: Any) -> float:
        try:
            x = number(reward)
        except TypeError as error:
            raise EnvError(f"{self._name(j)}: step returned the reward {reward!r}, which is not a number{error}") from None
        if not -LARGEST <= x <= LARGEST:
            raise not_finite(self._buffer, self._name(j), "reward", x, t + 1)
        return x

    def _flag(self, j: int, what: str, x: Any) -> bool:
        if isinstance(x, FLAGS) or (np.ndim(x) == 0 and np.asarray(x).dtype.kind in "biu" and x in (0, 1)):
            return bool(x)
        raise EnvError(f"{self._name(j)}: step returned {what} = {x!r}, which is not True or False")

    def _open(self, t: int, j: int) -> None:
        """The step after an episode's end: reset, or wait."""
        buffer, (s, b) = self._buffer.numpy, self._places[j]
        buffer["valid"][0][t, s, b] = False
        if self._options.wait_reset and t > 0:
            for out in buffer["obs"]:
                out[t + 1, s, b] = out[t, s, b]
            return
        self._see(t + 1, j, self._reset(j))
        buffer["first"][0][t + 1, s, b] = buffer["game_start"][0][t + 1, s, b] = True
        self._resets[j] = False

    def _end(self, t: int, j: int, terminated: bool | np.bool_, truncated: bool | np.bool_, info: Any) -> None:
        """An episode's end."""
        buffer, at = self._buffer.numpy, (t, *self._places[j])
        buffer["terminated"][0][at], buffer["truncated"][0][at] = terminated, truncated
        buffer["game_end"][0][at] = self._resets[j] = True
        for key, out in zip(self._buffer.plan.infos, buffer["infos"], strict=True):
            out[at] = info_value(info, key, self._name(j))

    def _see(self, t: int, j: int, obs: Any) -> None:
        s, b = self._places[j]
        for path, shape, dtype, out in self._obs:
            x = part_of(obs, path, self._name, j) if self._nested else obs
            if x.__class__ is not np.ndarray or x.dtype is not dtype or x.shape != shape:
                self._check_kind(j, path, x, shape, dtype)
            out[t, s, b] = x

    def _check_kind(self, j: int, path: tuple, x: Any, shape: tuple, dtype: Any) -> None:
        field = spaces.field("observation", path)
        try:
            x = np.asarray(x)
        except (ValueError, TypeError, RuntimeError):
            raise EnvError(f"{self._name(j)}: {field} is {x!r}, which is no array") from None
        if x.shape != shape:
            raise EnvError(f"{self._name(j)}: {field} has shape {x.shape}, but its space has {shape}")
        if not np.can_cast(x.dtype, dtype, "same_kind"):
            raise EnvError(f"{self._name(j)}: {field} has dtype {x.dtype}, but its space has {dtype}")
        if not fits(x, dtype):
            raise EnvError(f"{self._name(j)}: {field} is {x}, which {dtype} cannot hold")

    def _call(self, j: int, what: str, f: Callable[[], Any]) -> Any:
        self._heartbeat[0] = self._calls + j
        self._calls += len(self._places)
        try:
            return self._streams.call(j, f)
        except RAISED as error:
            raise self._failed(j, what, error) from error

    def _failed(self, j: int, what: str, error: BaseException) -> EnvError:
        old = OLD_API if isinstance(error, TypeError) and "keyword argument 'seed'" in str(error) else ""
        return EnvError(f"{self._name(j)}: {what} raised {type(error).__name__}: {error}{old}")

    def _name(self, j: int) -> str:
        return name(self._buffer, self._columns, int(j))

    def close(self) -> None:
        for j, env in enumerate(self._envs):
            try:
                env.close()
            except RAISED as error:
                warnings.warn(f"{self._name(j)}: close raised {type(error).__name__}: {error}", stacklevel=2)


class Vector:
    """A `VectorEnv` with NEXT_STEP autoreset.

    Args:
        heartbeat: `[1]` int64, where it notes the number of the call under way, as a negative number.
    """

    def __init__(self, vec: VectorEnv, buffer: RolloutBuffer, columns: range, options: Options, heartbeat: np.ndarray) -> None:
        self._vec, self._buffer, self._columns, self._options, self._heartbeat = vec, buffer, columns, options, heartbeat
        mode = vec.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode != AutoresetMode.NEXT_STEP:
            raise ValueError(f"env: a VectorEnv with autoreset_mode {mode.value} cannot be used, only NextStep")
        if options.wait_reset:
            raise ValueError("reset = 'wait' needs environments that are stepped one by one, not a VectorEnv")
        n = buffer.plan.n_seeds * len(columns)
        if vec.num_envs != n:
            raise ValueError(f"env: the VectorEnv has {vec.num_envs} environments, but n_envs asks for {n}")
        self._paths = [path for path, _ in spaces.parts(vec.single_observation_space)]
        self._action = spaces.composer(vec.single_action_space)
        self._seen = [x[:, :, columns.start : columns.stop] for x in buffer.numpy["obs"]]
        self._sent = [x[:, :, columns.start : columns.stop] for x in buffer.numpy["sent"]]
        self._over = np.zeros(n, bool)
        self._streams = Streams(seeds_of(buffer, columns)[:1])

    def reset(self) -> None:
        seeds = seeds_of(self._buffer, self._columns)
        self._streams.reseed(seeds[:1])
        try:
            obs, _ = self._call("reset", partial(self._vec.reset, seed=seeds))  # type: ignore[arg-type]
        except EnvError as error:
            if not isinstance(error.__cause__, gym.error.Error):
                raise
            obs, _ = self._call("reset", partial(self._vec.reset, seed=seeds[0]))  # it takes one seed for all
        self._over[:] = False
        counts = np.array([random_steps(seed, self._options) for seed in seeds])
        if counts.any():
            obs = self._decorrelate(obs, seeds, counts)
        self._see(self._buffer.plan.n_steps, obs)

    def save(self) -> Saved:
        data = self._call("its saving", partial(saving.dumps, self._vec))
        return {place(self._buffer, self._columns, 0): (data, self._over, *self._streams.save())}

    def restore(self, saved: Saved) -> None:
        self.close()
        data, self._over, stream = saved[place(self._buffer, self._columns, 0)]
        self._vec = self._call("its restoring", partial(saving.loads, data))
        self._streams.reseed(seeds_of(self._buffer, self._columns)[:1])
        self._streams.restore([stream])

    def _decorrelate(self, obs: Any, seeds: list[int], counts: np.ndarray) -> Any:
        """An environment is reset with its seed again when there are as many random steps left as it is to take."""
        space = self._vec.single_action_space
        samplers = [copy.deepcopy(space) for _ in seeds]
        for sampler, seed in zip(samplers, seeds, strict=True):
            sampler.seed(seed)
        for left in range(counts.max(), -1, -1):
            begins = counts == left
            if begins.any():
                obs, _ = self._call("reset", partial(self._vec.reset, seed=seeds, options={"reset_mask": begins}))  # type: ignore[arg-type]
                self._over &= ~begins
            if left:
                sampled = [
                    sampler.sample() if count >= left else space.sample() for sampler, count in zip(samplers, counts, strict=True)
                ]
                actions: Any = concatenate(space, sampled, create_empty_array(space, len(seeds)))  # type: ignore[arg-type]
                obs, _, terminated, truncated, info = self._call("step", partial(self._vec.step, actions))
                self._over = info.get(GAME_OVER, terminated | truncated)
        return obs

    def step(self, t: int) -> None:
        actions = [x[t].copy().reshape(self._vec.num_envs, *x.shape[3:]) for x in self._sent]  # copies, which it may keep
        self._heartbeat[0] -= 1
        obs, reward, terminated, truncated, info = self._call("step", partial(self._vec.step, self._action(actions)))
        self._streams.stepped()
        self._see(t + 1, obs)
        reward = self._each("reward", reward, "biuf")
        terminated, truncated = self._each("terminated", terminated, "b"), self._each("truncated", truncated, "b")
        resets, ended = self._over, terminated | truncated
        self._over = info.get(GAME_OVER, ended)
        self._put("reward", t + 1, reward)
        if RAW_REWARD in info:
            self._put("raw_reward", t, info[RAW_REWARD])
        if resets.any() or ended.any():
            for key, x in (
                ("valid", ~resets),
                ("terminated", terminated),
                ("truncated", truncated),
                ("game_end", self._over),
            ):
                self._put(key, t, x)
            self._put("game_start", t + 1, resets)
            self._put("first", t + 1, resets | (ended & ~self._over))
            for j in np.flatnonzero(self._over):
                for key, out in zip(self._buffer.plan.infos, self._buffer.numpy["infos"], strict=True):
                    value = info_value(info_of(info, int(j)), key, name(self._buffer, self._columns, int(j)))
                    out[(t, *place(self._buffer, self._columns, int(j)))] = value

    def _call(self, what: str, f: Callable[[], Any]) -> Any:
        try:
            return self._streams.call(0, f)
        except RAISED as error:
            raise EnvError(f"{self._name()}: {what} raised {type(error).__name__}: {error}") from error

    def _each(self, what: str, x: Any, kinds: str) -> np.ndarray:
        """One number of each environment."""
        x = np.asarray(x)
        if x.shape != (self._vec.num_envs,) or x.dtype.kind not in kinds:
            found = f"shape {x.shape} and dtype {x.dtype}"
            raise EnvError(f"{self._name()}: step returned the {what} with {found}, which is not one number each")
        return x

    def _name(self, _: int = 0) -> str:
        return f"environments {self._columns.start} to {self._columns.stop - 1}"

    def _put(self, key: str, t: int, x: np.ndarray) -> None:
        self._buffer.numpy[key][0][t][:, self._columns.start : self._columns.stop] = x.reshape(-1, len(self._columns))

    def _see(self, t: int, obs: Any) -> None:
        for path, out in zip(self._paths, self._seen, strict=True):
            x, field = np.asarray(part_of(obs, path, self._name, 0)), spaces.field("observations", path)
            if x.shape != (self._vec.num_envs, *out.shape[3:]):
                wanted = (self._vec.num_envs, *out.shape[3:])
                raise EnvError(f"{self._name()}: {field} have shape {x.shape}, but their space has {wanted}")
            if x.dtype != out.dtype and not np.can_cast(x.dtype, out.dtype, "same_kind"):
                raise EnvError(f"{self._name()}: {field} have dtype {x.dtype}, but their space has {out.dtype}")
            if not fits(x, out.dtype):
                raise EnvError(f"{self._name()}: {field} are {x}, which {out.dtype} cannot hold")
            out[t] = x.reshape(out.shape[1:])

    def close(self) -> None:
        try:
            self._vec.close()
        except RAISED as error:
            warnings.warn(f"{self._name()}: close raised {type(error).__name__}: {error}", stacklevel=2)


def check_numbers(buffer: RolloutBuffer, space: gym.Space) -> None:
    """Every observation and reward of the fragment is finite, and discrete observations lie in their space.

    Raises:
        EnvError: naming the environment, the field, its value and the step.
    """
    (rewards,) = buffer.numpy["reward"]
    _check_finite(buffer, "reward", rewards)
    for (path, part), x in zip(spaces.parts(space), buffer.numpy["obs"], strict=True):
        field = spaces.field("observation", path)
        if x.dtype.kind == "f":
            _check_finite(buffer, field, x)
        bounds = spaces.bounds(part)
        if bounds is not None:
            _check_inside(buffer, field, x, *bounds, part)


def _check_finite(buffer: RolloutBuffer, what: str, x: np.ndarray) -> None:
    seen = x[:, :, : buffer.plan.n_envs]
    with np.errstate(all="ignore"):
        total = seen.sum(dtype=max(x.dtype, np.dtype(np.float32)))  # cheaper than a look at each
    if not np.isfinite(total) and not np.isfinite(seen).all():
        at = np.argwhere(~np.isfinite(seen))[0]
        raise not_finite(buffer, _who(buffer, at), what, seen[tuple(at)], at[0])


def _check_inside(buffer: RolloutBuffer, what: str, x: np.ndarray, low: Any, high: Any, space: gym.Space) -> None:
    seen = x[:, :, : buffer.plan.n_envs]
    outside = (seen < low) | (seen > high)
    if outside.any():
        at = np.argwhere(outside)[0]
        raise EnvError(f"{_who(buffer, at)}: {what} is {seen[tuple(at[:3])]} {_when(buffer, at[0])}, outside its space {space}")


def _who(buffer: RolloutBuffer, at: np.ndarray) -> str:
    """The environment whose number stands at `[t, s, b, ...]` of the buffer."""
    return name(buffer, range(buffer.plan.n_envs), int(at[1] * buffer.plan.n_envs + at[2]))


def _when(buffer: RolloutBuffer, t: int) -> str:
    return f"after step {t} of {buffer.plan.n_steps} of the batch"


def fits(x: np.ndarray, dtype: Any) -> bool:
    """Whether whole numbers stay what they are in a dtype; floats may lose digits, and what becomes infinite is found later."""
    return x.dtype == dtype or x.dtype.kind not in "iu" or np.can_cast(x.dtype, dtype) or bool((x.astype(dtype) == x).all())


def not_finite(buffer: RolloutBuffer, who: str, what: str, value: float, t: int) -> EnvError:
    """The error of a number that is NaN, infinite, or beyond float32."""
    return EnvError(f"{who}: {what} is {'NaN' if math.isnan(value) else value} {_when(buffer, t)}, which is not finite in float32")


def number(x: Any) -> float:
    """One real number as a float.

    Raises:
        TypeError: it is something else; the text adds what would help.
    """
    if getattr(x, "shape", None) == ():  # of numpy or torch, with no axes
        x = x.item()
    if isinstance(x, numbers.Real):
        try:
            return float(x)
        except OverflowError:
            return math.inf  # of an integer of hundreds of digits
    shape = getattr(x, "shape", ())
    raise TypeError(f": it has shape {tuple(shape)}, return float(reward)" if math.prod(shape) == 1 and shape else "")


def part_of(obs: Any, path: tuple[str | int, ...], who: Callable[[int], str], j: int) -> Any:
    """The part of a nested observation that keys lead to.

    Raises:
        EnvError: it is not there.
    """
    try:
        return spaces.leaf(obs, path)
    except (KeyError, IndexError, TypeError, ValueError):
        found = f"it has {', '.join(map(repr, obs)) or 'nothing'}" if isinstance(obs, dict) else f"it is {_kind(obs)}"
        raise EnvError(f"{who(j)}: the observation lacks {spaces.field('', path)}; {found}") from None


def info_of(info: dict[str, Any], j: int) -> dict[str, Any]:
    """What a vector environment's info says of environment `j`; `_key`, where there is one, tells of whom `key` is said."""
    said = {key: x for key, x in info.items() if isinstance(x, np.ndarray) and not str(key).startswith("_")}
    return {key: x[j] for key, x in said.items() if f"_{key}" not in info or info[f"_{key}"][j]}


def info_value(info: Any, key: str, who: str) -> float:
    """What an environment's info says at the end of an episode.

    Raises:
        EnvError: it does not say it, or not as one number.
    """
    if not isinstance(info, dict):
        raise EnvError(f"{who}: its info at the end of an episode is {info!r}, not a dict with {key!r}")
    if key not in info:
        raise EnvError(f"{who}: its info has no {key!r} at the end of an episode; it has {', '.join(map(str, info)) or 'nothing'}")
    try:
        return number(info[key])
    except TypeError:
        raise EnvError(f"{who}: its info {key!r} is {info[key]!r} at the end of an episode, not one number") from None


def _kind(x: Any) -> str:
    """What a result is, in short."""
    return f"{len(x)} values" if isinstance(x, tuple) else f"{type(x).__name__}"
