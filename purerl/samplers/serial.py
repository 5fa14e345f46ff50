"""Collect from Gymnasium environments in this process, as an iterator of batches."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import envs, random, tree
from purerl.base import Algorithm, Batch, Inputs
from purerl.rollout import Actors, draw_ahead, fragment, masked
from purerl.spaces import check_spaces, env_actions, to_tensors, zero_actions
from purerl.transforms import compile, specialize, vmap


class _Rows(NamedTuple):
    """A fragment's steps of one thing.

    Attributes:
        array: `[T, S * B, ...]`, as the environments give it, to be written.
        steps: the same memory, `T` times `[S, B, ...]`.
        whole: the same memory, `[S, T, B, ...]`.
    """

    array: np.ndarray
    steps: Sequence[Tensor]
    whole: Tensor


class SerialFeed:
    """An endless iterator of batches `[T, B]`, or `[S, T, B]` for `S` seeds, collected with the last state published.

    Use it as a context manager, or `close` it.
    """

    def __init__(self, vec: gym.vector.VectorEnv, algo: Algorithm, keys: Tensor, n_envs: int, n_steps: int, single: bool) -> None:
        self._vec, self._algo, self._keys, self._single = vec, algo, keys, single
        self._shape, self._n_steps = (len(keys), n_envs), n_steps
        self._fragment = 0
        self._state: dict[torch.dtype, Tensor] | None = None
        _, self._unpack = tree.pack(algo.init(keys[0]))
        self._draw = compile(vmap(lambda key: draw_ahead((algo.draw,), key, n_steps, n_envs)[0]))
        self._act: Callable | None = None
        # Every environment of every seed has a seed of its own, whatever the number of the others.
        seeds = torch.vmap(lambda key: random.randint(random.fold_in(key, 0), (n_envs,), 0, 1 << 31))(keys)
        obs, _ = vec.reset(seed=[int(seed) for seed in seeds.flatten()])  # type: ignore[arg-type]
        first_obs, self._obs_structure = tree.flatten(to_tensors(obs))
        action = zero_actions(vec.single_action_space, vec.num_envs)
        first = torch.ones(self._shape, dtype=torch.bool)
        # What the last step left, [S, B]: the observation's leaves, the action as it was, the reward, whether it only reset.
        self._seen = [*(self._lanes(x).clone() for x in first_obs), self._lanes(action), torch.zeros(self._shape), first]
        carry, self._carry_structure = tree.flatten(algo.carry(n_envs))
        self._carry = [x.expand(len(keys), *x.shape).clone() for x in carry]
        self._done = ~first

    def _one_act(self, packed: dict[torch.dtype, Tensor], seen: list[Tensor], carry: list[Tensor], noise: Any) -> tuple:
        """One seed's `act`: what the environments receive, the action, the carry and the extras."""
        inputs, memory = self._inputs(seen), tree.unflatten(self._carry_structure, carry)
        action, extras, memory = self._algo.act(self._unpack(packed), inputs, memory, noise)
        return env_actions(self._algo.spec.action_space, action), action, tree.leaves(memory), extras.to_dict()

    def _inputs(self, seen: list[Tensor]) -> Inputs:
        *obs, action, reward, first = seen
        whole_obs = tree.unflatten(self._obs_structure, obs)
        return Inputs(obs=whole_obs, prev_action=masked(first, action), prev_reward=reward, first=first)

    def _lanes(self, x: Tensor) -> Tensor:
        """Gymnasium's batch as `[S, B]`."""
        return x.reshape(self._shape + x.shape[1:])

    def publish(self, state: Any) -> None:
        """Act with this state (the algorithm's, `[S]` of them if there are several seeds) from the next batch on."""
        leaves = [x[None] for x in tree.leaves(state)] if self._single else tree.leaves(state)
        self._state, _ = tree.pack(leaves, axes=1)  # few tensors cross the border of the compiled act sooner than many

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._state is None:
            raise RuntimeError("feed: publish(state) before the first batch")
        self._fragment += 1
        noise = self._draw(torch.vmap(lambda key: random.fold_in(key, self._fragment))(self._keys))
        noises, noise_structure = tree.flatten(noise)
        moments = list(zip(*(x.unbind(1) for x in noises), strict=True))
        if self._act is None:
            examples = self._state, self._seen, self._carry, tree.unflatten(noise_structure, moments[0])
            self._act, structure = specialize(vmap(self._one_act), *examples)
            self._extras_structure = structure.children[-1]

        start, (*first_obs, _, reward, first), acted = self._actors(), self._seen, []
        all_obs = [self._rows(x) for x in first_obs]
        rewards, terminated, truncated, done = self._rows(reward), *(self._rows(first) for _ in range(3))
        for t, moment in enumerate(moments):
            sent, action, *rest = self._act([*self._state.values(), *self._seen, *self._carry, *moment])
            self._carry, extras = rest[: len(self._carry)], rest[len(self._carry) :]
            acted.append((action, *extras))
            obs, rewards.array[t], ended, cut, _ = self._vec.step(sent.numpy().reshape(-1, *sent.shape[2:]))
            for rows, x in zip(all_obs, tree.leaves(obs), strict=True):
                rows.array[t] = x
            terminated.array[t], truncated.array[t], done.array[t] = ended, cut, ended | cut
            self._seen = [*(rows.steps[t] for rows in all_obs), action, rewards.steps[t], self._done]
            self._done = done.steps[t]

        obs_before = [torch.cat([x[:, None], rows.whole[:, :-1]], 1) for x, rows in zip(first_obs, all_obs, strict=True)]
        actions, *all_extras = [torch.stack(xs, 1) for xs in zip(*acted, strict=True)]
        batch = vmap(fragment)(
            start,
            tree.unflatten(self._obs_structure, obs_before),
            self._actors().inputs,
            actions,
            *(rows.whole.contiguous() for rows in (rewards, terminated, truncated)),
            tree.unflatten(self._extras_structure, all_extras),
        )
        return tree.index(batch, 0) if self._single else batch

    def _rows(self, like: Tensor) -> _Rows:
        """Room for a fragment's steps of something that is `[S, B, ...]`."""
        steps = like.new_empty((self._n_steps, *like.shape))
        return _Rows(steps.flatten(1, 2).numpy(), steps.unbind(0), steps.transpose(0, 1))

    def _actors(self) -> Actors:
        carry = tree.unflatten(self._carry_structure, self._carry)
        return Actors(env=TensorDict(), inputs=self._inputs(self._seen), carry=carry, done=self._done)

    def close(self) -> None:
        """Close the environments."""
        self._vec.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serial(
    env: "str | envs.HostEnv", algo: Algorithm, key: Tensor, n_envs: int | None = None, n_steps: int | None = None
) -> SerialFeed:
    """Collect in this process.

    Args:
        env: a Gymnasium id, or a `HostEnv`.
        algo: made for its spec.
        key: `[2]`, or `[S, 2]` for several seeds, each with `n_envs` environments of its own.
        n_envs, n_steps: the batch `[n_steps, n_envs]`; those of the algorithm's config when omitted.

    Raises:
        ValueError: no such environment, or other spaces than the algorithm was made for.
    """
    host = envs.host(env.removeprefix("gym:")) if isinstance(env, str) else env
    check_spaces(host.spec, algo.spec)
    keys = key if key.ndim == 2 else key[None]
    n_envs, n_steps = n_envs or algo.config.n_envs, n_steps or algo.config.n_steps
    return SerialFeed(host.make_vec(len(keys) * n_envs), algo, keys, n_envs, n_steps, single=key.ndim == 1)
