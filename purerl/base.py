"""The records that everything else exchanges, and the glossary of the batch.

Shapes use `T` for steps of a fragment and `B` for environments; a leading seed axis is added by `vmap`, never written here.

Autoreset is Gymnasium's NEXT_STEP: the step after an episode's end only resets. It is stored with `valid=False`, so the observation
after any valid step `t` is `obs[t + 1]`, an episode's final observation included. Where an environment waits for the next fragment
instead, its idle steps are stored like that as well. Where an episode ends without a reset (a lost life, while the game goes on),
the observation after its last step is also the first of the next episode.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

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
            clipping, `game_start` (the policy saw a game's first observation), `game_end` (a game's last step), and there the infos
            that the user named. Empty where there is nothing more to tell.
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
        render: `render(obs) -> [H, W, 3]` uint8, a picture of what is seen; None where Gymnasium's environment of that name is
            filmed.
    """

    spec: EnvSpec
    reset: Callable[[Tensor], tuple[Any, Tensor | TensorDict]]
    step: Callable[[Any, Tensor, Tensor], tuple[Any, Tensor | TensorDict, Tensor, Tensor, Tensor, dict]]
    draw: Callable[[Tensor], Any] = lambda key: key
    render: Callable[[Any], Tensor] | None = None


class Init(Protocol):
    def __call__(self, key: Tensor, hyper: Mapping[str, Tensor] = {}, /) -> Any:
        """The state before the first step. It is also run on tensors without data (`transforms.shapes`).

        Args:
            key: `[2]`.
            hyper: `[]` float32 tensors that stand in for start values of the algorithm's `hyper`, under the same names: a sweep is
                `vmap(init)(keys [L, 2], {"lr": lrs [L]})`.
        """


class Acting(Protocol):
    def __call__(self, state: Any, /) -> Any:
        """What acting needs of a state: a tree of some of its leaves, which may all have further leading axes."""


class Act(Protocol):
    def __call__(self, acting: Any, inputs: Inputs, carry: TensorDict, noise: Any, /) -> tuple[Any, TensorDict, TensorDict]:
        """The behaviour policy.

        Args:
            acting: as `acting(state)` gives it.
            inputs: `[B]`.
            carry: `[B]` the memory, which is to be taken for a new one where `inputs.first`.
            noise: `[B]` of `draw`.

        Returns:
            The action `[B, *action_shape]`, what is to be learnt from besides `[B]` (`log_prob`, ...), and the memory `[B]`.
        """


class Mode(Protocol):
    def __call__(self, acting: Any, inputs: Inputs, carry: TensorDict, /) -> tuple[Any, TensorDict]:
        """The policy to evaluate: as `Act`, without noise; the action `[B, *action_shape]` and the memory `[B]`."""


class Draw(Protocol):
    def __call__(self, key: Tensor, /) -> Any:
        """One environment's noise for one action, of a key `[2]`; vmap it for `[B]`."""


class Carry(Protocol):
    def __call__(self, n_envs: int, /) -> TensorDict:
        """The memory `[B]` before an episode, the same for every environment."""


class Update(Protocol):
    def __call__(self, state: Any, batch: Batch, /) -> tuple[Any, TensorDict]:
        """Learn from a batch `[T, B]`.

        Returns:
            The state, of the same structure, shapes and dtypes; and figures to be logged, `[]` each, under names of one's own.
        """


class Policy(NamedTuple):
    """What acts, for a training loop of one's own; an `Algorithm` is one too.

    Attributes:
        init, act, mode, draw, spec, carry, acting: as an `Algorithm`'s, `state` being whatever they agree on (parameters, say).
    """

    init: Init | Callable[[Tensor], Any]
    act: Act
    mode: Mode
    draw: Draw
    spec: EnvSpec
    carry: Carry = lambda n_envs: TensorDict()
    acting: Acting = lambda state: state


class Algorithm(NamedTuple):
    """An algorithm: pure functions over one state, a TensorDict or TensorClass of which nobody else knows what is in it.

    Attributes:
        init: `init(key, hyper={}) -> state`.
        act: `act(acting, inputs [B], carry [B], noise [B]) -> (action [B, ...], extras [B], carry [B])`, the behaviour policy.
        update: `update(state, batch [T, B]) -> (state, info)`.
        mode: `mode(acting, inputs [B], carry [B]) -> (action, carry)`, the policy to evaluate.
        draw: `draw(key) -> noise`, one environment's randomness for one `act`.
        spec: the environment spec it was made for.
        n_envs, n_steps: the batch `[n_steps, n_envs]` it was made for.
        carry: `carry(n_envs) -> TensorDict [B]`, the policy's memory before an episode; empty where there is none.
        acting: `acting(state) -> tree`, what acting needs of the state.
        hyper: the numbers that can be swept, and their start values. The one called `gamma`, if there is one, discounts the
            records' `DiscountedReturn`; else nothing does.
        config: a frozen dataclass it was made from, for the record.
        forget: `forget(state) -> state`, the state with an empty memory in place of its donated one, into which it does not look;
            None where it cannot go on so: then checkpoints hold the memory.
        replay: `replay(state) -> tree`, the leaves of the state with which another run can begin in the place of its own: what was
            seen, and what can be learnt from it. None where there is nothing of the kind.
    """

    init: Init
    act: Act
    update: Update
    mode: Mode
    draw: Draw
    spec: EnvSpec
    n_envs: int
    n_steps: int
    carry: Carry = lambda n_envs: TensorDict()
    acting: Acting = lambda state: state
    hyper: Mapping[str, float] = {}
    config: Any = None
    forget: Callable[[Any], Any] | None = None
    replay: Callable[[Any], Any] | None = None
