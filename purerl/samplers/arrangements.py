"""The arrangements of processes and threads behind a feed; all of them give the same batches."""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from purerl import envs
from purerl.base import Algorithm, Policy
from purerl.envs.generators import undisturbed
from purerl.samplers.acting import make_act, make_device_act, side_by_side
from purerl.samplers.asynchronous import Asynchronous
from purerl.samplers.feeds import Buffered, Feed, Fragments, Setup, check_shape, closed_on_error, seed, set_up
from purerl.samplers.fragments import RolloutBuffer
from purerl.samplers.pool import Limits, WorkerPool
from purerl.samplers.schedules import Group, alternate, in_one_thread, take_turns, together
from purerl.samplers.stepping import Options, Stepper, Vector, make_stepper
from purerl.samplers.workers import WorkerError, context

WORTH_THREADS = 300e-6  # seconds of one tile's inference
WORTH_WORKERS = 150e-6  # seconds of a step of all environments
EnvLike = str | envs.HostEnv | Callable[[], gym.Env]


def serial(env: EnvLike, policy: Algorithm | Policy, n_envs: int, n_steps: int, key: Tensor, **options: Any) -> Feed:
    """Collect in this process, one environment after the other: for debugging, and for few cheap environments the fastest.

    Args:
        env: a Gymnasium id (`my_module:MyEnv-v0` imports the module), a function that makes an environment, or a `HostEnv`.
        policy: an algorithm or a policy, made for its spec.
        n_envs, n_steps: the batch is `[n_steps, n_envs]`.
        key: `[2]`, or `[S, 2]` for several seeds, each with `n_envs` environments of its own.
        options: `reset="wait"`: an environment whose episode ended waits for the next fragment; `"mid"` (default): its next step
            resets it. `decorrelate=n`: each environment begins with up to `n` random steps. `infos=(name, ...)`: what of an
            environment's info at the end of an episode goes into the episode's record.

    Raises:
        ValueError: an argument that is not allowed, no such environment, or other spaces than the policy was made for.
        EnvError: from the iterator, when an environment raises or returns what its spaces do not allow.
    """
    return _in_process(set_up(envs.host(env), policy, n_envs, n_steps, key, **options), make_stepper)


def native(
    env: "str | envs.HostEnv | gym.vector.VectorEnv | Callable[[int], gym.vector.VectorEnv]",
    policy: Algorithm | Policy,
    n_envs: int,
    n_steps: int,
    key: Tensor,
    *,
    batch_size: int | None = None,
    **options: Any,
) -> Feed:
    """Collect from a vector environment that brings threads of its own.

    Args:
        env: the id of an environment that has a vector implementation (`ALE/...`, or a `vector_entry_point`), a `VectorEnv` with
            NEXT_STEP autoreset, or a function that makes one of so many environments.
        policy, n_envs, n_steps, key, options: as `serial`; `reset="wait"` is not possible.
        batch_size: act for so many environments at a time, the first that are ready (ALE only, one seed). The batches are then no
            longer those of the other arrangements: which environments act together, and with which parameters those that are ahead
            at a batch's end, depends on timing.

    Raises:
        ValueError: as `serial`, and an environment without a vector implementation.
    """
    host = envs.vector_host(env)
    setup = set_up(host, policy, n_envs, n_steps, key, **options)
    make_vec, n = host.make_vec, setup.plan.n_envs * setup.plan.n_seeds
    assert make_vec is not None
    if batch_size is not None:
        if not host.spec.id.startswith("ALE/"):
            raise ValueError(f"batch_size = {batch_size} needs an environment with send and receive, which {host.spec.id} has not")
        if setup.plan.n_seeds > 1 or setup.options.decorrelate:
            raise ValueError(f"batch_size = {batch_size} is possible with one seed and without decorrelate only")
        if not 1 <= batch_size <= n:
            raise ValueError(f"batch_size = {batch_size} is not between 1 and n_envs = {n}")
        vec: Any = make_vec(n, cores(), batch_size=batch_size)  # type: ignore[call-arg]
        return Feed(Asynchronous(setup, vec, batch_size))

    def make(host: envs.HostEnv, buffer: RolloutBuffer, columns: range, options: Options, heartbeat: np.ndarray) -> Stepper:
        return Vector(make_vec(n, cores()), buffer, columns, options, heartbeat)

    return _in_process(setup, make)


