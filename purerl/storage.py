"""Replays that are larger than memory: what is `Donated` lies in files, of which the system keeps in memory what is in use."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from purerl import tree

LARGE = 1 << 20  # bytes from which zeros are not made in memory first


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
        OSError: the disk has no room for them; nothing is taken then.
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
    wanted, free = sum(x.nbytes for x in large), shutil.disk_usage(folder).free
    if wanted > free:
        raise OSError(f"mapped: the memory takes {wanted / 1e9:,.2f} GB, but the disk of {folder} has {free / 1e9:,.2f} GB of room")
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
