"""Compiled programs on disk: a second process loads one without tracing anything.

A program is two files: `NAME.program`, which says what the results look like and which library computes them, and the library,
`DIGEST.so`, named by its content. What is known of a function that was only traced is one such file. All are written whole or not
at all. An entry that is damaged, or another's, is as good as none.
"""

import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import pickle
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._dynamo import guards

from purerl.compiling import identity

KEPT = 512  # entries; older ones are deleted


class Entry(NamedTuple):
    """A compiled program.

    Attributes:
        library: the path of its library.
        outcome: what is known of the function.
        constants: what is handed to it after the arguments.
    """

    library: Path
    outcome: Any
    constants: list[Tensor]


def folder() -> Path:
    """`$PURERL_CACHE`, or `purerl` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PURERL_CACHE") or Path(home) / "purerl")


def libraries() -> int:
    """How many compiled programs there are."""
    return sum(1 for _ in folder().glob("*.so"))


def name(*parts: Any) -> str | None:
    """The name of a program: the digest of what it is made of, on this machine and with these settings; None if that is unknown.

    It depends on this package's sources, torch, Python, the processor and torch's settings, and not on time, place or process.
    """
    settings = (
        torch.__version__,
        sys.version,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        _processor(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        sorted((key, value) for key, value in os.environ.items() if key.startswith(("TORCHINDUCTOR_", "TORCH_COMPILE"))),
    )
    try:
        return identity.of((settings, parts)).hex()[:40]
    except identity.Unknown:
        return None


@functools.cache
def _processor() -> str:
    """The model and the flags of the processor, as the system tells them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()


def save(name: str, library: Path, outcome: Any, constants: Sequence[Tensor]) -> None:
    """Keep a program under a name. A full disk, or a folder that cannot be written, keeps nothing."""
    with contextlib.suppress(OSError):
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        code = library.read_bytes()
        digest = hashlib.sha256(code).hexdigest()[:40]
        if not _is_whole(place / f"{digest}.so"):
            _write(place / f"{digest}.so", code)
        keep(name, (digest, outcome, [(x.numpy(), x.stride()) for x in constants]))


def load(name: str) -> Entry | None:
    """The program of a name, if it is there and whole."""
    found = kept(name)
    if found is None:
        return None
    digest, outcome, constants = found
    library = folder() / f"{digest}.so"
    if not _is_whole(library):
        return None
    return Entry(library, outcome, [torch.from_numpy(x).as_strided(x.shape, stride) for x, stride in constants])


def keep(name: str, value: Any) -> None:
    """Keep a value under a name, if the disk takes it."""
    with contextlib.suppress(OSError):
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        content = pickle.dumps((name, value))
        _write(place / f"{name}.program", hashlib.sha256(content).digest() + content)
        _prune(place)


def kept(name: str) -> Any | None:
    """The value of a name, if it is there and whole."""
    with contextlib.suppress(OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, TypeError):
        path = folder() / f"{name}.program"
        whole = path.read_bytes()
        if hashlib.sha256(whole[32:]).digest() != whole[:32]:
            return None
        found, value = pickle.loads(whole[32:])
        if found == name:
            os.utime(path)  # it is in use
            return value
    return None


@functools.cache
def run(library: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """What a library computes, of the arguments as a list that it empties."""
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(guards._torchinductor_pyobject_tensor_data_ptr)  # type: ignore[attr-defined]
    loader = importlib.machinery.ExtensionFileLoader("inductor_entry_cpp", str(library))
    spec = importlib.util.spec_from_loader("inductor_entry_cpp", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    entry, aoti = module.inductor_entry_cpp, torch._C._aoti

    def call(leaves: list[Tensor]) -> list[Tensor]:
        handles = aoti.unsafe_alloc_void_ptrs_from_tensors(leaves)
        leaves.clear()
        return aoti.alloc_tensors_by_stealing_from_void_ptrs(entry(handles))

    return call


def _is_whole(library: Path) -> bool:
    return library.exists() and hashlib.sha256(library.read_bytes()).hexdigest()[:40] == library.stem


def _write(path: Path, data: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _prune(place: Path) -> None:
    """Delete the oldest entries, and libraries that no entry names any more."""
    entries = sorted(place.glob("*.program"), key=lambda path: path.stat().st_mtime, reverse=True)
    if len(entries) <= KEPT:
        return
    for path in entries[KEPT // 2 :]:
        path.unlink(missing_ok=True)
    named = set()
    for path in entries[: KEPT // 2]:
        with contextlib.suppress(Exception):
            named.add(pickle.loads(path.read_bytes()[32:])[1][0])
    for path in place.glob("*.so"):
        if path.stem not in named:
            path.unlink(missing_ok=True)