def _in_process(setup: Setup, make: Callable[..., Stepper]) -> Feed:
    columns, buffer = range(setup.plan.n_envs), RolloutBuffer(setup.plan)
    seed(setup, buffer, 0)
    with closed_on_error() as closing:
        stepper = make(setup.host, buffer, columns, setup.options, buffer.numpy["heartbeat"][0])
        closing.callback(stepper.close)
        (act,), params = _actors(setup, buffer, [columns], closing)
        group = Group(act, stepper.step, lambda: None)
        fill = partial(in_one_thread, together, group, setup.plan.n_steps)
        return Feed(Fragments(setup, buffer, fill, stepper, params, closing.close, _no_workers))


def _no_workers(error: WorkerError) -> None:
    raise error


def _actors(
    setup: Setup, buffer: RolloutBuffer, groups: Sequence[range], closing: ExitStack
) -> tuple[list[Callable[[int], None]], list[Tensor]]:
    """For each group of environments what acts for it in this process, and the parameters that it reads."""
    if setup.keys.device.type != "cpu":
        params = [x.to(setup.keys.device) for x in buffer.torch["params"]]
        return [make_device_act(setup.policy, buffer, group, params) for group in groups], params
    acts = []
    for group in groups:
        act, parts = make_act(setup.policy, buffer, group)
        act(0)
        start = time.perf_counter()
        act(0)
        if cores() > 1 and len(parts) > 1 and (time.perf_counter() - start) / len(parts) > WORTH_THREADS:
            pool = ThreadPoolExecutor(cores(), "purerl acting", initializer=lambda: torch.set_num_threads(1))
            closing.callback(pool.shutdown)
            act = side_by_side(parts, pool)
        acts.append(act)
    return acts, buffer.torch["params"]


def parallel(
    env: EnvLike, policy: Algorithm | Policy, n_envs: int, n_steps: int, key: Tensor, *, n_workers: int = 0, **options: Any
) -> Feed:
    """Collect in worker processes that each step some of the environments and act for them with a copy of the policy.

    Args:
        env, policy, n_envs, n_steps, key: as `serial`.
        n_workers: processes; 0 for as many as there are cores.
        options: as `serial`, and `timeout` (60): seconds after which an environment hangs; `restarts` (3): how often dead workers
            are replaced, the fragment being lost, before it is an error; `start_method` ("forkserver", or "spawn"); `cores`: a core
            for each worker to be bound to (they are not bound).

    Raises:
        ValueError, EnvError: as `serial`.
        WorkerError: a worker died or hung once more than `restarts`.
    """
    setup, limits = _set_up_workers("parallel", env, policy, n_envs, n_steps, key, n_workers, options)
    parts = split(n_envs, limits.n_workers)
    with closed_on_error() as closing:
        pool = WorkerPool(setup, parts, limits, closing, acts=True)

        def fill() -> None:
            pool.order(range(len(parts)), b"f")
            pool.wait(range(len(parts)))

        return pool.feed(fill, pool.buffer.torch["params"])


def central(
    env: EnvLike, policy: Algorithm | Policy, n_envs: int, n_steps: int, key: Tensor, *, n_workers: int = 0, **options: Any
) -> Feed:
    """Collect from worker processes that only step: the actions of all environments are computed here, on the key's device.

    Args:
        env, policy, n_envs, n_steps, key, n_workers, options: as `parallel`.
    """
    setup, limits = _set_up_workers("central", env, policy, n_envs, n_steps, key, n_workers, options)
    with closed_on_error() as closing:
        pool = WorkerPool(setup, split(n_envs, limits.n_workers), limits, closing, acts=False)
        (act,), params = _actors(setup, pool.buffer, [range(n_envs)], closing)
        group = pool.group(act, range(limits.n_workers))
        return pool.feed(partial(in_one_thread, together, group, n_steps), params)


