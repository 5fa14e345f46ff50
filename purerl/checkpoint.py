"""One file for everything that changes: written whole or not at all, checked when read, never a pickle."""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors
import torch
import torch.utils._pytree as pytree
from torch import Tensor

VERSION = 4
KEEP = 2
SHOWN = 5  # differences of structure that are named
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


class StructureError(CheckpointError):
    """A checkpoint of another structure than is wanted."""


def _named_leaves(state: Any) -> dict[str, Tensor]:
    paths, _ = pytree.tree_flatten_with_path(state)
    return {pytree.keystr(path): leaf for path, leaf in paths}


def _in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they lie in the file: those of wide numbers first, which keeps all of them aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))


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
    leaves = [_named_leaves(part) for part in parts]
    whole = _in_order({name: _joined([part[name] for part in leaves]) for name in leaves[0]})
    digests = dict.fromkeys(whole, hashlib.sha256().hexdigest())  # until all has been written
    with writing(path) as file:
        file.write(_header(whole, digests, meta))
        for name in whole:
            digest = hashlib.sha256()
            for part in leaves:
                data = _bytes(part[name])
                digest.update(data)
                file.write(data)
            digests[name] = digest.hexdigest()
        file.seek(0)
        file.write(_header(whole, digests, meta))


def _header(whole: dict[str, Tensor], digests: dict[str, str], meta: dict[str, Any]) -> bytes:
    """What stands before the tensors: as many bytes whatever the digests."""
    about = {"format": "purerl", "version": str(VERSION), "meta": json.dumps(meta), "digests": json.dumps(digests)}
    tensors, at = {}, 0
    for name, x in whole.items():
        tensors[name] = {"dtype": _DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    encoded = json.dumps({"__metadata__": {**about, "sha256": _digest(about, tensors)}, **tensors}).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _digest(about: dict[str, str], tensors: dict[str, Any]) -> str:
    """Of the head of a file."""
    return hashlib.sha256(json.dumps([about, tensors], sort_keys=True).encode()).hexdigest()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The tensor that the parts make, without data."""
    meta = [x.to("meta") for x in parts]
    return torch.cat(meta) if len(meta) > 1 else meta[0]


class _Head(NamedTuple):
    """What a file says of its tensors by name, in the order in which they lie there, of which digests they are, where the first one
    begins, and the meta."""

    tensors: dict[str, Any]
    digests: dict[str, str]
    start: int
    meta: dict[str, Any]


def _read_head(path: Path) -> _Head:
    """Read the head of a checkpoint, and check it, but not what the tensors hold.

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
    with open(path, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        tensors = json.loads(content.read(length))
    del tensors["__metadata__"]
    if about.pop("sha256") != _digest(about, tensors):
        raise CheckpointError(f"{path}: the checksum does not match, the file was altered")
    return _Head(tensors, json.loads(about["digests"]), 8 + length, json.loads(about["meta"]))


def _read(path: Path, head: _Head, names: Container[str]) -> dict[str, Tensor]:
    """These tensors, and no others.

    Raises:
        CheckpointError: altered.
    """
    found = {}
    with open(path, "rb") as content:  # into memory of our own: what safetensors gives lies in the file
        for name, entry in head.tensors.items():
            if name in names:
                x = found[name] = torch.empty(entry["shape"], dtype=_TYPES[entry["dtype"]])
                content.seek(head.start + entry["data_offsets"][0])
                content.readinto(_bytes(x))
                if hashlib.sha256(_bytes(x)).hexdigest() != head.digests[name]:
                    raise CheckpointError(f"{path}: the checksum of {_spelt(name)} does not match, the file was altered")
    return found


def load(
    path: Path, template: Any, device: torch.device | str = "cpu", part: Callable[[Any], Any] = lambda state: state
) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint into the structure, shapes and dtypes of `template`, whose tensors need no data (`transforms.shapes`).

    Args:
        part: picks what is needed of the state. Other tensors are not read and stay the template's, unless what it gives are not
            tensors of the state itself.

    Returns:
        The state, on the device, and the meta.

    Raises:
        CheckpointError: truncated, altered, foreign, or of another version.
        StructureError: of another structure.
    """
    head, wanted = _read_head(path), _named_leaves(template)
    _check_structure(path, head, wanted)
    picked = {id(x) for x in pytree.tree_leaves(part(template))}
    needed = {name for name, x in wanted.items() if id(x) in picked}
    if not picked <= {id(x) for x in wanted.values()}:
        needed = set(wanted)
    tensors = _read(path, head, needed)
    leaves = [tensors[name].to(device) if name in needed else x for name, x in wanted.items()]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(template)), head.meta


def _check_structure(path: Path, head: _Head, wanted: dict[str, Tensor]) -> None:
    """Raise a `StructureError` that says in what a file's tensors differ from those that are wanted."""
    different = [f"it has no {_spelt(name)}" for name in wanted if name not in head.tensors]
    different += [f"nothing is called {_spelt(name)} any more" for name in head.tensors if name not in wanted]
    for name, x in wanted.items():
        entry, kind = head.tensors.get(name), f"{_DTYPES[x.dtype]} {list(x.shape)}"
        if entry and f"{entry['dtype']} {entry['shape']}" != kind:
            different.append(f"{_spelt(name)} is {entry['dtype']} {entry['shape']}, not {kind}")
    if different:
        more = f"; and {len(different) - SHOWN} others" if len(different) > SHOWN else ""
        raise StructureError(
            f"{path}: its state is not the one of the program, whose code has changed since: {'; '.join(different[:SHOWN])}{more}"
        )


def _spelt(name: str) -> str:
    """A leaf's name, `['learner']['key']`, as people write it: `learner.key`."""
    return ".".join(re.findall(r"[^\[\]']+", name))


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


def load_newest(
    folder: Path, template: Any, device: torch.device | str = "cpu", part: Callable[[Any], Any] = lambda state: state
) -> tuple[Any, dict[str, Any]]:
    """`load` the newest whole checkpoint; a broken one is passed over with a warning.

    Raises:
        StructureError: it is of another structure.
        CheckpointError: there is none.
    """
    for path in _by_age(folder):
        try:
            return load(path, template, device, part)
        except StructureError:  # as those before are
            raise
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    raise CheckpointError(f"{folder}: no whole checkpoint")


def newest_meta(folder: Path) -> dict[str, Any]:
    """The meta of the newest checkpoint whose head is whole, empty if there is none: what its tensors hold is not looked at."""
    for path in _by_age(folder):
        with contextlib.suppress(CheckpointError):
            return _read_head(path).meta
    return {}


def newest_is_whole(folder: Path) -> bool:
    """Whether the newest checkpoint holds what was saved: all of it is looked at, where it lies."""
    try:
        path = _by_age(folder)[0]
        head = _read_head(path)
    except (IndexError, CheckpointError):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as data:
        places = {name: [head.start + at for at in entry["data_offsets"]] for name, entry in head.tensors.items()}
        return all(hashlib.sha256(data[a:b]).hexdigest() == head.digests[name] for name, (a, b) in places.items())


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((p for p in folder.glob("step_*.safetensors") if re.fullmatch(r"step_\d{12}", p.stem)), reverse=True)
