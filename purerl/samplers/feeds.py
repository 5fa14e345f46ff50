"""Feeds: endless iterators of batches, and the arrangements of processes behind them."""

import contextlib
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from purerl import envs, random, tree
from purerl.base import Algorithm, Batch, Policy
from purerl.rollout import draw_ahead
from purerl.samplers import workers as processes
from purerl.samplers.acting import make_act, make_device_act
from purerl.samplers.fragments import Plan, Rows, param_places, plan, shared_block
from purerl.samplers.stepping import Options, Stepper, Vector, make_stepper, name
from purerl.samplers.workers import Job, Workers, WorkerError
from purerl.spaces import check_spaces
from purerl.transforms import specialize, vmap

WORTH_WORKERS = 150e-6  # seconds of a step of all environments
EnvLike = str | envs.HostEnv | Callable[[], gym.Env]


class Feed(Protocol):
    """An endless iterator of batches `[T, B]`, or `[S, T, B]` for `S` seeds; a context manager that closes what it started.

    Attributes:
        lost: fragments that were thrown away because a worker died.
    """

    lost: int

    def publish(self, state: Any) -> None:
        """Act with this state (the algorithm's; `[S]` of them if there are several seeds) from the next batch on."""

    def __next__(self) -> Batch: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def close(self) -> None:
        """End every process and thread, close every environment, free the shared memory."""


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


class Setup(NamedTuple):
    """What every arrangement begins with."""

    host: envs.HostEnv
    policy: Algorithm | Policy
    keys: Tensor
    plan: Plan
    options: Options
    single: bool


def set_up(
    host: envs.HostEnv,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None,
    n_steps: int | None,
    *,
    n_workers: int = 1,
    reset: str = "mid",
    decorrelate: int = 0,
    infos: Sequence[str] = (),
) -> Setup:
    """Check what was asked for and lay out the fragments.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    check_spaces(host.spec, policy.spec)
    n_envs, n_steps = (_size(policy, which, x) for which, x in (("n_envs", n_envs), ("n_steps", n_steps)))
    if not 1 <= n_workers <= n_envs:
        raise ValueError(f"n_workers = {n_workers} is not between 1 and n_envs = {n_envs}")
    if reset not in ("mid", "wait"):
        raise ValueError(f"reset = {reset!r} is not one of mid, wait")
    if decorrelate < 0:
        raise ValueError(f"decorrelate = {decorrelate} is not at least 0")
    keys = key if key.ndim == 2 else key[None]
    laid_out = plan(policy, keys, n_envs, n_steps, n_workers, tuple(infos))
    return Setup(host, policy, keys, laid_out, Options(reset == "wait", decorrelate), key.ndim == 1)


def _size(policy: Algorithm | Policy, which: str, x: int | None) -> int:
    if x is None and not isinstance(policy, Algorithm):
        raise ValueError(f"{which} must be given for a policy without a config")
    x = getattr(policy.config, which) if x is None else x  # type: ignore[union-attr]
    if x < 1:
        raise ValueError(f"{which} = {x} is not at least 1")
    return x


class FragmentFeed:
    """A feed whose fragments are collected one after the other, each while its caller waits.

    Args:
        collect: fills the rows.
        reset: opens all environments' episodes, with the seeds in the rows.
        params: the packed parameters that acting reads.
        close: closes everything.
        revive: brings dead workers back, or raises.
        interrupt: makes a fragment under way in another thread fail soon.
    """

    def __init__(
        self,
        setup: Setup,
        rows: Rows,
        collect: Callable[[], None],
        reset: Callable[[], None],
        params: list[Tensor],
        close: Callable[[], None],
        revive: Callable[[WorkerError], None],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.lost = 0
        self.interrupt = interrupt
        self._setup, self._rows, self._collect, self._reset, self._revive = setup, rows, collect, reset, revive
        self._finalizer = weakref.finalize(self, close)
        self._places = param_places(setup.plan, params)
        self._published = self._opened = False
        self._fragment = 0
        n_steps, n_envs = setup.plan.n_steps, setup.plan.n_envs

        def draw(keys: Tensor, fragment: Tensor) -> Any:
            def one(key: Tensor) -> Any:
                return draw_ahead((setup.policy.draw,), random.fold_in(key, fragment), n_steps, n_envs)[0]

            return vmap(one)(keys)

        self._draw, _ = specialize(draw, setup.keys, torch.zeros((), dtype=torch.int64))

    def publish(self, state: Any) -> None:
        self.install(self.used(state))

    def used(self, state: Any) -> list[Tensor]:
        """The state's leaves that acting depends on."""
        leaves = tree.leaves(state)
        if len(leaves) != len(self._setup.plan.used):
            raise ValueError(f"state: {len(leaves)} tensors where the policy's init gives {len(self._setup.plan.used)}")
        return [x for x, is_used in zip(leaves, self._setup.plan.used, strict=True) if is_used]

    def install(self, used: Sequence[Tensor]) -> None:
        """Act with these leaves from the next fragment on."""
        with torch.no_grad():
            for place, x in zip(self._places, used, strict=True):
                place.copy_(x[None] if self._setup.single else x)
        self._published = True

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._finalizer.alive:
            raise RuntimeError("feed: it is closed")
        if not self._published:
            raise RuntimeError("feed: publish(state) before the first batch")
        try:
            while not self._attempt():
                self.lost += 1
        except BaseException:
            self.close()
            raise
        return self._rows.batch(self._setup.single, self._setup.keys.device)

    def _attempt(self) -> bool:
        """Collect a fragment; False if it was lost with a worker."""
        try:
            if not self._opened:
                self._seed()
                self._reset()
                self._rows.start()
                self._opened = True
            self._fragment += 1
            self._rows.begin()
            noise = self._draw([self._setup.keys, torch.tensor(self._fragment)])
            for place, x in zip(self._rows.torch["noise"], noise, strict=True):
                place[:, :, : self._setup.plan.n_envs] = x.transpose(0, 1)
            self._collect()
        except WorkerError as error:
            self._revive(error)
            self._opened = False
            return False
        return True

    def _seed(self) -> None:
        """Every environment has a seed of its own, whatever the number of the others; another one after a restart."""
        keys = torch.vmap(lambda key: random.fold_in(random.fold_in(key, 0), self.lost) if self.lost else random.fold_in(key, 0))(
            self._setup.keys
        )
        n_envs = self._setup.plan.n_envs
        seeds = torch.vmap(lambda key: random.randint(key, (n_envs,), 0, 1 << 31))(keys)
        self._rows.torch["seeds"][0][0, :, :n_envs] = seeds.cpu()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._finalizer()


