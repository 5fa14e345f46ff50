"""How much room there is, and replays that are larger than memory: what is `Donated` lies in files, of which the system keeps in
memory what is in use."""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from purerl import tree

LARGE = 1 << 20  # bytes from which zeros are not made in memory first
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


class RoomError(OSError):
    """There is no room for what is wanted; the message says how much that is, and how much there is."""


def available_memory(device: str = "cpu") -> int:
    """Bytes that this process can still take on a device.

    On the CPU that is what Linux says is available, or less where a control group that the process is in has a limit; `sys.maxsize`
    on a system that does not say.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError):
        return min([1024 * _number(PROC / "meminfo", "MemAvailable:"), *_rooms_of_groups()])
    return sys.maxsize


def _rooms_of_groups() -> Iterator[int]:
    """How far the process's control groups of memory, and those around them, are from their limits."""
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        mount, limit, used, idle = (
            (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else (CGROUP, "memory.max", "memory.current", "inactive_file")
        )
        own = mount / name.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(mount):
                with contextlib.suppress(OSError, ValueError):  # not visible from here, or without a limit
                    room = int((group / limit).read_text()) - int((group / used).read_text())
                    yield max(0, room + _number(group / "memory.stat", idle))  # files that nobody has open give way


def _number(path: Path, name: str) -> int:
    """What a file of lines `name number` says.

    Raises:
        ValueError: it does not say it.
    """
    found = re.search(rf"^{name}\s+(\d+)", path.read_text(), re.M)
    if found is None:
        raise ValueError(f"{path}: says nothing of {name}")
    return int(found[1])


def free_disk(folder: Path) -> int:
    """Bytes that can still be written below a folder, which need not be there yet."""
    return shutil.disk_usage(there(folder)).free


def there(folder: Path) -> Path:
    """The folder, or the nearest one around it that there is."""
    return next(x for x in (folder.absolute(), *folder.absolute().parents) if x.exists())


def gigabytes(n: int) -> str:
    """A number of bytes as messages spell it."""
    return f"{n / 1e9:,.2f} GB"


class _LargeZerosWithoutData(TorchFunctionMode):
    """Under this, `torch.zeros` gives large tensors on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and str(kwargs.get("device") or "cpu") == "cpu":
            without_data = func(*args, **{**kwargs, "device": "meta"})
            if without_data.nbytes >= LARGE:
                return without_data
        return func(*args, **kwargs)


def mapped(make: Callable[[], Any], folder: Path) -> Any:
    """The state that `make()` gives, with its `Donated` memory in files. Programs write into them, in place.

    Its zeros are never made in memory, so that a replay may be larger than that: `mapped(lambda: memory.init(None), folder)`. Other
    memory is copied into the files. They have no names and are gone with the last tensor that lies in them; what is to be kept
    is saved, as any state (`checkpoint.save`).

    Args:
        make: of a state on the CPU.
        folder: where the files lie; it is made if it is not there.

    Raises:
        RoomError: the disk has no room for them; nothing is taken then.
        ValueError: the memory lies on another device.
    """
    with _LargeZerosWithoutData():
        leaves, structure = tree.flatten(make())
    marks = tree.donated(structure)
    large = [x for x, is_donated in zip(leaves, marks, strict=True) if is_donated]
    elsewhere = {str(x.device) for x in large} - {"cpu", "meta"}
    if elsewhere:
        raise ValueError(f"mapped: the memory lies on {', '.join(sorted(elsewhere))}; files can only stand for the CPU's")
    folder.mkdir(parents=True, exist_ok=True)
    wanted, free = sum(x.nbytes for x in large), free_disk(folder)
    if wanted > free:
        raise RoomError(f"mapped: the memory takes {gigabytes(wanted)}, but the disk of {folder} has {gigabytes(free)} of room")
    return tree.unflatten(
        structure, [_in_file(x, folder) if is_donated else _here(x) for x, is_donated in zip(leaves, marks, strict=True)]
    )


def _in_file(x: Tensor, folder: Path) -> Tensor:
    """The tensor in a file of its own, which has no name any more."""
    if not x.numel():
        return _here(x)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, x.nbytes)  # or else a disk that others fill ends the process at some later write
        copy = torch.from_file(file.name, shared=True, size=x.numel(), dtype=x.dtype).view(x.shape)
    return copy if x.is_meta else copy.copy_(x)


def _here(x: Tensor) -> Tensor:
    return torch.zeros_like(x, device="cpu") if x.is_meta else x
