"""Environments by name: the pure ports, and everything that Gymnasium can make."""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym

from purerl.base import Env, EnvSpec
from purerl.envs import acrobot, cartpole, mountain_car, pendulum
from purerl.envs.wrappers import accept_keys, time_limit

PURE = {env.spec.id: env for env in (acrobot.ENV, cartpole.ENV, mountain_car.ENV, mountain_car.CONTINUOUS_ENV, pendulum.ENV)}


class HostEnv(NamedTuple):
    """An environment of the outside world.

    Attributes:
        spec: name and spaces.
        make_vec: `make_vec(n_envs) -> gymnasium.vector.VectorEnv`, stepping in this process, NEXT_STEP autoreset.
    """

    spec: EnvSpec
    make_vec: Callable[[int], gym.vector.VectorEnv]


def pure(env: Env) -> Env:
    """An environment's core with the time limit of its spec, ready to use."""
    env = accept_keys(env)
    return env if env.spec.max_episode_steps is None else time_limit(env, env.spec.max_episode_steps)


def make(id: str) -> Env | HostEnv:
    """The environment of a name.

    `CartPole-v1` is the pure port where there is one, `gym:CartPole-v1` Gymnasium's own; any other name goes to Gymnasium
    (`my_module:MyEnv-v0` imports `my_module` first).

    Raises:
        ValueError: no such environment; the nearest names are listed.
        ImportError: a package that the environment needs is not installed.
    """
    if id in PURE:
        return pure(PURE[id])
    return host(id.removeprefix("gym:"))


def host(id: str, **kwargs: Any) -> HostEnv:
    """One of Gymnasium's environments; `kwargs` go to its constructor.

    Raises:
        ValueError, ImportError: as `make`.
    """

    def one(**more: Any) -> gym.Env:
        try:
            return gym.make(id, **kwargs, **more)
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

    env = one()
    limit = env.spec.max_episode_steps if env.spec else None
    spec = EnvSpec(id, env.observation_space, env.action_space, limit)
    env.close()
    return HostEnv(spec, lambda n_envs: gym.vector.SyncVectorEnv([one] * n_envs))


def _nearest(id: str) -> str:
    names = difflib.get_close_matches(id, sorted({*PURE, *gym.registry}), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _extra(id: str) -> str:
    entry = str(gym.registry[id].entry_point) if id in gym.registry else ""
    return '; install it with: pip install "purerl[mujoco]"' if "mujoco" in entry else ""
