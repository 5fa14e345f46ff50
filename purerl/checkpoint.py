"""One file for everything that changes: written whole or not at all, checked when read, never a pickle."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
import torch.utils._pytree as pytree
from torch import Tensor

VERSION = 3
KEEP = 2
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_TYPES = {name: dtype for dtype, name in _DTYPES.items()}


class CheckpointError(Exception):
    """A file that is not a whole checkpoint of this version."""


def _named_leaves(state: Any) -> dict[str, Tensor]:
    paths, _ = pytree.tree_flatten_with_path(state)
    return {pytree.keystr(path): leaf for path, leaf in paths}


def _in_order(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """As they lie in the file: those of wide numbers first, which keeps all of them aligned."""
    return sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))


def _describe(name: str, x: Tensor) -> bytes:
    return f"{name}{x.dtype}{tuple(x.shape)}".encode()


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, so that at any moment its name leads to the whole old or the whole new content."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            yield file
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment its name leads to the whole old or the whole new content."""
    with writing(path) as file:
        file.write(data)


def save(path: Path, parts: Sequence[Any], meta: dict[str, Any]) -> None:
    """Write a tree of tensors and a JSON-able `meta` to `path`, a safetensors file, one tensor after the other: no more memory is
    taken than for the largest of them that lies on another device.

    Args:
        parts: the tree; or several of one structure, whose leaves are joined along their first axis.

    Raises:
        OSError: the disk is full, or the folder not writable; what stood at `path` is untouched.
    """
    leaves, text = [_named_leaves(part) for part in parts], json.dumps(meta)
    whole = {name: _joined([part[name] for part in leaves]) for name in leaves[0]}
    unknown = "0" * hashlib.sha256().digest_size * 2  # until all has been written
    header: dict[str, Any] = {"__metadata__": {"sha256": unknown, "format": "purerl", "version": str(VERSION), "meta": text}}
    at = 0
    for name, x in _in_order(whole):
        header[name] = {"dtype": _DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256(text.encode())
    with writing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, x in _in_order(whole):
            digest.update(_describe(name, x))
            for part in leaves:
                data = _bytes(part[name])
                digest.update(data)
                file.write(data)
        file.seek(8 + encoded.index(unknown.encode()))
        file.write(digest.hexdigest().encode())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The tensor that the parts make, without data."""
    meta = [x.to("meta") for x in parts]
    return torch.cat(meta) if len(meta) > 1 else meta[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a whole checkpoint by name, and its meta.

    Raises:
        CheckpointError: truncated, altered, foreign, or of another version.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:  # which checks that it is all there
            about = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated, or not a checkpoint ({error})") from None
    if about.get("format") != "purerl":
        raise CheckpointError(f"{path}: a safetensors file, but not a purerl checkpoint")
    if about["version"] != str(VERSION):
        raise CheckpointError(f"{path}: version {about['version']}; this purerl reads version {VERSION}")
    tensors, digest = {}, hashlib.sha256(about["meta"].encode())
    with open(path, "rb") as content:  # into memory of our own: what safetensors gives lies in the file
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        del header["__metadata__"]
        for name, entry in header.items():
            x = tensors[name] = torch.empty(entry["shape"], dtype=_TYPES[entry["dtype"]])
            content.readinto(_bytes(x))
            digest.update(_describe(name, x))
            digest.update(_bytes(x))
    if about["sha256"] != digest.hexdigest():
        raise CheckpointError(f"{path}: the checksum does not match, the file was altered")
    return tensors, json.loads(about["meta"])


def load(path: Path, template: Any, device: torch.device | str = "cpu") -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint into the structure, shapes and dtypes of `template`, whose tensors need no data (`transforms.shapes`).

    Returns:
        The state, on the device, and the meta.

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
    return pytree.tree_unflatten([tensors[name].to(device) for name in wanted], spec), meta


def save_step(folder: Path, steps: int, parts: Sequence[Any], meta: dict[str, Any]) -> None:
    """`save` the checkpoint of a step count, then delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"step_{steps:012d}.safetensors", parts, meta)
    for old in _by_age(folder)[KEEP:]:
        old.unlink()


def clean(folder: Path) -> None:
    """Delete what processes that were killed while they wrote have left; the folder must be this process's alone (`locked`)."""
    for scratch in folder.glob(".*.safetensors.*"):
        scratch.unlink(missing_ok=True)


def load_newest(folder: Path, template: Any, device: torch.device | str = "cpu") -> tuple[Any, dict[str, Any]]:
    """`load` the newest whole checkpoint; a broken one is passed over with a warning.

    Raises:
        CheckpointError: there is none.
    """
    for path in _by_age(folder):
        try:
            return load(path, template, device)
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
