"""The worker processes of a feed, and the memory they share."""

import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from purerl import envs
from purerl.base import Algorithm, Policy
from purerl.envs.generators import install, seeded
from purerl.samplers import workers as processes
from purerl.samplers.acting import make_act
from purerl.samplers.feeds import Feed, Fragments, Setup, seed
from purerl.samplers.fragments import Plan, RolloutBuffer, shared_block
from purerl.samplers.schedules import Group, together
from purerl.samplers.stepping import EnvError, Options, Saved, make_stepper, name, seeds_of
from purerl.samplers.workers import Job, WorkerError, Workers


class Limits(NamedTuple):
    """Of worker processes, as `parallel` takes them."""

    n_workers: int
    timeout: float = 60.0
    restarts: int = 3
    start_method: str = "forkserver"
    cores: Sequence[int] | None = None

    def check(self) -> None:
        """Raise a `ValueError` that names the field, its value and what is allowed."""
        if not 0.01 <= self.timeout < math.inf:
            raise ValueError(f"timeout = {self.timeout} is not a number of seconds of at least 0.01")
        if self.restarts < 0:
            raise ValueError(f"restarts = {self.restarts} is not at least 0")
        if self.cores is not None and len(self.cores) != self.n_workers:
            raise ValueError(f"cores = {self.cores} does not name one core for each of {self.n_workers} workers")


class WorkerPool:
    """The workers of a feed and the memory they share.

    Args:
        parts: the columns of each worker.
        closing: ends them, and whatever else the feed needs.
        acts: they act too.
    """

    def __init__(self, setup: Setup, parts: Sequence[range], limits: Limits, closing: ExitStack, acts: bool) -> None:
        self.setup, self._limits, self._restarts_left, self._parts = setup, limits, limits.restarts, parts
        block = shared_block(setup.plan, processes.context(limits.start_method))
        self.buffer = RolloutBuffer(setup.plan, block)
        seed(setup, self.buffer, 0)
        jobs = [
            Job(partial(_make_handler, setup.host, setup.policy if acts else None, setup.plan, part, setup.options, i), block)
            for i, part in enumerate(parts)
        ]
        names = [
            f"environments {part.start} to {part.stop - 1}" if len(part) > 1 else f"environment {part.start}" for part in parts
        ]

        def hung(i: int, heartbeat: int) -> str:
            return names[i] if heartbeat < 0 else name(self.buffer, parts[i], heartbeat % (setup.plan.n_seeds * len(parts[i])))

        self.workers = Workers(
            jobs, names, self.buffer.numpy["heartbeat"][0], hung, limits.timeout, limits.start_method, limits.cores
        )
        closing.callback(self.workers.close)
        self._close = closing.close

    def order(self, members: range, order: bytes, number: int = 0) -> None:
        """Give all of these workers one order."""
        for i in members:
            self.workers.send(i, order, number)

    def wait(self, members: range) -> None:
        """Wait until all of these workers have carried out their orders."""
        for i in members:
            self.workers.receive(i)

    def group(self, act: Callable[[int], None], members: range) -> Group:
        """Workers that step together what `act` acts for."""
        return Group(act, lambda t: self.order(members, b"s", t), lambda: self.wait(members))

    def feed(self, fill: Callable[[], None], params: list[Tensor]) -> Feed:
        """The feed of these workers."""
        return Feed(Fragments(self.setup, self.buffer, fill, self, params, self._close, self.revive, self.workers.kill))

    def reset(self) -> None:
        """As `Environments.reset`."""
        everyone = range(len(self.workers))
        self.order(everyone, b"r")
        self.wait(everyone)

    def save(self) -> Saved:
        """As `Environments.save`."""
        return dict(item for saved in self._ask(b"d", [b""] * len(self.workers)) for item in saved.items())

    def restore(self, saved: Saved) -> None:
        """As `Environments.restore`."""
        mine = [{place: one for place, one in saved.items() if place[1] in part} for part in self._parts]
        self._ask(b"l", [pickle.dumps(one) for one in mine])

    def _ask(self, order: bytes, data: Sequence[bytes]) -> list[Any]:
        """What each worker says to its order; nobody is at work afterwards."""
        sent, found, failed = [], [], None
        for i, one in enumerate(data):
            try:
                self.workers.send(i, order, 0, one)
                sent.append(i)
            except WorkerError as error:
                failed = error
        for i in sent:
            try:
                found.append(pickle.loads(self.workers.receive(i)))
            except WorkerError as error:
                failed = error
        if failed:
            raise failed
        for said in found:
            if isinstance(said, str):
                raise EnvError(said)
        return found

    def revive(self, error: WorkerError) -> None:
        """Replace the workers that died or hang; all other environments begin anew as well."""
        while True:
            if self.workers.killed:
                raise error
            if self._restarts_left == 0:
                raise WorkerError(f"{error}; restarts = {self._limits.restarts} allows no more") from None
            self._restarts_left -= 1
            warnings.warn(f"{error}; it is replaced, a fragment is lost, {self._restarts_left} restarts are left", stacklevel=6)
            try:
                return self.workers.replace_failed()
            except WorkerError as another:  # a new one died as well
                error = another


def _make_handler(
    host: envs.HostEnv,
    policy: Algorithm | Policy | None,
    plan: Plan,
    columns: range,
    options: Options,
    number: int,
    block: Any,
) -> tuple[Callable[[bytes, int, bytes], bytes | None], Callable[[], None]]:
    """In a worker: its environments, its policy if it has one, and what its orders mean."""
    buffer = RolloutBuffer(plan, block)
    install(seeded(seeds_of(buffer, columns)[0]))  # the fork server's generators are the same in every worker
    stepper = make_stepper(host, buffer, columns, options, buffer.numpy["heartbeat"][0][number : number + 1])
    act = make_act(policy, buffer, columns)[0] if policy is not None else None

    def fragment() -> None:
        assert act is not None
        together(Group(act, stepper.step, lambda: None), plan.n_steps)

    def told(f: Callable[[], Any]) -> bytes:
        """What `f()` gives, or what is wrong with an environment: the worker goes on."""
        try:
            return pickle.dumps(f())
        except EnvError as error:
            return pickle.dumps(str(error))

    orders: dict[bytes, Callable[[int, bytes], bytes | None]] = {
        b"s": lambda t, _: stepper.step(t),
        b"r": lambda *_: stepper.reset(),
        b"f": lambda *_: fragment(),
        b"d": lambda *_: told(stepper.save),
        b"l": lambda _, data: told(lambda: stepper.restore(pickle.loads(data))),
    }
    return lambda order, t, data: orders[order](t, data), stepper.close
