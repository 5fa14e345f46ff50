"""The records that everything else exchanges, and the glossary of the batch.

Shapes use `T` for steps of a fragment and `B` for environments; a leading seed axis is added by `vmap`, never written here.

Autoreset is Gymnasium's NEXT_STEP: the step after an episode's end only resets. It is stored with `valid=False`, so the observation
after any valid step `t` is `obs[t + 1]`, an episode's final observation included. Where an environment waits for the next fragment
instead, its idle steps are stored like that as well. Where an episode ends without a reset (a lost life, while the game goes on),
the observation after its last step is also the first of the next episode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
from tensordict import TensorClass, TensorDict
from torch import Tensor


class Inputs(TensorClass):
    """What a policy sees.

    Attributes:
        obs: `[..., *obs_shape]`, a tensor or a nested TensorDict.
        prev_action: `[..., *action_shape]`, zeros where `first`.
        prev_reward: `[...]` float32, zero where `first`.
        first: `[...]` bool, the observation opens an episode.
    """

    obs: Tensor | TensorDict
    prev_action: Tensor
    prev_reward: Tensor
    first: Tensor


class Batch(TensorClass):
    """One fragment of experience, whoever collected it.

    Attributes:
        inputs: `[T, B]` what the policy saw.
        action: `[T, B, *action_shape]`.
        reward: `[T, B]` float32.
        terminated: `[T, B]` bool, the task ended: its value afterwards is zero.
        truncated: `[T, B]` bool, the episode was cut: bootstrap from the observation that follows.
        valid: `[T, B]` bool, False for the step that only resets.
        extras: `[T, B]` what the policy added (`log_prob`, ...).
        carry: `[B]` the policy's carry before the first step.
        last: `[B]` what the policy would see after the last step.
        episode: `[T, B]` what the records of episodes follow where an environment tells more than the fields above: `reward` before
            clipping, `opens` (the policy saw a game's first observation), `over` (a game's last step), and there the infos that
            the user named. Empty where there is nothing more to tell.
    """

    inputs: Inputs
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    extras: TensorDict
    carry: TensorDict
    last: Inputs
    episode: TensorDict


class EnvSpec(NamedTuple):
    """An environment's name and Gymnasium spaces; `max_episode_steps` is its time limit, None for no limit."""

    id: str
    observation_space: gym.Space
    action_space: gym.Space
    max_episode_steps: int | None = None


def check_spec(spec: Any) -> None:
    """Raise a `ValueError` if this is no `EnvSpec`."""
    if not isinstance(spec, EnvSpec):
        raise ValueError(f"spec: {type(spec).__name__} is not an environment's spec; envs.make(id).spec is one")


class Env(NamedTuple):
    """A pure environment: functions of one environment, without batch axes.

    Attributes:
        spec: name and spaces.
        reset: `reset(key) -> (state, obs)`.
        step: `step(state, action, key) -> (state, obs, reward, terminated, truncated, info)`.
        draw: `draw(key) -> noise`. `reset` and `step` take this noise in the key's place too, so that a rollout can draw for
            all its steps at once.
    """

    spec: EnvSpec
    reset: Callable[[Tensor], tuple[Any, Tensor | TensorDict]]
    step: Callable[[Any, Tensor, Tensor], tuple[Any, Tensor | TensorDict, Tensor, Tensor, Tensor, dict]]
    draw: Callable[[Tensor], Any] = lambda key: key


class Policy(NamedTuple):
    """What a sampler needs to act, for a training loop of one's own; an `Algorithm` is one too.

    Attributes:
        init, act, mode, draw, carry, spec: as an `Algorithm`'s, `state` being whatever they agree on (parameters, say).
    """

    init: Callable[[Tensor], Any]
    act: Callable[..., tuple[Tensor, TensorDict, TensorDict]]
    mode: Callable[..., tuple[Tensor, TensorDict]]
    draw: Callable[[Tensor], Tensor]
    carry: Callable[[int], TensorDict]
    spec: EnvSpec


class Algorithm(NamedTuple):
    """An algorithm: pure functions over one state.

    Attributes:
        init: `init(key) -> state`.
        act: `act(state, inputs [B], carry [B], noise [B]) -> (action [B, ...], extras [B], carry [B])`, the behaviour policy.
        update: `update(state, batch [T, B]) -> (state, info)`.
        mode: `mode(state, inputs [B], carry [B]) -> (action, carry)`, the policy to evaluate.
        draw: `draw(key) -> noise`, one environment's randomness for one `act`; vmap it for `[B]`.
        carry: `carry(n_envs) -> TensorDict [B]`, the policy's memory before an episode (empty when feed-forward).
        spec: the environment spec it was made for.
        config: the frozen config it was made from.
    """

    init: Callable[[Tensor], Any]
    act: Callable[..., tuple[Tensor, TensorDict, TensorDict]]
    update: Callable[[Any, Batch], tuple[Any, TensorDict]]
    mode: Callable[..., tuple[Tensor, TensorDict]]
    draw: Callable[[Tensor], Tensor]
    carry: Callable[[int], TensorDict]
    spec: EnvSpec
    config: Any
