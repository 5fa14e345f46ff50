"""Feeds: endless iterators of batches."""

import contextlib
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from purerl import envs, random, tree
from purerl.base import Algorithm, Batch, Policy
from purerl.episodes import check_infos
from purerl.rollout import draw_ahead
from purerl.samplers.fragments import LASTING, Plan, RolloutBuffer, param_places, plan
from purerl.samplers.stepping import EnvError, Environments, Options, check_numbers
from purerl.samplers.workers import WorkerError
from purerl.spaces import check_spaces
from purerl.transforms import specialize, vmap


class Source(Protocol):
    """Where a feed's batches come from.

    Attributes:
        lost: fragments that were thrown away because a worker died.
    """

    lost: int

    def publish(self, state: Any) -> None:
        """Act with this state from the next fragment on."""

    def collect(self) -> Batch:
        """The next batch."""

    def save(self) -> bytes:
        """Where it stands between two batches; as `Feed.save`."""

    def restore(self, data: bytes) -> None:
        """Go on from there; as `Feed.restore`."""

    def close(self) -> None:
        """End every process and thread, close every environment, free the shared memory."""


class Feed:
    """An endless iterator of batches `[T, B]`, or `[S, T, B]` for `S` seeds; a context manager that closes what it started.

    It is closed, too, when an exception comes out of it, when it is forgotten, and when the program ends.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._published = source, False
        self._finalizer = weakref.finalize(self, source.close)

    @property
    def lost(self) -> int:
        """Fragments that were thrown away because a worker died."""
        return self._source.lost

    def publish(self, state: Any) -> None:
        """Act with this state (the algorithm's; `[S]` of them if there are several seeds) from the next batch on."""
        self._source.publish(state)
        self._published = True

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._finalizer.alive:
            raise RuntimeError("feed: it is closed")
        if not self._published:
            raise RuntimeError("feed: publish(state) before the first batch")
        try:
            return self._source.collect()
        except StopIteration as error:  # it would end the caller's loop without a word
            self.close()
            raise RuntimeError("feed: something raised StopIteration while collecting") from error
        except BaseException:
            self.close()
            raise

    def save(self) -> bytes:
        """Where it stands between two batches, with the state of its environments, for another feed of the same arguments, whatever
        its arrangement and number of workers.

        Raises:
            EnvError: an environment cannot be saved, or the feed is collecting.
        """
        if not self._finalizer.alive:
            raise RuntimeError("feed: it is closed")
        return self._source.save()

    def restore(self, data: bytes) -> None:
        """Go on where a feed of the same arguments stood, with its environments. It runs what is in the data, as any pickle.

        Raises:
            EnvError: an environment cannot be restored; the feed is closed then.
        """
        if not self._finalizer.alive:
            raise RuntimeError("feed: it is closed")
        try:
            self._source.restore(data)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process and thread, close every environment, free the shared memory."""
        self._finalizer()

    def release(self) -> Source:
        """The source, which whoever takes it closes from now on."""
        self._finalizer.detach()
        return self._source


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
    n_envs: int,
    n_steps: int,
    key: Tensor,
    *,
    n_workers: int = 1,
    reset: str = "mid",
    decorrelate: int = 0,
    infos: Sequence[str] = (),
    **unknown: Any,
) -> Setup:
    """Check what was asked for and lay out the fragments.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    if unknown:
        name, value = next(iter(unknown.items()))
        worker = "timeout, restarts, start_method, cores"
        raise ValueError(
            f"{name} = {value!r} is no option; there are reset, decorrelate, infos, and where there are workers {worker}"
        )
    check_shape(n_envs, n_steps)
    check_key(key)
    check_infos(infos)
    check_spaces(host.spec, policy.spec)
    if reset not in ("mid", "wait"):
        raise ValueError(f"reset = {reset!r} is not one of mid, wait")
    if decorrelate < 0:
        raise ValueError(f"decorrelate = {decorrelate} is not at least 0")
    keys = key if key.ndim == 2 else key[None]
    laid_out = plan(policy, keys, n_envs, n_steps, n_workers, tuple(infos))
    return Setup(host, policy, keys, laid_out, Options(reset == "wait", decorrelate), key.ndim == 1)


def check_key(key: Any) -> None:
    """Raise a `ValueError` if this is neither a key nor several."""
    if not (isinstance(key, Tensor) and key.dtype == torch.int32 and key.ndim in (1, 2) and key.shape[-1] == 2 and len(key)):
        raise ValueError(f"key = {key!r} is not a key, int32 [2] or [S, 2]; make one of a number with random.key(0)")


def check_shape(n_envs: int, n_steps: int) -> None:
    """Raise a `ValueError` if a batch cannot be `[n_steps, n_envs]`."""
    for name, n in (("n_envs", n_envs), ("n_steps", n_steps)):
        if not isinstance(n, int):
            raise ValueError(f"{name} = {n!r} is not an int")
        if n < 1:
            raise ValueError(f"{name} = {n} is not at least 1")


class Published:
    """The parameters to act with.

    Args:
        params: where they are kept, packed.
    """

    def __init__(self, setup: Setup, params: list[Tensor]) -> None:
        self._setup, self._places = setup, param_places(setup.plan, params)
        lead = () if setup.single else (setup.plan.n_seeds,)
        self._shapes = [(*lead, *shape) for shape, _ in setup.plan.leaf_shapes]

    def used(self, state: Any) -> list[Tensor]:
        """The state's leaves that acting depends on.

        Raises:
            ValueError: they are not those of the state that the policy's `init` gives, one for each seed.
        """
        leaves = tree.leaves(self._setup.policy.acting(state))
        shapes = [tuple(x.shape) for x in leaves]
        if shapes != self._shapes:
            raise ValueError(f"state: acting needs tensors of the shapes {self._shapes}, but there are {shapes}")
        return [x for x, is_used in zip(leaves, self._setup.plan.used, strict=True) if is_used]

    def install(self, used: Sequence[Tensor]) -> None:
        """Keep these leaves in the place of the last ones."""
        with torch.no_grad():
            for place, x in zip(self._places, used, strict=True):
                place.copy_(x[None] if self._setup.single else x)


def make_draw(setup: Setup) -> Callable[[RolloutBuffer, int], None]:
    """`draw(buffer, fragment)`: a whole fragment's noise, which depends on the key and the fragment's number alone."""
    n_steps, n_envs, noise_of = setup.plan.n_steps, setup.plan.n_envs, setup.policy.draw

    def draw(keys: Tensor, fragment: Tensor) -> Any:
        return vmap(lambda key: draw_ahead((noise_of,), random.fold_in(key, fragment), n_steps, n_envs)[0])(keys)

    program, _ = specialize(draw, setup.keys, torch.zeros((), dtype=torch.int64))

    def fill(buffer: RolloutBuffer, fragment: int) -> None:
        noise = program([setup.keys, torch.tensor(fragment)])
        for place, x in zip(buffer.torch["noise"], noise, strict=True):
            place[:, :, :n_envs] = x.transpose(0, 1)

    return fill


def seed(setup: Setup, buffer: RolloutBuffer, attempt: int) -> None:
    """A seed of its own for every environment, whatever the number of the others; others after something was lost."""

    def one(key: Tensor) -> Tensor:
        key = random.fold_in(key, 0)
        return random.randint(random.fold_in(key, attempt) if attempt else key, (setup.plan.n_envs,), 0, 1 << 31)

    buffer.torch["seeds"][0][0, :, : setup.plan.n_envs] = torch.vmap(one)(setup.keys).cpu()


@contextlib.contextmanager
def closed_on_error() -> Iterator[contextlib.ExitStack]:
    """What is to be closed with a feed, or right away if it cannot be made."""
    closing = contextlib.ExitStack()
    try:
        yield closing
    except BaseException:
        closing.close()
        raise


class Fragments:
    """Fragments collected one after the other, each while its caller waits.

    Args:
        fill: collects into the buffer.
        environments: what is collected from.
        params: the packed parameters that acting reads.
        close: closes everything.
        revive: brings dead workers back, or raises.
        interrupt: makes a fragment under way in another thread fail soon.
    """

    def __init__(
        self,
        setup: Setup,
        buffer: RolloutBuffer,
        fill: Callable[[], None],
        environments: Environments,
        params: list[Tensor],
        close: Callable[[], None],
        revive: Callable[[WorkerError], None],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.lost = 0
        self.close, self.interrupt, self.published = close, interrupt, Published(setup, params)
        self._setup, self._buffer, self._fill, self._environments, self._revive = setup, buffer, fill, environments, revive
        self._draw = make_draw(setup)
        self._opened = False
        self._fragment = 0
        self._attempts = 0

    def publish(self, state: Any) -> None:
        self.published.install(self.published.used(state))

    def collect(self) -> Batch:
        while not self._attempt():
            self.lost += 1
            self._attempts += 1
        return self._buffer.batch(self._setup.single, self._setup.keys.device)

    def save(self) -> bytes:
        lasting = {name: [x[-1].copy() for x in self._buffer.numpy[name]] for name in LASTING}
        saved = self._environments.save() if self._opened else {}
        return pickle.dumps((self._opened, self._fragment, self._attempts, lasting, saved))

    def restore(self, data: bytes) -> None:
        self._opened, self._fragment, self._attempts, lasting, saved = pickle.loads(data)
        if self._opened:
            seed(self._setup, self._buffer, self._attempts)
            for name, leaves in lasting.items():
                for place, x in zip(self._buffer.numpy[name], leaves, strict=True):
                    place[-1] = x
            self._environments.restore(saved)

    def _attempt(self) -> bool:
        """Collect a fragment; False if it was lost with a worker."""
        try:
            if not self._opened:
                seed(self._setup, self._buffer, self._attempts)
                self._environments.reset()
                self._buffer.start(self._setup.policy.carry(self._setup.plan.n_envs))
                self._opened = True
            self._fragment += 1
            self._buffer.begin()
            self._draw(self._buffer, self._fragment)
            self._fill()
            check_numbers(self._buffer, self._setup.host.spec.observation_space)
        except WorkerError as error:
            self._revive(error)
            self._opened = False
            return False
        return True


class Buffered:
    """The next fragment is collected, in a thread, while the caller learns from the last one."""

    def __init__(self, inner: Fragments) -> None:
        self.lost = 0
        self._inner = inner
        self._pool = ThreadPoolExecutor(1, "purerl buffered")
        self._next: Future[Batch] | None = None
        self._used: list[Tensor] = []

    def publish(self, state: Any) -> None:
        # Whoever updates parameters in place may go on doing so.
        self._used = [x.detach().clone() for x in self._inner.published.used(state)]

    def collect(self) -> Batch:
        batch = (self._next or self._begin()).result()
        self.lost = self._inner.lost
        self._next = self._begin()
        return batch

    def save(self) -> bytes:
        raise EnvError("a buffered feed cannot be saved: it collects while its caller learns")

    def restore(self, data: bytes) -> None:
        self._inner.restore(data)

    def _begin(self) -> "Future[Batch]":
        self._inner.published.install(self._used)
        return self._pool.submit(self._inner.collect)

    def close(self) -> None:
        self._inner.interrupt()
        self._pool.shutdown()
        self._inner.close()
