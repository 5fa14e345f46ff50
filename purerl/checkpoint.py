"""One file for everything that changes: written whole or not at all, checked when read, never a pickle."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.utils._pytree as pytree
from torch import Tensor

VERSION = 3
KEEP = 2


class CheckpointError(Exception):
    """A file that is not a whole checkpoint of this version."""


def _named_leaves(state: Any) -> dict[str, Tensor]:
    paths, _ = pytree.tree_flatten_with_path(state)
    return {pytree.keystr(path): leaf for path, leaf in paths}


def _digest(tensors: dict[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        digest.update(f"{name}{x.dtype}{tuple(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder alone, for the block, or until this process ends.

    Raises:
        CheckpointError: another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            whose = f"process {file.read()}, or one that its environments have started,"
            raise CheckpointError(f"{folder}: another process is training this run: {whose} holds {file.name}") from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment its name leads to the whole old or the whole new content."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, state: Any, meta: dict[str, Any]) -> None:
    """Write a tree of tensors and a JSON-able `meta` to `path`.

    Raises:
        OSError: the disk is full, or the folder not writable; what stood at `path` is untouched.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in _named_leaves(state).items()}
    text = json.dumps(meta)
    header = {"format": "purerl", "version": str(VERSION), "meta": text, "sha256": _digest(tensors, text)}
    write_atomically(path, safetensors.torch.save(tensors, header))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a whole checkpoint by name, and its meta.

    Raises:
        CheckpointError: truncated, altered, foreign, or of another version.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated, or not a checkpoint ({error})") from None
    if header.get("format") != "purerl":
        raise CheckpointError(f"{path}: a safetensors file, but not a purerl checkpoint")
    if header["version"] != str(VERSION):
        raise CheckpointError(f"{path}: version {header['version']}; this purerl reads version {VERSION}")
    if header["sha256"] != _digest(tensors, header["meta"]):
        raise CheckpointError(f"{path}: the checksum does not match, the file was altered")
    return tensors, json.loads(header["meta"])


def load(path: Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint into the structure, shapes and dtypes of `template`.

    Returns:
        The state, on the template's devices, and the meta.

    Raises:
        CheckpointError: truncated, altered, foreign, of another version, or of another structure.
    """
    tensors, meta = _read(path)
    wanted = _named_leaves(template)
    for name, x in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: {name} is missing")
        if tensors[name].shape != x.shape or tensors[name].dtype != x.dtype:
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise CheckpointError(f"{path}: {name} is {found}, but {x.dtype} {list(x.shape)} was expected")
    spec = pytree.tree_structure(template)
    return pytree.tree_unflatten([tensors[name].to(x.device) for name, x in wanted.items()], spec), meta


def save_step(folder: Path, steps: int, state: Any, meta: dict[str, Any]) -> None:
    """Write the checkpoint of a step count, then delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"step_{steps:012d}.safetensors", state, meta)
    for old in _by_age(folder)[KEEP:]:
        old.unlink()


def load_newest(folder: Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """Read the newest whole checkpoint; a broken one is passed over with a warning.

    Raises:
        CheckpointError: there is none.
    """
    for path in _by_age(folder):
        try:
            return load(path, template)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    raise CheckpointError(f"{folder}: no whole checkpoint")


def newest_meta(folder: Path) -> dict[str, Any]:
    """The meta of the newest whole checkpoint; empty if there is none."""
    for path in _by_age(folder):
        with contextlib.suppress(CheckpointError):
            return _read(path)[1]
    return {}


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((p for p in folder.glob("step_*.safetensors") if re.fullmatch(r"step_\d{12}", p.stem)), reverse=True)
