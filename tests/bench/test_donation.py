"""Memory written in place, beside the bare gather and scatter of the same bytes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import Donated, compile, random, scan, tree, vmap, write

N, TURNS, M = 4, 4, 64  # items added, gradient steps, rows of each
OBS = 4
cases = pytest.mark.parametrize(("capacity", "seeds"), [(10_000, 1), (1_000_000, 1), (10_000, 4), (1_000_000, 4)])


class Buffer(TensorClass):
    items_: Donated
    priorities: Donated
    cursor: Tensor


def init(capacity: int) -> Buffer:
    fields = TensorDict(obs=torch.zeros(capacity, OBS), next_obs=torch.zeros(capacity, OBS), reward=torch.zeros(capacity))
    return Buffer(
        items_=Donated(memory=fields),
        priorities=Donated(memory=TensorDict(p=torch.zeros(capacity))),
        cursor=torch.zeros((), dtype=torch.int64),
    )


def rows_of(buffer: Buffer) -> Tensor:
    return (buffer.cursor + torch.arange(N)) % len(buffer.items_.memory["reward"])


def add(buffer: Buffer, new: dict[str, Tensor]) -> Buffer:
    rows = rows_of(buffer)
    items, priorities = write(buffer.items_, rows, new), write(buffer.priorities, rows, torch.ones(N))
    return Buffer(items_=items, priorities=priorities, cursor=buffer.cursor + N)


def errors(buffer: Buffer, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the errors of a linear value function on some rows."""
    obs, next_obs, reward = (buffer.items_.memory[name][rows] for name in ("obs", "next_obs", "reward"))

    def loss(w: Tensor) -> tuple[Tensor, Tensor]:
        error = obs @ w - reward - 0.99 * (next_obs @ w).detach()
        return (error**2).mean(), error

    return torch.func.grad(loss, has_aux=True)(weight)


def uniform(buffer: Buffer, new: dict[str, Tensor], weight: Tensor, rows: Tensor) -> tuple[Buffer, Tensor]:
    buffer = add(buffer, new)
    weight, _ = scan(lambda w, rows: (w - 0.1 * errors(buffer, w, rows)[0], {}), weight, rows)
    return buffer, weight


def prioritized(buffer: Buffer, new: dict[str, Tensor], weight: Tensor, rows: Tensor) -> tuple[Buffer, Tensor]:
    buffer = add(buffer, new)

    def turn(carry: tuple[Donated, Tensor], rows: Tensor) -> tuple[tuple[Donated, Tensor], dict]:
        priorities, w = carry
        grad, error = errors(buffer, w, rows)
        return (write(priorities, rows, error.abs()), w - 0.1 * grad), {}

    (priorities, weight), _ = scan(turn, (buffer.priorities, weight), rows)
    return tree.replace(buffer, priorities=priorities), weight


def inputs(capacity: int, seeds: int) -> tuple[Buffer, dict[str, Tensor], Tensor, Tensor]:
    def lane(key: Tensor) -> tuple:
        keys = random.split(key, 2)
        new = {"obs": random.normal(keys[0], (N, OBS)), "next_obs": torch.ones(N, OBS), "reward": torch.ones(N)}
        return init(capacity), new, torch.zeros(OBS), random.randint(keys[1], (TURNS, M), 0, capacity)

    return vmap(lane)(random.split(random.key(0), seeds))


def bare(capacity: int, seeds: int) -> Callable[[], Any]:
    """The scatter of what is added and the gathers of what is sampled, each seed after the other, by hand."""
    buffers, new, _, rows = inputs(capacity, seeds)
    memories = [tree.index(buffers.items_.memory.to_dict(), i) for i in range(seeds)]
    items = [tree.index(new, i) for i in range(seeds)]
    places = torch.arange(N)

    def run() -> None:
        for memory, item, chosen in zip(memories, items, rows, strict=True):
            for name, x in memory.items():
                x.index_put_((places,), item[name])
            for turn in chosen:
                for x in memory.values():
                    x[turn]

    return run


def run(benchmark: Any, f: Callable, capacity: int, seeds: int, n_args: int) -> None:
    buffer, *args = inputs(capacity, seeds)
    program = compile(vmap(f))

    def call() -> None:
        nonlocal buffer
        result = program(buffer, *args[:n_args])
        buffer = result[0] if isinstance(result, tuple) else result

    call()
    benchmark.group = f"{capacity:,} items, {seeds} seeds"
    benchmark(call)


@cases
def test_bare_scatter_and_gathers(benchmark: Any, capacity: int, seeds: int) -> None:
    benchmark.group = f"{capacity:,} items, {seeds} seeds"
    benchmark(bare(capacity, seeds))


@cases
def test_add(benchmark: Any, capacity: int, seeds: int) -> None:
    run(benchmark, add, capacity, seeds, 1)


@cases
def test_add_and_four_gradient_steps(benchmark: Any, capacity: int, seeds: int) -> None:
    run(benchmark, uniform, capacity, seeds, 3)


@cases
def test_add_and_four_gradient_steps_that_write_priorities(benchmark: Any, capacity: int, seeds: int) -> None:
    run(benchmark, prioritized, capacity, seeds, 3)
