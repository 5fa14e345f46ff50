"""Peers that need a Python environment of their own: child processes that work when they are told to."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.contest import Side, Stretch

SCRIPTS = Path(__file__).parent / "peers"


def python(name: str) -> Path:
    """The interpreter of an environment, whether it is there or not; without a name this one."""
    if not name:
        return Path(sys.executable)
    return Path(os.environ.get("PURERL_PEERS", ".nox/peers")).resolve() / name / "bin" / "python"


def installed(**sides: str) -> tuple[str, ...]:
    """The names of the sides whose environments are there, of those that are given with theirs."""
    return tuple(side for side, name in sides.items() if python(name).exists())


@contextmanager
def rival(name: str, script: str, *arguments: object) -> Iterator[Side]:
    """A script of `peers/` as a side; it starts when its first turn comes."""
    child: subprocess.Popen[str] | None = None

    def side() -> Stretch:
        nonlocal child
        if child is None:
            command = [str(python(name)), str(SCRIPTS / script), *map(str, arguments)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None
        assert child.stdout is not None
        print(file=child.stdin, flush=True)
        answer = child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{script}: it ended with {child.wait()}")
        return Stretch(*json.loads(answer))

    try:
        yield side
    finally:
        if child is not None:
            child.kill()
            child.wait()