def alternating(
    env: EnvLike,
    policy: Algorithm | Policy,
    n_envs: int,
    n_steps: int,
    key: Tensor,
    *,
    n_workers: int = 0,
    overlap: bool = True,
    **options: Any,
) -> Feed:
    """As `central`, in two halves: one steps while the other's actions are computed.

    Args:
        env, policy, n_envs, n_steps, key, options: as `parallel`.
        n_workers: processes, an even number.
        overlap: a half steps on as soon as it has its actions; without, only one half steps at a time.
    """
    setup, limits = _set_up_workers("alternating", env, policy, n_envs, n_steps, key, n_workers, options)
    half, per_half = -(-n_envs // 2), limits.n_workers // 2
    halves = (range(half), range(half, n_envs))
    parts = [range(h.start + p.start, h.start + p.stop) for h in halves for p in split(len(h), per_half)]
    with closed_on_error() as closing:
        pool = WorkerPool(setup, parts, limits, closing, acts=False)
        acts, params = _actors(setup, pool.buffer, halves, closing)
        a, b = (pool.group(act, range(i * per_half, (i + 1) * per_half)) for i, act in enumerate(acts))
        schedule = alternate if overlap else take_turns
        return pool.feed(partial(in_one_thread, schedule, a, b, n_steps), params)


def buffered(
    env: EnvLike,
    policy: Algorithm | Policy,
    n_envs: int,
    n_steps: int,
    key: Tensor,
    *,
    of: Callable[..., Feed] = parallel,
    **options: Any,
) -> Feed:
    """Collect the next batch while the current one is learnt from: each batch but the first is acted with the state before the last
    one published, a staleness of exactly one update.

    Args:
        env, policy, n_envs, n_steps, key, options: as `of`.
        of: the arrangement behind it; `serial` for a thread of this process, with no workers.
    """
    source = of(env, policy, n_envs, n_steps, key, **options).release()
    if not isinstance(source, Fragments):
        source.close()
        raise ValueError("of: an asynchronous feed, or a buffered one, is buffered already")
    return Feed(Buffered(source))


KINDS: dict[str, Callable[..., Feed]] = {
    "serial": serial,
    "parallel": parallel,
    "central": central,
    "alternating": alternating,
    "native": native,
    "buffered": buffered,
}
WORKERLESS = ("serial", "native")


def make(
    env: EnvLike,
    policy: Algorithm | Policy,
    n_envs: int,
    n_steps: int,
    key: Tensor,
    sampler: str,
    n_workers: int = 0,
    timeout: float = 60.0,
    restarts: int = 3,
    **options: Any,
) -> Feed:
    """The feed of a sampler's name.

    Args:
        env, policy, n_envs, n_steps, key, options: as `serial`.
        n_workers, timeout, restarts: as `parallel`; `serial` and `native` have no workers.
    """
    if sampler not in WORKERLESS:
        options |= {"n_workers": n_workers, "timeout": timeout, "restarts": restarts}
    return KINDS[sampler](env, policy, n_envs, n_steps, key, **options)


def suggest(env: envs.HostEnv, n_envs: int, n_workers: int = 0) -> str:
    """The sampler that suits an environment on this machine; all of them give the same batches.

    Its own threads where it has them, workers where a step of all environments takes longer than to tell them, else this process.
    """
    if n_workers:
        return "parallel"
    if env.make is None:
        return "native"
    if cores() == 1 or n_envs == 1:
        return "serial"
    try:
        with undisturbed():
            each = _seconds_of_a_step(env.make)
    except envs.RAISED:
        return "serial"  # which says what is wrong with it
    return "parallel" if each * n_envs > WORTH_WORKERS else "serial"


def _seconds_of_a_step(make: Callable[[], gym.Env]) -> float:
    one, n = make(), 0
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
    return each


def count_workers(sampler: str, n_envs: int, n_workers: int) -> int:
    """How many workers share the environments: so many, or with 0 as many as there are cores.

    Raises:
        ValueError: they cannot be shared between so many.
    """
    groups = 2 if sampler == "alternating" else 1
    n_workers = n_workers or max(groups, min(cores(), n_envs) // groups * groups)
    if n_workers % groups:
        raise ValueError(f"n_workers = {n_workers} is not even, which two halves need")
    if not groups <= n_workers <= n_envs:
        raise ValueError(f"n_workers = {n_workers} is not between {groups} and n_envs = {n_envs}")
    return n_workers


def _set_up_workers(
    sampler: str,
    env: EnvLike,
    policy: Algorithm | Policy,
    n_envs: int,
    n_steps: int,
    key: Tensor,
    n_workers: int,
    options: dict[str, Any],
) -> tuple[Setup, Limits]:
    """Part the options of workers from those of the environments, and check them."""
    check_shape(n_envs, n_steps)
    n_workers = count_workers(sampler, n_envs, n_workers)
    limits = Limits(n_workers, **{name: x for name, x in options.items() if name in Limits._fields})
    limits.check()
    context(limits.start_method)  # the fork server loads while this process lays out the fragments
    rest = {name: x for name, x in options.items() if name not in Limits._fields}
    return set_up(envs.host(env), policy, n_envs, n_steps, key, n_workers=n_workers, **rest), limits


def split(n: int, parts: int) -> list[range]:
    """`n` columns in so many runs of nearly the same length."""
    ends = [round(i * n / parts) for i in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