def serial(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None = None,
    n_steps: int | None = None,
    **options: Any,
) -> FragmentFeed:
    """Collect in this process, one environment after the other: for debugging, and for few cheap environments the fastest.

    Args:
        env: a Gymnasium id (`my_module:MyEnv-v0` imports the module), a function that makes an environment, or a `HostEnv`.
        policy: an algorithm or a policy, made for its spec.
        key: `[2]`, or `[S, 2]` for several seeds, each with `n_envs` environments of its own.
        n_envs, n_steps: the batch `[n_steps, n_envs]`; those of the algorithm's config when omitted.
        options: `reset="wait"`: an environment whose episode ended waits for the next fragment; `"mid"` (default): it is reset by its
            next step. `decorrelate=n`: each environment begins with up to `n` random steps. `infos=(name, ...)`: what of an
            environment's info at the end of an episode goes into the episode's record.

    Raises:
        ValueError: an argument that is not allowed, no such environment, or other spaces than the policy was made for.
        EnvError: from the iterator, when an environment raises or returns what its spaces do not allow.
    """
    return _in_process(set_up(envs.host(env), policy, key, n_envs, n_steps, **options), make_stepper)


def native(
    env: "str | envs.HostEnv | gym.vector.VectorEnv | Callable[[int], gym.vector.VectorEnv]",
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None = None,
    n_steps: int | None = None,
    **options: Any,
) -> FragmentFeed:
    """Collect from a vector environment that brings threads of its own.

    Args:
        env: the id of an environment that has a vector implementation (`ALE/...`, or a `vector_entry_point`), a `VectorEnv` with NEXT_STEP
            autoreset, or a function that makes one of so many environments.
        policy, key, n_envs, n_steps, options: as `serial`; `reset="wait"` is not possible.
    """
    host = envs.vector_host(env)
    setup = set_up(host, policy, key, n_envs, n_steps, **options)
    make_vec = host.make_vec
    assert make_vec is not None

    def make(host: envs.HostEnv, rows: Rows, columns: range, options: Options, mark: np.ndarray) -> Stepper:
        return Vector(make_vec(rows.plan.n_seeds * len(columns), cores()), rows, columns, options, mark)

    return _in_process(setup, make)


