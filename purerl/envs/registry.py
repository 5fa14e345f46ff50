"""Environments by name: the pure ports, and everything that Gymnasium can make."""

import contextlib
import difflib
import importlib
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym

from purerl.base import Env, EnvSpec
from purerl.envs import acrobot, cartpole, catch, deep_sea, minatar, mountain_car, pendulum
from purerl.envs.atari import describe
from purerl.envs.generators import undisturbed
from purerl.envs.wrappers import accept_keys, check, time_limit
from purerl.extras import how_to_install

RAISED = (Exception, SystemExit)  # what a user's environment may raise, and is told of as its error
PURE = {env.spec.id: env for env in (acrobot.ENV, cartpole.ENV, mountain_car.ENV, mountain_car.CONTINUOUS_ENV, pendulum.ENV)}
MAKERS: dict[str, Callable[..., Env]] = {**minatar.MAKERS, **catch.MAKERS, **deep_sea.MAKERS}  # pure ones that take arguments


class HostEnv(NamedTuple):
    """An environment of the outside world; it has one of the makers, or both.

    Attributes:
        spec: name and spaces.
        make: `make() -> gymnasium.Env`, to be stepped one by one.
        make_vec: `make_vec(n_envs, n_threads) -> gymnasium.vector.VectorEnv` with NEXT_STEP autoreset.
        evaluation: the same task as it is evaluated, if that differs from how it is trained on.
        make_drawn: `make` whose environments draw themselves (`render_mode="rgb_array"`).
    """

    spec: EnvSpec
    make: Callable[[], gym.Env] | None = None
    make_vec: Callable[[int, int], gym.vector.VectorEnv] | None = None
    evaluation: "HostEnv | None" = None
    make_drawn: Callable[[], gym.Env] | None = None


def pure(env: Env) -> Env:
    """An environment's core with the time limit of its spec, ready to use."""
    env = accept_keys(env)
    return env if env.spec.max_episode_steps is None else time_limit(env, env.spec.max_episode_steps)


def make(id: str, **kwargs: Any) -> Env | HostEnv:
    """The environment of a name.

    `CartPole-v1` and `MinAtar/Breakout-v1` are pure ports, `gym:CartPole-v1` is Gymnasium's own; `ALE/Pong-v5` goes to ALE's vector
    environment with the standard preprocessing; `my_module:make_mine` calls a function or class of one's own, which makes an `Env`
    or a `gymnasium.Env`; any other goes to Gymnasium (`my_package.my_module:MyEnv-v0` imports the module).

    Args:
        kwargs: as `host`; and for the makers of pure environments, such as `sticky_action_prob=0.0` for MinAtar's games.

    Raises:
        ValueError: no such environment (the nearest names are listed), or it cannot be made.
        ImportError: a package that the environment needs is not installed.
    """
    named = _with_version(id)
    if named in PURE and not kwargs:
        return pure(PURE[named])
    if named in MAKERS:
        return pure(_made(named, kwargs))
    maker = _maker(id)
    return host(id, **kwargs) if maker is None else _own(id, partial(maker, **kwargs))


def _maker(id: str) -> Callable[..., Any] | None:
    """What `my_module:make_mine` names; None if it names no such thing, and the module, if there is one, may have registered it."""
    module_name, _, name = id.partition(":")
    if module_name == "gym" or not name.isidentifier():
        return None
    with contextlib.suppress(*RAISED):  # Gymnasium then says why it cannot be imported
        found = getattr(importlib.import_module(module_name), name, None)
        return found if callable(found) else None
    return None


