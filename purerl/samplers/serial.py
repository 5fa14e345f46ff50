"""Collect from Gymnasium environments in this process, as an iterator of batches."""

from collections.abc import Iterator
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
from purerl.transforms import compile, vmap


class _Seen(NamedTuple):
    """What the last step left, `[S, B]`: the observation's leaves, the action as it was, the reward, whether it only reset."""

    obs: list[Tensor]
    action: Tensor
    reward: Tensor
    first: Tensor


class SerialFeed:
    """An endless iterator of batches `[T, B]`, or `[S, T, B]` for `S` seeds, collected with the last state published.

    Use it as a context manager, or `close` it.
    """

    def __init__(self, vec: gym.vector.VectorEnv, algo: Algorithm, keys: Tensor, n_envs: int, n_steps: int, single: bool) -> None:
        self._vec, self._algo, self._keys, self._single = vec, algo, keys, single
        self._shape, self._n_steps = (len(keys), n_envs), n_steps
        self._fragment, self._warm = 0, False
        self._state: dict[torch.dtype, Tensor] | None = None
        _, self._unpack = tree.pack(algo.init(keys[0]))
        self._draw = compile(vmap(lambda key: draw_ahead((algo.draw,), key, n_steps, n_envs)[0]))
        self._act = compile(vmap(self._one_act))
        # Every environment of every seed has a seed of its own, whatever the number of the others.
        seeds = torch.vmap(lambda key: random.randint(random.fold_in(key, 0), (n_envs,), 0, 1 << 31))(keys)
        obs, _ = vec.reset(seed=[int(seed) for seed in seeds.flatten()])  # type: ignore[arg-type]
        carry = [x.expand(len(keys), *x.shape).clone() for x in tree.leaves(algo.carry(n_envs))]
        action = zero_actions(vec.single_action_space, vec.num_envs)
        self._obs_structure, self._carry_structure = tree.structure(to_tensors(obs)), tree.structure(algo.carry(n_envs))
        self._seen = _Seen(
            obs=[self._lanes(x) for x in tree.leaves(to_tensors(obs))],
            action=self._lanes(action),
            reward=torch.zeros(self._shape),
            first=torch.ones(self._shape, dtype=torch.bool),
        )
        self._carry, self._done = carry, torch.zeros(self._shape, dtype=torch.bool)

    def _one_act(self, packed: dict[torch.dtype, Tensor], seen: _Seen, carry: list[Tensor], noise: Any) -> tuple:
        """One seed's `act`, as plain tensors outside: the action, what the environments receive, the extras and the carry."""
        inputs, memory = self._inputs(seen), tree.unflatten(self._carry_structure, carry)
        action, extras, memory = self._algo.act(self._unpack(packed), inputs, memory, noise)
        return action, env_actions(self._algo.spec.action_space, action), extras.to_dict(), tree.leaves(memory)

    def _inputs(self, seen: _Seen) -> Inputs:
        obs = tree.unflatten(self._obs_structure, seen.obs)
        return Inputs(obs=obs, prev_action=masked(seen.first, seen.action), prev_reward=seen.reward, first=seen.first)

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
        noises, structure = tree.flatten(noise)
        start = self._actors()
        moments = [tree.unflatten(structure, xs) for xs in zip(*(x.unbind(1) for x in noises), strict=True)]
        steps = [self._step(noise) for noise in moments]
        obs, *parts = zip(*steps, strict=True)
        stacked = [tree.map(lambda *xs: torch.stack(xs, 1), *part) for part in parts]
        all_obs = tree.unflatten(self._obs_structure, [torch.stack(xs, 1) for xs in zip(*obs, strict=True)])
        batch = vmap(fragment)(start, all_obs, self._actors().inputs, *stacked)
        return tree.index(batch, 0) if self._single else batch

    def _actors(self) -> Actors:
        carry = tree.unflatten(self._carry_structure, self._carry)
        return Actors(env=TensorDict(), inputs=self._inputs(self._seen), carry=carry, done=self._done)

    def _step(self, noise: Any) -> tuple:
        seen = self._seen
        # One feed calls its act with one kind of input for ever: after the first call, checking that again is most of its cost.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=self._warm):
            action, sent, extras, self._carry = self._act(self._state, seen, self._carry, noise)
        self._warm = True
        obs, rewards, terminations, truncations, _ = self._vec.step(sent.flatten(0, 1).numpy())
        reward = torch.from_numpy(rewards.astype(np.float32).reshape(self._shape))
        terminated = torch.from_numpy(terminations.copy().reshape(self._shape))
        truncated = torch.from_numpy(truncations.copy().reshape(self._shape))
        self._seen = _Seen([self._lanes(x) for x in tree.leaves(to_tensors(obs))], action, reward, self._done)
        self._done = terminated | truncated
        return seen.obs, action, reward, terminated, truncated, extras

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
