"""Experience from a pure environment, and the fusion of collecting and learning into one pure step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import autoreset, random, tree
from purerl.base import Algorithm, Batch, Env, Inputs, Policy
from purerl.episodes import Episodes, init_episodes, record_episodes
from purerl.nets import check_carry
from purerl.spaces import check_spaces, env_actions, zero_actions
from purerl.transforms import scan, vmap


class Actors(TensorClass):
    """`B` environments and the policy's side of them, between two steps.

    Attributes:
        env: `[B]` environment states.
        inputs: `[B]` what the policy sees next.
        carry: `[B]` the policy's carry.
        done: `[B]` bool, the last step ended an episode: the next one only resets.
    """

    env: TensorDict
    inputs: Inputs
    carry: TensorDict
    done: Tensor


class TrainState(TensorClass):
    """Everything that changes while a fused algorithm trains.

    Attributes:
        algo: the algorithm's state.
        actors: environments and policy carry.
        episodes: statistics of finished episodes.
        key: `[2]`.
    """

    algo: Any
    actors: Actors
    episodes: Episodes
    key: Tensor


def init_actors(policy: Algorithm | Policy, env: Env, n_envs: int, key: Tensor) -> Actors:
    """`n_envs` freshly reset environments."""
    env_state, obs = vmap(env.reset)(vmap(env.draw)(random.split(key, n_envs)))
    done = torch.zeros(n_envs, dtype=torch.bool, device=key.device)
    inputs = Inputs(
        obs=obs,
        prev_action=zero_actions(env.spec.action_space, n_envs, key.device),
        prev_reward=torch.zeros(n_envs, device=key.device),
        first=~done,
    )
    return Actors(env=env_state, inputs=inputs, carry=tree.to(policy.carry(n_envs), key.device), done=done)


def draw_ahead(draws: Sequence[Callable[[Tensor], Any]], key: Tensor, n_steps: int, n_envs: int) -> tuple[Any, ...]:
    """For each of the functions the noise `[T, B, ...]` of a whole fragment, drawn at once."""
    keys = random.split(key, len(draws) * n_steps * n_envs).unflatten(0, (len(draws), n_steps, n_envs))
    return tuple([vmap(vmap(draw))(step_keys) for draw, step_keys in zip(draws, keys, strict=True)])


def rollout(policy: Algorithm | Policy, env: Env, state: Any, actors: Actors, n_steps: int, key: Tensor) -> tuple[Actors, Batch]:
    """Act for `n_steps` steps in each environment.

    Args:
        state: the algorithm's or the policy's, which does not change meanwhile.
        actors: `[B]`.
        key: `[2]`.

    Returns:
        The actors after the last step, and the batch `[T, B]`.
    """
    (n_envs,) = actors.done.shape
    noises = draw_ahead((policy.draw, env.draw), key, n_steps, n_envs)
    acting = policy.acting(state)

    def step(actors: Actors, noises: tuple[Any, Any]) -> tuple[Actors, dict]:
        act_noise, env_noise = noises
        inputs, done = actors.inputs, actors.done
        action, extras, carry = policy.act(acting, inputs, actors.carry, act_noise)
        check_carry(actors.carry, carry)
        sent = env_actions(env.spec.action_space, action)
        env_state, obs, reward, terminated, truncated = autoreset.step(env, actors.env, sent, env_noise, done)
        seen = Inputs(obs=obs, prev_action=autoreset.previous(done, action), prev_reward=reward, first=done)
        after = Actors(env=env_state, inputs=seen, carry=carry, done=terminated | truncated)
        return after, {
            "obs": tree.leaves(inputs.obs),
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "extras": extras.to_dict(),
        }

    after, steps = scan(step, actors, noises)
    obs = tree.unflatten(tree.structure(actors.inputs.obs), steps.pop("obs"))
    return after, fragment(actors, obs, after.inputs, **steps)


def fragment(
    start: Actors,
    obs: Any,
    last: Inputs,
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    extras: dict[str, Any],
) -> Batch:
    """The batch `[T, B]` of a fragment's steps; what merely repeats the step before is derived from it.

    Args:
        start: `[B]` before the first step.
        obs, action, reward, terminated, truncated, extras: `[T, B]`, nothing rewarded or ended in a step that only resets.
        last: `[B]` what the policy would see after the last step.
    """

    def delay(first: Tensor, x: Tensor) -> Tensor:
        return torch.cat([first[None], x[:-1]])

    done = delay(start.done, terminated | truncated)
    inputs = Inputs(
        obs=obs,
        prev_action=delay(start.inputs.prev_action, autoreset.previous(done, action)),
        prev_reward=delay(start.inputs.prev_reward, reward),
        first=delay(start.inputs.first, done),
    )
    return Batch(
        inputs=inputs,
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        valid=~done,
        extras=TensorDict(extras),
        carry=start.carry,
        last=last,
        episode=TensorDict(),
    )


def discount(algo: Algorithm, hyper: Mapping[str, Tensor]) -> float | Tensor:
    """The discount of the episodes' records; 1 if the algorithm has none."""
    return hyper["gamma"] if "gamma" in hyper else algo.hyper.get("gamma", 1.0)


def fuse(algo: Algorithm, env: Env, n_envs: int | None = None, n_steps: int | None = None) -> tuple[Callable, Callable]:
    """Compose collecting and learning into one pure step.

    Args:
        n_envs, n_steps: the batch `[n_steps, n_envs]`; what the algorithm is made for when omitted.

    Returns:
        `init(key, hyper={}) -> TrainState`, where `hyper` is as the algorithm's `init` takes it; and
        `step(TrainState) -> (TrainState, info)`, one rollout `[n_steps, n_envs]` and one update.

    Raises:
        ValueError: the environment is no pure one, or not one like that which the algorithm was made for.
    """
    if not isinstance(env, Env):
        raise ValueError(f"fuse: {type(env).__name__} is no pure environment (`Env`); samplers collect from those of Gymnasium")
    check_spaces(env.spec, algo.spec)
    n_envs, n_steps = n_envs or algo.n_envs, n_steps or algo.n_steps

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> TrainState:
        key, algo_key, env_key = random.split(key, 3)
        return TrainState(
            algo=algo.init(algo_key, hyper),
            actors=init_actors(algo, env, n_envs, env_key),
            episodes=init_episodes(n_envs, discount(algo, hyper), device=key.device),
            key=key,
        )

    def step(state: TrainState) -> tuple[TrainState, TensorDict]:
        key, rollout_key = random.split(state.key)
        actors, batch = rollout(algo, env, state.algo, state.actors, n_steps, rollout_key)
        algo_state, info = algo.update(state.algo, batch)
        episodes = record_episodes(state.episodes, batch)
        return TrainState(algo=algo_state, actors=actors, episodes=episodes, key=key), info

    return init, step
