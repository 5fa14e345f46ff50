"""Collecting from a vector environment that gives whichever of its environments are ready first."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from purerl import tree
from purerl.base import Batch
from purerl.envs import GAME_OVER, RAW_REWARD
from purerl.samplers.acting import LATE, READ, WRITTEN
from purerl.samplers.feeds import Published, Setup, make_draw, seed
from purerl.samplers.fragments import LASTING, RolloutBuffer, act_packed
from purerl.samplers.stepping import EnvError, check_numbers, info_of, info_value
from purerl.transforms import specialize_into, vmap


class SendReceive(Protocol):
    """A vector environment with an asynchronous side (ALE's, EnvPool's).

    Its `reset` begins all environments and gives the first `batch_size` that are ready, `receive` the next ones that are; `send`
    takes actions for those that were given last. `info["env_id"]` says which they are.
    """

    num_envs: int

    def reset(self, *, seed: list[int]) -> tuple[np.ndarray, dict]: ...

    def send(self, actions: np.ndarray) -> None: ...

    def receive(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]: ...

    def close(self) -> None: ...


class Asynchronous:
    """Acts for `batch_size` environments at a time. A fragment is complete when every environment has taken its steps; those that
    are ahead by then have begun the next one, with the parameters of this one.

    Args:
        batch_size: of the vector environment.
    """

    lost = 0

    def __init__(self, setup: Setup, vec: SendReceive, batch_size: int) -> None:
        self._setup, self._vec, self.close = setup, vec, vec.close
        self._fragments: dict[
            int, RolloutBuffer
        ] = {}  # by number: the one to complete, and those that some environments have begun
        self._spare: list[RolloutBuffer] = []
        self._fragment = 0
        self._taken = np.full(vec.num_envs, -1)  # steps of each environment; -1 before its first observation
        self._resets = np.zeros(vec.num_envs, bool)
        self._ready: list[int] = []  # the environments that wait for actions
        self._draw = make_draw(setup)
        buffer = self._spare_buffer()
        self._params = buffer.torch["params"]
        self._published = Published(setup, self._params)
        self._read = {name: [_stage(x, batch_size) for x in buffer.torch[name]] for name in READ}
        self._written = {name: [_stage(x, batch_size) for x in buffer.torch[name]] for name in WRITTEN}
        written, read = list(self._written.values()), list(self._read.values())
        program = specialize_into(vmap(act_packed(setup.policy, setup.plan)), written, self._params, *read)
        args = tree.leaves((written, self._params, read))
        self._act = lambda: program(list(args))

    def publish(self, state: Any) -> None:
        self._published.install(self._published.used(state))

    def collect(self) -> Batch:
        if not self._ready:
            self._open()
        while self._taken.min() < (self._fragment + 1) * self._setup.plan.n_steps:
            self._step()
        buffer = self._fragments.pop(self._fragment)
        check_numbers(buffer, self._setup.host.spec.observation_space)
        self._fragment += 1
        batch = buffer.batch(self._setup.single, self._setup.keys.device)
        self._spare.append(buffer)
        return batch

    def save(self) -> bytes:
        raise EnvError("an asynchronous feed cannot be saved: some of its environments are ahead")

    def restore(self, data: bytes) -> None:
        raise EnvError("an asynchronous feed cannot be restored")

    def _open(self) -> None:
        begun = self._spare_buffer()
        begun.start(self._setup.policy.carry(self._setup.plan.n_envs))
        self._spare.append(begun)  # the first fragment begins where this one ends
        buffer = self._buffer(0)
        seed(self._setup, buffer, 0)
        obs, info = self._vec.reset(seed=buffer.numpy["seeds"][0][0, 0, : self._vec.num_envs].tolist())
        self._ready = info["env_id"].tolist()
        for i, x in zip(self._ready, obs, strict=True):
            self._begin(i, x)

    def _begin(self, i: int, obs: np.ndarray) -> None:
        """An environment shows its first observation."""
        buffer = self._buffer(0).numpy
        buffer["obs"][0][0, 0, i], buffer["first"][0][0, 0, i], buffer["game_start"][0][0, 0, i] = obs, True, True
        self._taken[i] = 0

    def _step(self) -> None:
        """Act for the environments that are ready, and receive the next ones."""
        moments = [(i, *divmod(int(self._taken[i]), self._setup.plan.n_steps)) for i in self._ready]
        at = [(self._buffer(fragment), t, i) for i, fragment, t in moments]
        for name in READ:
            for k, stage in enumerate(self._read[name]):
                for j, (buffer, t, i) in enumerate(at):
                    stage[:, j] = buffer.torch[name][k][t, :, i]
        self._act()
        for name in WRITTEN:
            for k, stage in enumerate(self._written[name]):
                for j, (buffer, t, i) in enumerate(at):
                    buffer.torch[name][k][t + (name in LATE), :, i] = stage[:, j]
        self._vec.send(self._written["sent"][0][0].numpy())
        obs, reward, terminated, truncated, info = self._vec.receive()
        self._ready = info["env_id"].tolist()
        for j, i in enumerate(self._ready):
            if self._taken[i] < 0:
                self._begin(i, obs[j])
            else:
                self._record(i, j, obs, reward, terminated, truncated, info)

    def _record(self, i: int, j: int, obs: Any, reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
        """What the step of environment `i` led to, the result's row `j`."""
        n_steps = self._setup.plan.n_steps
        fragment, t = divmod(int(self._taken[i]), n_steps)
        buffer = self._buffer(fragment).numpy
        at, after = (t, 0, i), (t + 1, 0, i)
        ended = bool(terminated[j] or truncated[j])
        over = bool(info[GAME_OVER][j]) if GAME_OVER in info else ended
        buffer["obs"][0][after], buffer["reward"][0][after] = obs[j], reward[j]
        if RAW_REWARD in info:
            buffer["raw_reward"][0][at] = info[RAW_REWARD][j]
        buffer["terminated"][0][at], buffer["truncated"][0][at], buffer["game_end"][0][at] = terminated[j], truncated[j], over
        buffer["valid"][0][at], buffer["game_start"][0][after] = not self._resets[i], self._resets[i]
        buffer["first"][0][after] = self._resets[i] or (ended and not over)
        if over:
            for key, out in zip(self._setup.plan.infos, buffer["infos"], strict=True):
                out[at] = info_value(info_of(info, j), key, f"environment {i}")
        self._resets[i] = over
        self._taken[i] += 1
        if t + 1 == n_steps:
            following = self._buffer(fragment + 1).numpy
            for name in LASTING:
                for x, y in zip(following[name], buffer[name], strict=True):
                    x[0, 0, i] = y[n_steps, 0, i]

    def _buffer(self, fragment: int) -> RolloutBuffer:
        """The memory of a fragment, begun when first asked for."""
        if fragment not in self._fragments:
            buffer = self._spare_buffer()
            buffer.begin()
            self._draw(buffer, fragment + 1)
            self._fragments[fragment] = buffer
        return self._fragments[fragment]

    def _spare_buffer(self) -> RolloutBuffer:
        return self._spare.pop() if self._spare else RolloutBuffer(self._setup.plan)


def _stage(buffer: Tensor, n: int) -> Tensor:
    """Room for `n` environments' values of one step, `[1, n, ...]`."""
    return torch.zeros((1, n, *buffer.shape[3:]), dtype=buffer.dtype)
