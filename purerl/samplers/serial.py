"""Collect from Gymnasium environments in this process, as an iterator of batches."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
import torch.utils._pytree as pytree
from tensordict import TensorDict
from torch import Tensor

from purerl import envs, random, tree
from purerl.base import Algorithm, Batch, Inputs
from purerl.rollout import draw_ahead
from purerl.spaces import check_spaces, env_actions, to_tensors, zero_actions
from purerl.transforms import compile, vmap


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
        self._draw = compile(vmap(lambda key: draw_ahead(algo.draw, key, n_steps, n_envs)))
        self._act = compile(vmap(self._one_act))
        # Every environment of every seed has a seed of its own, whatever the number of the others.
        seeds = torch.vmap(lambda key: random.randint(random.fold_in(key, 0), (n_envs,), 0, 1 << 31))(keys)
        obs, _ = vec.reset(seed=[int(seed) for seed in seeds.flatten()])  # type: ignore[arg-type]
        self._seen = {
            "obs": self._lanes(obs),
            "prev_action": self._split(zero_actions(vec.single_action_space, vec.num_envs)),
            "prev_reward": torch.zeros(self._shape),
            "first": torch.ones(self._shape, dtype=torch.bool),
        }
        self._carry = tree.map(lambda x: x.expand(len(keys), *x.shape).clone(), algo.carry(n_envs)).to_dict()
        self._done = torch.zeros(self._shape, dtype=torch.bool)

    def _one_act(self, packed: dict[torch.dtype, Tensor], seen: dict, carry: dict, noise: Any, done: Tensor) -> tuple:
        """One seed's `act`, with what surrounds it: the step that only resets sees no action after it."""
        action, extras, carry_after = self._algo.act(self._unpack(packed), Inputs(**seen), TensorDict(carry), noise)
        sent = env_actions(self._algo.spec.action_space, action)
        return action, sent, extras.to_dict(), carry_after.to_dict(), tree.where(done, torch.zeros_like(action), action)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(self._shape + x.shape[1:])

    def _lanes(self, x: Any) -> Any:
        """Gymnasium's batched arrays as tensors `[S, B, ...]`."""
        return tree.map(self._split, to_tensors(x))

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
        start = self._carry
        noises = [tree.map(lambda x, t=t: x[:, t], noise) for t in range(self._n_steps)]
        steps = [pytree.tree_flatten(self._step(noise)) for noise in noises]
        columns = zip(*(leaves for leaves, _ in steps), strict=True)
        batch = pytree.tree_unflatten([torch.stack(column, 1) for column in columns], steps[0][1])
        whole = Batch(
            inputs=Inputs(**batch.pop("seen")),
            **{**batch, "extras": TensorDict(batch["extras"])},
            carry=TensorDict(start),
            last=Inputs(**self._seen),
            batch_size=self._shape[:1],
        )
        return whole[0] if self._single else whole

    def _step(self, noise: Any) -> dict[str, Any]:
        seen, done = self._seen, self._done
        # One feed calls its act with one kind of input for ever: after the first call, checking that again is most of its cost.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=self._warm):
            action, sent, extras, self._carry, prev_action = self._act(self._state, seen, self._carry, noise, done)
        self._warm = True
        obs, rewards, terminations, truncations, _ = self._vec.step(sent.flatten(0, 1).numpy())
        reward = self._split(torch.from_numpy(rewards.astype(np.float32)))
        terminated, truncated = (self._split(torch.from_numpy(x.copy())) for x in (terminations, truncations))
        self._seen = {"obs": self._lanes(obs), "prev_action": prev_action, "prev_reward": reward, "first": done}
        self._done = terminated | truncated
        return {
            "seen": seen,
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "valid": ~done,
            "extras": extras,
        }

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
