"""Processes that step environments: how they start, take orders, fail, and end."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, process
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch

from purerl.samplers.stepping import EnvError

ORDER = struct.Struct("=cqq")  # what to do, a number, and how many bytes follow
SIZE = struct.Struct("=q")
START_SECONDS = 300.0
GUARD = 'if __name__ == "__main__":'
START_METHODS = ("forkserver", "spawn")


class WorkerError(RuntimeError):
    """A worker process died or hung; the message names its environments."""


class Failed(NamedTuple):
    """What a worker says of an error."""

    error: str
    is_env: bool
    trace: str


def context(start_method: str = "forkserver") -> BaseContext:
    """Python's process context; the fork server, one for the life of this process, loads the heavy libraries once.

    Raises:
        ValueError: no such method.
        RuntimeError: a worker imports this script, which lacks the guard.
    """
    if start_method not in START_METHODS:
        raise ValueError(f"start_method = {start_method!r} is not one of {', '.join(START_METHODS)}")
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(f"this script starts workers while a worker imports it; put what it runs under: {GUARD}")
    found = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        found.set_forkserver_preload(["purerl.samplers.preload"])
        forkserver.ensure_running()  # it loads while this process prepares
    return found


class Surroundings(NamedTuple):
    """What a new process is to find as it is in this one: the fork server was started with another, earlier one's.

    Attributes:
        environ: the environment's variables.
        folder: the working folder, None if it is gone.
    """

    environ: dict[str, str]
    folder: str | None


def surroundings() -> Surroundings:
    """This process's, now."""
    try:
        return Surroundings(dict(os.environ), os.getcwd())
    except FileNotFoundError:
        return Surroundings(dict(os.environ), None)


@contextlib.contextmanager
def _main_that_can_be_imported() -> Iterator[None]:
    """A new process imports the main script; one that was piped into Python has the name of a file that does not exist."""
    main = vars(sys.modules["__main__"])
    path = main.get("__file__")
    gone = path is not None and not os.path.exists(path)
    if gone:
        del main["__file__"]
    try:
        yield
    finally:
        if gone:
            main["__file__"] = path


class Job:
    """A call on its way to another process: the function by value (cloudpickle), memory that processes share as it is.

    Args:
        make: the function.
        shared: its last arguments, which the process context knows how to share.
    """

    def __init__(self, make: Callable, *shared: Any) -> None:
        self._pickled, self._shared = cloudpickle.dumps(make), shared

    def __call__(self) -> Any:
        return pickle.loads(self._pickled)(*self._shared)


# A fork of the learner would take its workers for its own, and end them when it ends.
os.register_at_fork(after_in_child=lambda: process._children.clear())  # type: ignore[attr-defined]


