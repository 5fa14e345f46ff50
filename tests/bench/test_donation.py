"""Memory written in place, beside the bare gather and scatter of the same bytes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from bench.contest import Contest, Side, by_turns, repeated
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import Donated, compile, random, scan, tree, vmap, write

N, TURNS, M = 4, 4, 64  # items added, gradient steps, rows of each
OBS = 4
CALLS = 100  # in a turn


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


def bare(capacity: int, seeds: int, gathers: bool) -> Callable[[], object]:
    """The scatter of what is added and the gathers of what is sampled, each seed after the other, by hand."""
    buffers, new, _, rows = inputs(capacity, seeds)
    memories = [tree.index(buffers.items_.memory.to_dict(), i) for i in range(seeds)]
    items = [tree.index(new, i) for i in range(seeds)]
    places = torch.arange(N)

    def run() -> None:
        for memory, item, chosen in zip(memories, items, rows, strict=True):
            for name, x in memory.items():
                x.index_put_((places,), item[name])
            for turn in chosen if gathers else ():
                for x in memory.values():
                    x[turn]

    return run


def ours(f: Callable, capacity: int, seeds: int, n_args: int) -> Callable[[], object]:
    """A compiled call that hands its buffer on to the next one."""
    buffer, *args = inputs(capacity, seeds)
    program = compile(vmap(f))

    def run() -> None:
        nonlocal buffer
        result = program(buffer, *args[:n_args])
        buffer = result[0] if isinstance(result, tuple) else result

    return run


@contextmanager
def writing(capacity: int, seeds: int, rounds: int) -> Iterator[Mapping[str, Side]]:
    calls = {
        "bare scatter": bare(capacity, seeds, gathers=False),
        "add": ours(add, capacity, seeds, 1),
        "bare scatter and gathers": bare(capacity, seeds, gathers=True),
        "gradient steps": ours(uniform, capacity, seeds, 3),
        "gradient steps, priorities": ours(prioritized, capacity, seeds, 3),
    }
    yield {name: repeated(f, CALLS, 1) for name, f in calls.items()}


@by_turns(
    *(
        Contest(
            name=f"{capacity}x{seeds}",
            title=f"Memory in place, {capacity:,} items, {seeds} seeds: add {N}, and {TURNS} gradient steps on {M} each",
            sides=("bare scatter", "add", "bare scatter and gathers", "gradient steps", "gradient steps, priorities"),
            open=partial(writing, capacity, seeds),
            floors={
                "add": lambda seconds: seconds["bare scatter"],
                "gradient steps": lambda seconds: seconds["bare scatter and gathers"],
                "gradient steps, priorities": lambda seconds: seconds["bare scatter and gathers"],
            },
            unit="calls",
            per=1,
        )
        for seeds in (1, 4)
        for capacity in (10_000, 1_000_000)
    )
)
def test_donation(replay: Callable[[], None]) -> None:
    replay()