def _own(id: str, make: Callable[[], Any]) -> Env | HostEnv:
    """The environment that a function of one's own makes.

    Raises:
        ValueError: it makes none, or a pure one that is not as `check` has it.
    """
    try:
        with undisturbed():
            made = make()
        if isinstance(made, Env):
            check(made)
            return pure(made)
    except RAISED as error:
        raise ValueError(f"environment: {id!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, gym.Env):
        raise ValueError(f"environment: {id!r} returned {type(made).__name__}, neither an Env nor a gymnasium.Env")
    found = _describe(make)
    return found._replace(spec=found.spec._replace(id=id))


def host(env: "str | HostEnv | Callable[[], gym.Env]", **kwargs: Any) -> HostEnv:
    """An environment of the outside world from its name, or from a function that makes one.

    Args:
        kwargs: for the constructor of a named environment (`atari` says which ALE's takes).

    Raises:
        ValueError, ImportError: as `make`.
    """
    if isinstance(env, HostEnv):
        return env
    if not isinstance(env, str):
        return _describe(env)
    if env.startswith("ALE/"):
        return atari(env, **kwargs)
    _refuse_raw_atari(env)
    id = _with_version(env.removeprefix("gym:"))
    found = _known(id, kwargs)
    spec, limit = found.spec, found.spec.max_episode_steps if found.spec else None
    described = EnvSpec(id, found.observation_space, found.action_space, limit)
    with contextlib.suppress(*RAISED):
        found.close()
    assert spec is not None
    # Made of its spec: another process need not have registered it. Samplers check more than Gymnasium's checker, and faster.
    make = partial(_make, spec, disable_env_checker=True)
    make_vec = partial(_make_vec, spec) if spec.vector_entry_point is not None else None
    return HostEnv(described, make, make_vec, make_drawn=partial(make, render_mode="rgb_array"))


def atari(id: str, **kwargs: Any) -> HostEnv:
    """`ALE/<Game>-v5` with the standard preprocessing; lives are episodes and rewards are clipped, but not where it is evaluated.

    Args:
        kwargs: `AtariVector`'s, such as `sticky=0.25`.
    """
    spec, make_vec = describe(id, **kwargs)
    _, make_full = describe(id, **{**kwargs, "episodic_life": False, "clip_rewards": False})
    return HostEnv(spec, make_vec=make_vec, evaluation=HostEnv(spec, make_vec=make_full))


def vector_host(env: "str | HostEnv | gym.vector.VectorEnv | Callable[[int], gym.vector.VectorEnv]", **kwargs: Any) -> HostEnv:
    """An environment that is stepped as a `VectorEnv` of its own making: by name, ready made, or from a function of their number.

    Raises:
        ValueError: it has no vector implementation; and as `make`.
    """
    if isinstance(env, gym.vector.VectorEnv):
        return HostEnv(_vector_spec(env), make_vec=lambda n_envs, n_threads: env)
    if callable(env) and not isinstance(env, HostEnv):
        example = env(1)
        if not isinstance(example, gym.vector.VectorEnv):
            raise ValueError(f"env: {env!r} made {type(example).__name__} of one environment, not a gymnasium VectorEnv")
        example.close()
        return HostEnv(_vector_spec(example), make_vec=lambda n_envs, n_threads: env(n_envs))
    found = host(env, **kwargs)
    if found.make_vec is None:
        raise ValueError(f"environment: {found.spec.id!r} has no vector implementation; sampler = 'native' needs one")
    return found


class _Untold(gym.Wrapper):
    """An environment without its infos, which Gymnasium would merge, and which nobody reads."""

    def __init__(self, make: Callable[[], gym.Env]) -> None:
        super().__init__(make())

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        return self.env.reset(**kwargs)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, reward, terminated, truncated, {}


def to_vector(host: HostEnv, n_envs: int) -> gym.vector.VectorEnv:
    """So many of them as one `VectorEnv` in this process, which may give no infos."""
    if host.make is not None:
        return gym.vector.SyncVectorEnv([partial(_Untold, host.make)] * n_envs)
    assert host.make_vec is not None
    return host.make_vec(n_envs, 1)


def _make(env: str | gym.envs.registration.EnvSpec, **kwargs: Any) -> gym.Env:
    spec = gym.registry.get(env) if isinstance(env, str) else env
    if spec is not None and "mujoco" in str(spec.entry_point):
        with contextlib.suppress(ImportError):
            import mujoco  # noqa: F401
    route_mujoco_warnings()  # what it says while it loads a model too
    return gym.make(env, **kwargs)


def route_mujoco_warnings() -> None:
    """Let MuJoCo, if it is loaded, warn through Python's warnings instead of a file in the working folder."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    with contextlib.suppress(Warning):  # nothing may be raised through MuJoCo's C code
        warnings.warn(f"MuJoCo: {text}", DeprecationWarning if "deprecated" in text else RuntimeWarning, stacklevel=2)


def _make_vec(spec: gym.envs.registration.EnvSpec, n_envs: int, n_threads: int) -> gym.vector.VectorEnv:
    return gym.make_vec(spec, n_envs, "vector_entry_point")


def _describe(make: Any) -> HostEnv:
    name = getattr(make, "__name__", type(make).__name__)
    if isinstance(make, gym.Env):
        advice = f"each of n_envs needs one of its own: give what makes them, lambda: {name}(...), or an id"
        raise ValueError(f"env: {make} is an environment, but {advice}")
    if isinstance(make, gym.vector.VectorEnv):
        raise ValueError(f"env: {make} is a VectorEnv, which samplers.native takes")
    if isinstance(make, Env):
        raise ValueError(f"env: {make.spec.id} is pure: fuse it with an algorithm, or take gym:{make.spec.id}")
    if not callable(make):
        raise ValueError(f"env = {make!r} is not an id, a function that makes an environment, or a HostEnv")
    try:
        with undisturbed():
            env = make()
    except RAISED as error:
        advice = "; functools.partial gives it arguments" if isinstance(error, TypeError) else ""
        raise ValueError(f"env: {name} cannot make an environment: {type(error).__name__}: {error}{advice}") from error
    if not isinstance(env, gym.Env):
        raise ValueError(f"env: {name} made {type(env).__name__}, not a gymnasium.Env")
    for space in ("observation_space", "action_space"):
        if not isinstance(getattr(env, space, None), gym.Space):
            raise ValueError(f"env: {name} made an environment without {space}, a gymnasium.Space")
    limit = env.spec.max_episode_steps if env.spec else None
    spec = EnvSpec(env.spec.id if env.spec else name, env.observation_space, env.action_space, limit)
    draws = getattr(env, "render_mode", None) == "rgb_array"
    with contextlib.suppress(*RAISED):
        env.close()
    return HostEnv(spec, make, make_drawn=make if draws else None)


def _vector_spec(vec: gym.vector.VectorEnv) -> EnvSpec:
    name = vec.spec.id if vec.spec else type(vec).__name__
    return EnvSpec(name, vec.single_observation_space, vec.single_action_space)


def _made(id: str, kwargs: dict[str, Any]) -> Env:
    try:
        return MAKERS[id](**kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"environment: {id!r} cannot be made with the options {kwargs}: {error}") from error


def _known(id: str, kwargs: dict[str, Any]) -> gym.Env:
    try:
        with undisturbed():
            return _make(id, **kwargs)
    except (
        gym.error.NameNotFound,
        gym.error.NamespaceNotFound,
        gym.error.VersionNotFound,
        gym.error.DeprecatedEnv,
        gym.error.UnregisteredEnv,
    ):
        raise ValueError(f"environment: {id!r} is not known{_nearest(id)}") from None
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ImportError(f"environment: {id!r} needs a package that is not installed ({error}){_extra(id)}") from None
    except gym.error.Error as error:
        raise ValueError(f"environment: {id!r} is no id such as CartPole-v1 or my_module:MyEnv-v0 ({error})") from None
    except RAISED as error:
        what = f"cannot be made with the options {kwargs}" if kwargs else "cannot be made without options"
        advice = "; --env-option NAME=VALUE gives one" if isinstance(error, TypeError) else ""
        raise ValueError(f"environment: {id!r} {what}: {type(error).__name__}: {error}{advice}") from error


def _with_version(id: str) -> str:
    """`CartPole` is Gymnasium's newest, `CartPole-v1`, and `MinAtar/Breakout` the newest here."""
    newest = None
    here = [name for name in MAKERS if name.rpartition("-v")[0] == id]
    if here:
        return max(here)
    if re.fullmatch(r"(\w+/)?\w+", id):
        namespace, _, name = id.rpartition("/")
        newest = gym.envs.registration.find_highest_version(namespace or None, name)
    return id if newest is None else f"{id}-v{newest}"


def _refuse_raw_atari(id: str) -> None:
    """Raise a `ValueError` for an Atari game without its preprocessing."""
    game = re.fullmatch(r"(?:gym:)?(ale_py:)?(?:ALE/)?(\w+?)(NoFrameskip|Deterministic)?-v\d", id)
    if game is not None and (game[1] or game[3] or _is_raw_atari(id.removeprefix("gym:"))):
        advice = f"use ALE/{game[2]}-v5, the game with the standard preprocessing, or a function that makes it as you want it"
        raise ValueError(f"environment: {id!r} is a raw Atari game; {advice}")


def _is_raw_atari(id: str) -> bool:
    """Whether a registered id is ALE's own environment, with frames as the screen shows them."""
    return _comes_from(id, "ale_py")


def _comes_from(id: str, module: str) -> bool:
    """Whether a registered environment is made by something in a module."""
    make: Any = gym.registry[id].entry_point if id in gym.registry else ""
    return (make if isinstance(make, str) else str(getattr(make, "__module__", ""))).startswith(module)


def _nearest(id: str) -> str:
    with contextlib.suppress(ImportError):
        import ale_py

        gym.register_envs(ale_py)
    known = {name for name in {*PURE, *MAKERS, *gym.registry} if name.startswith("ALE/") or not _is_raw_atari(name)}
    module, _, name = id.rpartition(":")
    names = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    if module:  # its own come first
        names = [name for name in sorted(gym.registry) if _comes_from(name, module)] or names
    names = [f"{module}:{name}" if module and _comes_from(name, module) else name for name in names]
    if names:
        return f"; did you mean {' or '.join(names)}?"
    return "" if module else "; one of your own is my_module:MyEnv-v0"


def _extra(id: str) -> str:
    entry = str(gym.registry[id].entry_point) if id in gym.registry else ""
    if "mujoco" in entry:
        return f"; install it with: {how_to_install('mujoco')}"
    module = id.rpartition(":")[0]
    return f"; the module {module!r} is looked for in the working folder and on PYTHONPATH" if module else ""