def _in_process(setup: Setup, make: Callable[..., Stepper]) -> FragmentFeed:
    columns, rows = range(setup.plan.n_envs), Rows(setup.plan)
    stepper = make(setup.host, rows, columns, setup.options, rows.numpy["mark"][0])
    try:
        act, params = _actor(setup, rows, columns)
        group = Group(act, stepper.step, lambda: None)
        collect = partial(in_one_thread, together, group, setup.plan.n_steps)
        return FragmentFeed(setup, rows, collect, stepper.reset, params, stepper.close, _no_workers)
    except BaseException:
        stepper.close()
        raise


def _no_workers(error: WorkerError) -> None:
    raise error


def _actor(setup: Setup, rows: Rows, *parts: range) -> tuple[Any, list[Tensor]]:
    """For each part of the environments what acts for it in this process, and the parameters that it reads."""
    device = setup.keys.device
    if device.type == "cpu":
        acts, params = [make_act(setup.policy, rows, part) for part in parts], rows.torch["params"]
    else:
        params = [x.to(device) for x in rows.torch["params"]]
        acts = [make_device_act(setup.policy, rows, part, params) for part in parts]
    return (acts if len(acts) > 1 else acts[0]), params


def parallel(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None = None,
    n_steps: int | None = None,
    *,
    n_workers: int | None = None,
    **options: Any,
) -> FragmentFeed:
    """Collect in worker processes that each step some of the environments and act for them with a copy of the policy.

    Args:
        env, policy, key, n_envs, n_steps: as `serial`.
        n_workers: processes; as many as there are cores when omitted.
        options: as `serial`, and `timeout` (60): seconds after which an environment hangs; `restarts` (3): how often dead workers are
            replaced, the fragment being lost, before it is an error; `start_method` ("forkserver", or "spawn"); `cores`: for each worker a
            core to bind it to (they are not bound).

    Raises:
        ValueError, EnvError: as `serial`.
        WorkerError: a worker died or hung once more than `restarts`.
    """
    setup, limits = _set_up_workers(env, policy, key, n_envs, n_steps, n_workers, options)
    parts = split(setup.plan.n_envs, limits.n_workers)
    crew = Crew(setup, parts, limits, acts=True)

    def collect() -> None:
        crew.order(range(len(parts)), b"f")
        crew.wait(range(len(parts)))

    return crew.feed(collect, crew.rows.torch["params"])


def central(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None = None,
    n_steps: int | None = None,
    *,
    n_workers: int | None = None,
    **options: Any,
) -> FragmentFeed:
    """Collect from worker processes that only step: the actions of all environments are computed here, on the key's device.

    Args:
        env, policy, key, n_envs, n_steps, n_workers, options: as `parallel`.
    """
    setup, limits = _set_up_workers(env, policy, key, n_envs, n_steps, n_workers, options)
    crew = Crew(setup, split(setup.plan.n_envs, limits.n_workers), limits, acts=False)
    with crew.closed_on_error():
        act, params = _actor(setup, crew.rows, range(setup.plan.n_envs))
        group = crew.group(act, range(limits.n_workers))
        return crew.feed(partial(in_one_thread, together, group, setup.plan.n_steps), params)