class Workers:
    """Processes that each hold one handler and run it when told to.

    Args:
        jobs: for each worker what makes, in its process, its `handle(order, number, data)`, which may return bytes, and a function
            that closes it.
        names: what a user calls each worker's environments.
        heartbeat: `[n]` int64, shared: the call each worker is at; one that stays the same for `timeout` seconds hangs.
        hung: says what hangs from a worker's number and its heartbeat.
        timeout: seconds.
        cores: for each worker the core it is bound to; not bound when None.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        names: Sequence[str],
        heartbeat: np.ndarray,
        hung: Callable[[int, int], str],
        timeout: float,
        start_method: str,
        cores: Sequence[int] | None = None,
    ) -> None:
        self._context = context(start_method)
        self._jobs = list(jobs)
        self._names, self._heartbeat, self._hung, self._timeout, self._cores = names, heartbeat, hung, timeout, cores
        n = len(self._jobs)
        self._processes: list[Any] = [None] * n
        self._sockets: list[socket.socket | None] = [None] * n
        self._waiting = [False] * n
        self._failed: set[int] = set()
        self._ready = False
        self._owner = os.getpid()
        self.killed = False
        try:
            for i in range(n):
                self._start(i)
            for i in range(n):
                self.receive(i, START_SECONDS)
            self._ready = True
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._jobs)

    def _start(self, i: int) -> None:
        ours, theirs = socket.socketpair()
        try:
            core = None if self._cores is None else self._cores[i]
            self._sockets[i] = ours
            look = min(1.0, self._timeout / 2)  # how often a silent worker's heartbeat is looked at
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(look), int(look % 1 * 1e6)))
            self._processes[i] = self._context.Process(  # type: ignore[attr-defined]
                target=_serve,
                args=(theirs, self._jobs[i], core, surroundings()),
                name=f"purerl {self._names[i]}",
                daemon=True,
            )
            with _main_that_can_be_imported():
                self._processes[i].start()
            self._waiting[i] = True
        finally:
            theirs.close()

    def send(self, i: int, order: bytes, number: int = 0, data: bytes = b"") -> None:
        """Give a worker an order; `receive` waits for its end."""
        try:
            self._sockets[i].sendall(ORDER.pack(order, number, len(data)) + data)  # type: ignore[union-attr]
        except OSError:
            raise self._fail(i, self._died(i)) from None
        self._waiting[i] = True

    def receive(self, i: int, timeout: float | None = None) -> bytes:
        """Wait until a worker has carried out its order.

        Returns:
            What its handler did; nothing where that was None.

        Raises:
            EnvError: an environment raised, or returned what its spaces do not allow.
            WorkerError: it died, or the call it is at takes longer than the timeout.
        """
        since, heartbeat = time.monotonic(), int(self._heartbeat[i])
        timeout = timeout or self._timeout
        while True:
            try:
                answer = self._sockets[i].recv(1)  # type: ignore[union-attr]
            except BlockingIOError:
                if not self._processes[i].is_alive():  # a process that it started may keep its socket open
                    raise self._fail(i, self._died(i)) from None
                now, found = time.monotonic(), int(self._heartbeat[i])
                if found != heartbeat:
                    since, heartbeat = now, found
                elif now - since > timeout:
                    raise self._fail(i, f"{self._hung(i, heartbeat)} has not answered for {timeout:g} s") from None
                continue
            except OSError:
                answer = b""
            if answer == b"k":
                self._waiting[i] = False
                return b""
            if answer == b"v":
                data = self._read_answer(i)
                self._waiting[i] = False
                return data
            if not answer:
                raise self._fail(i, self._died(i))
            self._waiting[i] = False
            failed = self._read_failure(i)
            kind = EnvError if failed.is_env else RuntimeError
            raise kind(f"{failed.error}\n\nin worker {i}:\n{failed.trace}")

    def _read_answer(self, i: int) -> bytes:
        connection = self._sockets[i]
        assert connection is not None
        try:
            return _read(connection, SIZE.unpack(_read(connection, SIZE.size))[0])
        except OSError:
            raise self._fail(i, self._died(i)) from None

    def _read_failure(self, i: int) -> Failed:
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
            connection = self._sockets[i]
            assert connection is not None
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
            with connection.makefile("rb") as stream:
                return Failed(*pickle.load(stream))
        return Failed(self._died(i), False, "")

    def replace_failed(self) -> None:
        """Wait until no worker is at work, and start new ones in the place of those that died or hang."""
        for i in range(len(self)):
            if self._waiting[i]:
                with contextlib.suppress(WorkerError):
                    self.receive(i)
        for i in sorted(self._failed):
            self._end(i)
            self._start(i)
        for i in sorted(self._failed):
            self.receive(i, START_SECONDS)
        self._failed.clear()

    def _fail(self, i: int, message: str) -> WorkerError:
        self._waiting[i] = False
        self._failed.add(i)
        return WorkerError(message)

    def _died(self, i: int) -> str:
        worker = self._processes[i]
        worker.join(5)
        code = worker.exitcode
        reason = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with exit code {code}"
        advice = "" if self._ready else f" before it was ready; its error is above, and a script that starts workers needs: {GUARD}"
        return f"worker {i} ({self._names[i]}) {reason}{advice}"

    def _end(self, i: int) -> None:
        connection, worker = self._sockets[i], self._processes[i]
        self._waiting[i] = False
        if connection is not None:
            connection.close()  # which tells an idle worker to end
        self._sockets[i] = None
        if worker is not None:
            with contextlib.suppress(ValueError):
                _kill_group(worker)
                worker.join()
                worker.close()
        self._processes[i] = None

    def kill(self) -> None:
        """End all processes at once, whatever they are at; another thread that waits for one gets a `WorkerError`."""
        if os.getpid() != self._owner:
            return
        self.killed = True
        for worker in self._processes:
            if worker is not None:
                _kill_group(worker)

    def close(self) -> None:
        """End all processes: those that wait for an order close their environments first. A fork of the learner ends none."""
        if os.getpid() != self._owner:
            return
        for i, connection in enumerate(self._sockets):
            if connection is not None and not self._waiting[i]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 5.0
        for i, worker in enumerate(self._processes):
            if worker is not None and worker.pid is not None and not self._waiting[i] and i not in self._failed:
                worker.join(max(0.0, deadline - time.monotonic()))
        for i in range(len(self._jobs)):
            self._end(i)


def _kill_group(worker: Any) -> None:
    """End a worker and what its environments have started."""
    if worker.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or not its group's leader yet
            os.killpg(worker.pid, signal.SIGKILL)
    worker.kill()


def _serve(connection: socket.socket, job: Job, core: int | None, around: Surroundings) -> None:
    """A worker's life: make the handler, carry out orders, end when the other side does."""
    settle_in(around)
    if core is not None:
        os.sched_setaffinity(0, {core})
    close: Callable[[], None] = lambda: None  # noqa: E731
    try:
        handle, close = job()
        gc.collect()
        gc.freeze()
        connection.send(b"k")
        while head := connection.recv(ORDER.size, socket.MSG_WAITALL):
            order, number, size = ORDER.unpack(head)
            answer = handle(order, number, _read(connection, size))
            connection.sendall(b"k" if answer is None else b"v" + SIZE.pack(len(answer)) + answer)
    except OSError as error:
        if not isinstance(error, ConnectionError):
            _report(connection, error)
    except BaseException as error:
        _report(connection, error)
    finally:
        with contextlib.suppress(Exception):
            close()


def _read(connection: socket.socket, n: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: the other side has ended.
    """
    data, at = bytearray(n), 0
    while at < n:
        with contextlib.suppress(BlockingIOError):
            more = connection.recv_into(memoryview(data)[at:])
            if not more:
                raise ConnectionResetError
            at += more
    return bytes(data)


def settle_in(around: Surroundings) -> None:
    """How a process of ours begins: with one thread, deaf to Ctrl-C (the learner ends it), to live no longer than the learner.

    It leads a group of its own, with the processes that its environments may start, and ends with all of them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.setpgid(0, 0)
    process.current_process().daemon = False  # one of Python's daemons could start no processes
    os.environ.clear()
    os.environ.update(around.environ)
    if around.folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(around.folder)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _report(connection: socket.socket, error: BaseException) -> None:
    is_env = isinstance(error, EnvError)
    text = str(error) if is_env else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        connection.sendall(b"e" + pickle.dumps((text, is_env, traceback.format_exc())))


def _end_with(sentinel: int) -> None:
    """The learner may be killed while an environment steps, or hangs."""
    select.select([sentinel], [], [])
    os.killpg(0, signal.SIGKILL)
