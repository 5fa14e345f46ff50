"""In which order environments step and a policy acts for them within one process."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Group(NamedTuple):
    """Environments that act and step together.

    Attributes:
        act: `act(t)` chooses their actions of step `t`.
        send: `send(t)` lets them step.
        receive: waits until they have.
    """

    act: Callable[[int], None]
    send: Callable[[int], None]
    receive: Callable[[], None]


def together(group: Group, n_steps: int) -> None:
    """Act, then step."""
    for t in range(n_steps):
        group.act(t)
        group.send(t)
        group.receive()


def alternate(a: Group, b: Group, n_steps: int) -> None:
    """One half's actions are computed while the other half steps; a half steps again as soon as it has them."""
    for group in (a, b):
        group.act(0)
        group.send(0)
    for t in range(1, n_steps):
        for group in (a, b):
            group.receive()
            group.act(t)
            group.send(t)
    a.receive()
    b.receive()


def take_turns(a: Group, b: Group, n_steps: int) -> None:
    """One half's actions are computed while the other half steps, and never do both halves step."""
    a.act(0)
    a.send(0)
    b.act(0)
    for t in range(1, n_steps):
        a.receive()
        b.send(t - 1)
        a.act(t)
        b.receive()
        a.send(t)
        b.act(t)
    a.receive()
    b.send(n_steps - 1)
    b.receive()


def in_one_thread(schedule: Callable[..., None], *args: Any) -> None:
    """A schedule that acts in this process: the bits of a matrix product can depend on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        schedule(*args)
    finally:
        torch.set_num_threads(threads)