def alternating(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None = None,
    n_steps: int | None = None,
    *,
    n_workers: int | None = None,
    overlap: bool = True,
    **options: Any,
) -> FragmentFeed:
    """As `central`, in two halves: one steps while the other's actions are computed.

    Args:
        env, policy, key, n_envs, n_steps, options: as `parallel`.
        n_workers: processes, an even number.
        overlap: a half steps on as soon as it has its actions; without, only one half steps at a time.
    """
    n_workers = n_workers or 2 * max(1, cores() // 2)
    if n_workers % 2:
        raise ValueError(f"n_workers = {n_workers} is not even, which two halves need")
    setup, limits = _set_up_workers(env, policy, key, n_envs, n_steps, n_workers, options)
    half, per_half = -(-setup.plan.n_envs // 2), n_workers // 2
    halves = (range(half), range(half, setup.plan.n_envs))
    parts = [range(h.start + p.start, h.start + p.stop) for h in halves for p in split(len(h), per_half)]
    crew = Crew(setup, parts, limits, acts=False)
    with crew.closed_on_error():
        acts, params = _actor(setup, crew.rows, *halves)
        a, b = (crew.group(act, range(i * per_half, (i + 1) * per_half)) for i, act in enumerate(acts))
        schedule = alternate if overlap else take_turns
        return crew.feed(partial(in_one_thread, schedule, a, b, setup.plan.n_steps), params)


class BufferedFeed:
    """A feed that collects the next fragment, in a thread, while its caller learns from the last one."""

    def __init__(self, inner: FragmentFeed) -> None:
        self._inner = inner
        self._pool = ThreadPoolExecutor(1, "purerl buffered")
        self._finalizer = weakref.finalize(self, _close_buffered, inner, self._pool)
        self._next: Future[Batch] | None = None
        self._used: list[Tensor] | None = None

    @property
    def lost(self) -> int:
        return self._inner.lost

    def publish(self, state: Any) -> None:
        self._used = [
            x.detach().clone() for x in self._inner.used(state)
        ]  # whoever updates parameters in place may do so meanwhile

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._finalizer.alive:
            raise RuntimeError("feed: it is closed")
        if self._used is None:
            raise RuntimeError("feed: publish(state) before the first batch")
        try:
            batch = (self._next or self._collect(self._used)).result()
            self._next = self._collect(self._used)
        except BaseException:
            self.close()
            raise
        return batch

    def _collect(self, used: list[Tensor]) -> "Future[Batch]":
        self._inner.install(used)
        return self._pool.submit(self._inner.__next__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._finalizer()


def _close_buffered(inner: FragmentFeed, pool: ThreadPoolExecutor) -> None:
    inner.interrupt()
    pool.shutdown()
    inner.close()


def buffered(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None = None,
    n_steps: int | None = None,
    *,
    of: Callable[..., FragmentFeed] = parallel,
    **options: Any,
) -> BufferedFeed:
    """Collect the next batch while the current one is learnt from: each batch but the first is acted with the state before the last one
    published, a staleness of exactly one update.

    Args:
        env, policy, key, n_envs, n_steps, options: as `of`.
        of: the arrangement behind it; `serial` for a thread of this process, with no workers.
    """
    return BufferedFeed(of(env, policy, key, n_envs, n_steps, **options))


KINDS: dict[str, Callable[..., Feed]] = {
    "serial": serial,
    "parallel": parallel,
    "central": central,
    "alternating": alternating,
    "native": native,
    "buffered": buffered,
}


def make(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    sampler: str,
    n_workers: int = 0,
    timeout: float = 60.0,
    restarts: int = 3,
    **options: Any,
) -> Feed:
    """The feed of a sampler's name, for batches of the algorithm's config.

    Args:
        n_workers: 0 for as many as there are cores; it, `timeout` and `restarts` are for samplers with workers.
        options: as `serial`.
    """
    if sampler in ("serial", "native"):
        return KINDS[sampler](env, policy, key, **options)
    return KINDS[sampler](env, policy, key, n_workers=n_workers or None, timeout=timeout, restarts=restarts, **options)


def suggest(env: envs.HostEnv, n_envs: int, n_workers: int = 0) -> str:
    """The sampler that suits an environment on this machine; all of them give the same batches.

    Its own threads where it has them, workers where a step of all environments takes longer than to tell them, else this process.
    """
    if env.make is None:
        return "native"
    if n_workers > 1:
        return "parallel"
    if cores() == 1 or n_envs == 1:
        return "serial"
    one, n = env.make(), 0
    one.reset(seed=0)
    one.action_space.seed(0)
    start = time.perf_counter()
    while n < 50 and time.perf_counter() - start < 0.2:
        n += 1
        _, _, terminated, truncated, _ = one.step(one.action_space.sample())
        if terminated or truncated:
            one.reset()
    each = (time.perf_counter() - start) / n
    one.close()
    return "parallel" if each * n_envs > WORTH_WORKERS else "serial"


class Limits(NamedTuple):
    """Of worker processes."""

    n_workers: int
    timeout: float
    restarts: int
    start_method: str
    cores: Sequence[int] | None


def _set_up_workers(
    env: EnvLike,
    policy: Algorithm | Policy,
    key: Tensor,
    n_envs: int | None,
    n_steps: int | None,
    n_workers: int | None,
    options: dict[str, Any],
) -> tuple[Setup, Limits]:
    """Take the options of workers from those of the environments, and check them."""
    timeout, restarts = options.pop("timeout", 60.0), options.pop("restarts", 3)
    method, pinned = options.pop("start_method", "forkserver"), options.pop("cores", None)
    size = _size(policy, "n_envs", n_envs)
    n_workers = min(cores(), size) if n_workers is None else n_workers
    if timeout <= 0:
        raise ValueError(f"timeout = {timeout} is not a number of seconds above 0")
    if restarts < 0:
        raise ValueError(f"restarts = {restarts} is not at least 0")
    if pinned is not None and len(pinned) != n_workers:
        raise ValueError(f"cores = {pinned} does not name one core for each of {n_workers} workers")
    processes.context(method)
    setup = set_up(envs.host(env), policy, key, n_envs, n_steps, n_workers=n_workers, **options)
    return setup, Limits(n_workers, timeout, restarts, method, pinned)


class Crew:
    """The workers of a feed and the memory they share.

    Args:
        parts: the columns of each worker.
        acts: they act too.
    """

    def __init__(self, setup: Setup, parts: Sequence[range], limits: Limits, acts: bool) -> None:
        self.setup, self._restarts_left, self._restarts = setup, limits.restarts, limits.restarts
        block = shared_block(setup.plan, processes.context(limits.start_method))
        self.rows = Rows(setup.plan, block)
        jobs = [
            Job(partial(_make_handler, setup.host, setup.policy if acts else None, setup.plan, part, setup.options, i), block)
            for i, part in enumerate(parts)
        ]
        names = [
            f"environments {part.start} to {part.stop - 1}" if len(part) > 1 else f"environment {part.start}" for part in parts
        ]

        def hung(i: int, mark: int) -> str:
            return names[i] if mark < 0 else name(self.rows, parts[i], mark % (setup.plan.n_seeds * len(parts[i])))

        self.workers = Workers(jobs, names, self.rows.numpy["mark"][0], hung, limits.timeout, limits.start_method, limits.cores)

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """End the workers if the block fails."""
        try:
            yield
        except BaseException:
            self.workers.close()
            raise

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

    def feed(self, collect: Callable[[], None], params: list[Tensor]) -> FragmentFeed:
        """The feed of these workers."""
        everyone = range(len(self.workers))

        def reset() -> None:
            self.order(everyone, b"r")
            self.wait(everyone)

        with self.closed_on_error():
            return FragmentFeed(self.setup, self.rows, collect, reset, params, self.workers.close, self.revive, self.workers.kill)

    def revive(self, error: WorkerError) -> None:
        """Replace the workers that died or hang; all other environments begin anew as well."""
        if self.workers.killed:
            raise error
        if self._restarts_left == 0:
            raise WorkerError(f"{error}; restarts = {self._restarts} allows no more") from None
        self._restarts_left -= 1
        warnings.warn(f"{error}; it is replaced, a fragment is lost, {self._restarts_left} restarts are left", stacklevel=5)
        self.workers.replace_failed()


def _make_handler(
    host: envs.HostEnv,
    policy: Algorithm | Policy | None,
    plan: Plan,
    columns: range,
    options: Options,
    number: int,
    block: Any,
) -> tuple[Callable[[bytes, int], None], Callable[[], None]]:
    """In a worker: its environments, its policy if it has one, and what its orders mean."""
    rows = Rows(plan, block)
    stepper = make_stepper(host, rows, columns, options, rows.numpy["mark"][0][number : number + 1])
    act = make_act(policy, rows, columns) if policy is not None else None

    def fragment() -> None:
        assert act is not None
        together(Group(act, stepper.step, lambda: None), plan.n_steps)

    orders: dict[bytes, Callable] = {b"s": stepper.step, b"r": lambda _: stepper.reset(), b"f": lambda _: fragment()}
    return lambda order, t: orders[order](t), stepper.close


def split(n: int, parts: int) -> list[range]:
    """`n` columns in so many runs of nearly the same length."""
    ends = [round(i * n / parts) for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
