"""An algorithm with a memory that is written in place: a linear value of what a ring of observations was rewarded with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import Algorithm, Batch, Donated, EnvSpec, config, distributions, random, scan, write


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    lr: float = config.number(1e-2, "learning rate")
    capacity: int = config.count(96, "observations kept")


class State(TensorClass):
    weight: Tensor
    hyper: TensorDict
    memory: Donated
    priorities: Donated
    cursor: Tensor
    key: Tensor


def make_replaying(spec: EnvSpec, settings: ReplayConfig | None = None, n_envs: int = 4, n_steps: int = 8) -> Algorithm:
    settings = settings or ReplayConfig()
    dist, (size,) = distributions.for_space(spec.action_space), spec.observation_space.shape
    n, capacity = n_envs * n_steps, settings.capacity

    def init(key: Tensor, hyper: Mapping[str, Tensor] = {}) -> State:
        content = TensorDict(obs=torch.zeros(capacity, size), reward=torch.zeros(capacity))
        return State(
            weight=torch.zeros(size),
            hyper=config.start(config.sweepable(settings), hyper),
            memory=Donated(memory=content),
            priorities=Donated(memory=TensorDict(p=torch.zeros(capacity))),
            cursor=torch.zeros((), dtype=torch.int64),
            key=key,
        )

    def act(acting: Tensor, inputs: Any, carry: TensorDict, noise: Tensor) -> tuple:
        logits = (inputs.obs @ acting)[:, None].expand(-1, dist.n_params)
        return dist.sample(logits, noise), TensorDict(), carry

    def update(state: State, batch: Batch) -> tuple[State, TensorDict]:
        rows = (state.cursor + torch.arange(n)) % capacity
        flat = {"obs": batch.inputs.obs.flatten(0, 1), "reward": batch.reward.flatten()}
        memory, priorities = write(state.memory, rows, flat), write(state.priorities, rows, torch.ones(n))
        keys = random.split(state.key, 4)
        chosen = torch.stack([random.permutation(key, capacity)[:16] for key in keys[1:]])

        def turn(carry: tuple[Donated, Tensor], rows: Tensor) -> tuple[tuple[Donated, Tensor], Tensor]:
            priorities, weight = carry
            obs, reward = memory.memory["obs"][rows], memory.memory["reward"][rows]

            def loss(w: Tensor) -> tuple[Tensor, Tensor]:
                error = obs @ w - reward
                return (priorities.memory["p"][rows] * error**2).mean(), error

            grad, error = torch.func.grad(loss, has_aux=True)(weight)
            return (write(priorities, rows, error.abs()), weight - state.hyper["lr"] * grad), error.abs().mean()

        (priorities, weight), errors = scan(turn, (priorities, state.weight), chosen)
        cursor = (state.cursor + n) % capacity
        new = State(weight=weight, hyper=state.hyper, memory=memory, priorities=priorities, cursor=cursor, key=keys[0])
        return new, TensorDict(error=errors.mean())

    def mode(acting: Tensor, inputs: Any, carry: TensorDict) -> tuple:
        return dist.mode((inputs.obs @ acting)[:, None].expand(-1, dist.n_params)), carry

    return Algorithm(
        init=init,
        act=act,
        update=update,
        mode=mode,
        draw=dist.draw,
        spec=spec,
        n_envs=n_envs,
        n_steps=n_steps,
        acting=lambda state: state.weight,
        hyper=config.sweepable(settings),
        config=settings,
    )


def make(spec: EnvSpec, config: ReplayConfig | None = None) -> Algorithm:
    return make_replaying(spec, config)
