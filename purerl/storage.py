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

from purerl import compiling, tree

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


class _LargeZerosInFiles(TorchFunctionMode):
    """Under this, large tensors that `torch.zeros` makes on the CPU lie in files, which take no room before they are written; one
    that was not written, and is shown many times, is not copied either."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._files: dict[int, Any] = {}  # by the tensor's address

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and str(kwargs.get("device") or "cpu") == "cpu":
            without_data = func(*args, **{**kwargs, "device": "meta"})
            if without_data.nbytes >= LARGE:
                file = tempfile.NamedTemporaryFile(dir=self._folder)  # noqa: SIM115
                file.truncate(without_data.nbytes)
                x = _in_file(file.name, without_data)
                self._files[x.data_ptr()] = file
                return x
        if func is torch.Tensor.contiguous and not compiling.is_mapping() and self.unwritten(args[0]):
            return args[0]
        return func(*args, **kwargs)

    def made(self, x: Tensor) -> bool:
        """Whether it is one of these."""
        return x.data_ptr() in self._files

    def unwritten(self, x: Tensor) -> bool:
        """Whether it is one of these, and its file still without any data."""
        if not self.made(x):
            return False
        number = self._files[x.data_ptr()].fileno()
        os.fsync(number)
        try:
            os.lseek(number, 0, os.SEEK_DATA)
        except OSError:
            return True
        return False

    def close(self) -> None:
        """Let the files go with the tensors that lie in them."""
        for file in self._files.values():
            file.close()


def mapped(make: Callable[[], Any], folder: Path) -> Any:
    """The state that `make()` gives, with its `Donated` memory in files. Programs write into them, in place.

    Its zeros are never made in memory, so that a replay may be larger than that: `mapped(lambda: memory.init(None), folder)`. Other
    memory is copied into the files, and what has no data (`transforms.shapes`) is zero. They have no names and are gone with the
    last tensor that lies in them; what is to be kept is saved, as any state (`checkpoint.save`).

    Args:
        make: of a state on the CPU.
        folder: where the files lie; it is made if it is not there.

    Raises:
        RoomError: the disk has no room for them; nothing is taken then.
        ValueError: the memory lies on another device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_LargeZerosInFiles(folder)) as zeros:
        with zeros:
            leaves, structure = tree.flatten(make())
        marks = tree.donated(structure)
        large = [x for x, is_donated in zip(leaves, marks, strict=True) if is_donated]
        elsewhere = {str(x.device) for x in large} - {"cpu", "meta"}
        if elsewhere:
            raise ValueError(f"mapped: the memory lies on {', '.join(sorted(elsewhere))}; files can only stand for the CPU's")
        wanted, free = sum(x.nbytes for x in large), free_disk(folder)
        if wanted > free:
            raise RoomError(f"mapped: the memory takes {gigabytes(wanted)}, but the disk of {folder} has {gigabytes(free)} of room")

        def place(x: Tensor, is_donated: bool) -> Tensor:
            is_zero = x.is_meta or zeros.unwritten(x)
            if is_donated and x.numel():
                return _room(x, folder) if is_zero else _room(x, folder).copy_(x)
            if is_zero:
                return torch.zeros_like(x, device="cpu")
            return x.clone() if zeros.made(x) else x

        return tree.unflatten(structure, [place(x, is_donated) for x, is_donated in zip(leaves, marks, strict=True)])


def _room(x: Tensor, folder: Path) -> Tensor:
    """Zeros of the tensor's shape and dtype in a file of their own, which has no name any more."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, x.nbytes)  # or else a disk that others fill ends the process at some later write
        return _in_file(file.name, x)


def _in_file(name: str, x: Tensor) -> Tensor:
    """What a file holds, as a tensor of the shape and dtype of `x`."""
    return torch.from_file(name, shared=True, size=x.numel(), dtype=x.dtype).view(x.shape)
