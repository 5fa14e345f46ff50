"""Everything that changes, written whole or not at all, checked when read, never a pickle, unless somebody else gives it as bytes.

A checkpoint is one file. In a run's folder its large tensors, such as a replay's, lie beside it instead, in chunks that are files
of their own, each called by the digest of what it holds: one that is there already is not written again, so that a save costs what
is new since the one before. A checkpoint is written when all of its chunks are, and a chunk is deleted when no checkpoint names it:
at any moment every checkpoint there is has all of its chunks.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import safetensors
import torch
import torch.utils._pytree as pytree
from torch import Tensor

VERSION = 5
KEEP = 2
CHUNK = 1 << 22  # bytes; a tensor that has fewer lies in the checkpoint itself
CHUNKS = "chunks"
BYTES = "bytes of "  # how the names of tensors begin that are bytes of the meta
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
T = TypeVar("T")
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


def _flat(x: Tensor) -> Tensor:
    """Its bytes, where they lie."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def _bytes(x: Tensor) -> memoryview:
    return _flat(x).cpu().numpy().data


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


def save(path: Path, parts: Sequence[Any], meta: dict[str, Any], chunked: bool = False) -> None:
    """Write a tree of tensors and a JSON-able `meta` to `path`, a safetensors file, one tensor after the other: no more memory is
    taken than for the largest of them that lies on another device.

    Args:
        parts: the tree; or several of one structure, whose leaves are joined along their first axis.
        meta: what JSON can hold; and bytes, which are kept as a tensor.
        chunked: large tensors lie in chunks beside the file.

    Raises:
        OSError: the disk is full, or the folder not writable; what stood at `path` is untouched.
    """
    named_parts = [_named_leaves(part) for part in parts]
    leaves = {name: [part[name] for part in named_parts] for name in named_parts[0]}
    for name in [name for name, x in meta.items() if isinstance(x, bytes)]:
        leaves[BYTES + name] = [torch.frombuffer(bytearray(meta[name]), dtype=torch.uint8)]
    meta = {name: x for name, x in meta.items() if not isinstance(x, bytes)}
    whole = _in_order({name: _joined(x) for name, x in leaves.items()})
    apart = {}
    for name in [name for name, x in whole.items() if chunked and x.nbytes >= CHUNK]:
        x, chunks = whole.pop(name), _write_chunks(path.parent / CHUNKS, leaves[name])
        apart[name] = {"dtype": _DTYPES[x.dtype], "shape": list(x.shape), "bytes": CHUNK, "chunks": chunks}
    digests = dict.fromkeys(whole, hashlib.sha256().hexdigest())  # until all has been written
    with writing(path) as file:
        file.write(_header(whole, digests, apart, meta))
        for name in whole:
            digest = hashlib.sha256()
            for x in leaves[name]:
                data = _bytes(x)
                digest.update(data)
                file.write(data)
            digests[name] = digest.hexdigest()
        file.seek(0)
        file.write(_header(whole, digests, apart, meta))


def _write_chunks(folder: Path, parts: Sequence[Tensor]) -> list[str]:
    """Write what the tensor that the parts make holds, but for the chunks that are there, and name them all in order."""
    folder.mkdir(exist_ok=True)
    return [_write_chunk(folder, pieces) for pieces in _cut(parts)]


def _cut(parts: Sequence[Tensor]) -> Iterator[list[memoryview]]:
    """What the parts hold, one after the other, in chunks: of each the pieces that lie in it, without a copy of more than them."""
    flat = [_flat(x) for x in parts]
    *starts, total = itertools.accumulate(map(len, flat), initial=0)
    for at in range(0, total, CHUNK):
        places = [slice(max(at - start, 0), max(at + CHUNK - start, 0)) for start in starts]
        yield [_bytes(x[place]) for x, place in zip(flat, places, strict=True)]


def _write_chunk(folder: Path, pieces: Sequence[memoryview]) -> str:
    """Write a chunk, unless it is there, and name it."""
    digest = hashlib.sha256()
    for data in pieces:
        digest.update(data)
    path = folder / digest.hexdigest()
    if not path.exists() or path.stat().st_size != sum(map(len, pieces)):
        with writing(path) as file:
            for data in pieces:
                file.write(data)
    return path.name


def _header(whole: dict[str, Tensor], digests: dict[str, str], apart: dict[str, Any], meta: dict[str, Any]) -> bytes:
    """What stands before the tensors: as many bytes whatever the digests."""
    about = {"format": "purerl", "version": str(VERSION), "meta": json.dumps(meta)}
    about |= {"digests": json.dumps(digests), "apart": json.dumps(apart)}
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
    """What a file says of its tensors by name, the digests of those that lie in it, where the first of these begins, the meta."""

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
    tensors |= json.loads(about["apart"])
    return _Head(tensors, json.loads(about["digests"]), 8 + length, json.loads(about["meta"]))


class _Piece(NamedTuple):
    """A piece of a tensor: which file holds it, from where on, how many bytes, and their digest."""

    file: Path
    at: int
    size: int
    digest: str


def _pieces(path: Path, head: _Head, name: str) -> list[_Piece]:
    """The pieces of a tensor, in order."""
    entry = head.tensors[name]
    if "chunks" not in entry:
        begin, end = entry["data_offsets"]
        return [_Piece(path, head.start + begin, end - begin, head.digests[name])]
    size, n = entry["bytes"], math.prod(entry["shape"]) * _TYPES[entry["dtype"]].itemsize
    return [_Piece(path.parent / CHUNKS / digest, 0, min(size, n - i * size), digest) for i, digest in enumerate(entry["chunks"])]


def _all_pieces(path: Path, head: _Head) -> set[_Piece]:
    """The pieces of all tensors, each once."""
    return {piece for name in head.tensors for piece in _pieces(path, head, name)}


def _is_whole(piece: _Piece) -> bool:
    return _read_piece(piece, memoryview(bytearray(piece.size)))


def _read_piece(piece: _Piece, memory: memoryview) -> bool:
    """Read a piece into memory of its size, and say whether it is whole."""
    with contextlib.suppress(FileNotFoundError), open(piece.file, "rb") as content:
        content.seek(piece.at)
        return content.readinto(memory) == piece.size and hashlib.sha256(memory).hexdigest() == piece.digest
    return False


def _read(path: Path, head: _Head, places: Mapping[str, Tensor]) -> None:
    """Read these tensors, which are contiguous, and no others.

    Raises:
        CheckpointError: altered.
    """
    for name, x in places.items():
        at = 0
        for piece in _pieces(path, head, name):
            place = x.view(-1).view(torch.uint8)[at : at + piece.size]
            memory = place if place.is_cpu else torch.empty_like(place, device="cpu")
            if not _read_piece(piece, _bytes(memory)):
                where = "the file was altered" if piece.file == path else f"{piece.file} was altered, or is gone"
                raise CheckpointError(f"{path}: the checksum of {_spelt(name)} does not match, {where}")
            if not place.is_cpu:
                place.copy_(memory)
            at += piece.size


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
    places = {name: torch.empty(x.shape, dtype=x.dtype, device=device) for name, x in wanted.items() if name in needed}
    _read(path, head, places)
    leaves = [places.get(name, x) for name, x in wanted.items()]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(template)), _meta(path, head)


def _meta(path: Path, head: _Head) -> dict[str, Any]:
    """The meta, with the bytes in it."""
    kept = {name: torch.empty(entry["shape"], dtype=torch.uint8) for name, entry in head.tensors.items() if name.startswith(BYTES)}
    _read(path, head, kept)
    return {**head.meta, **{name.removeprefix(BYTES): bytes(_bytes(x)) for name, x in kept.items()}}


def load_into(path: Path, state: Any) -> dict[str, Any]:
    """Read a checkpoint into the tensors of a state, where they lie; those without data are left out.

    Returns:
        The meta.

    Raises:
        CheckpointError, StructureError: as `load`; after the former a part may be read.
    """
    head, wanted = _read_head(path), _named_leaves(state)
    _check_structure(path, head, wanted)
    _read(path, head, {name: x for name, x in wanted.items() if not x.is_meta})
    return _meta(path, head)


def _check_structure(path: Path, head: _Head, wanted: dict[str, Tensor]) -> None:
    """Raise a `StructureError` that says in what a file's tensors differ from those that are wanted."""
    tensors = {name: entry for name, entry in head.tensors.items() if not name.startswith(BYTES)}
    found = {_spelt(name): f"{entry['dtype']} {entry['shape']}" for name, entry in tensors.items()}
    different = differences(found, kinds({_spelt(name): x for name, x in wanted.items()}))
    if different:
        raise StructureError(f"{path}: its state is not the one of the program, whose code has changed since: {different}")


def named(state: Any) -> dict[str, Tensor]:
    """The tensors of a tree by their names as messages spell them, such as `learner.key`."""
    return {_spelt(name): x for name, x in _named_leaves(state).items()}


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The dtype and shape of each tensor, in words."""
    return {name: f"{_DTYPES[x.dtype]} {list(x.shape)}" for name, x in tensors.items()}


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """In what the `kinds` of tensors differ from those that are wanted, in words; empty if they do not."""
    different = [f"it has no {name}" for name in wanted if name not in found]
    different += [f"nothing is called {name} any more" for name in found if name not in wanted]
    different += [f"{name} is {found[name]}, not {kind}" for name, kind in wanted.items() if found.get(name, kind) != kind]
    more = f"; and {len(different) - SHOWN} others" if len(different) > SHOWN else ""
    return "; ".join(different[:SHOWN]) + more


def _spelt(name: str) -> str:
    """A leaf's name, `['learner']['key']`, as people write it: `learner.key`."""
    return ".".join(re.findall(r"[^\[\]']+", name))


def save_step(folder: Path, steps: int, parts: Sequence[Any], meta: dict[str, Any]) -> None:
    """`save` the checkpoint of a step count, then delete all but the newest two, and what only those named.

    Raises:
        OSError: as `save`; nothing of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save(folder / f"step_{steps:012d}.safetensors", parts, meta, chunked=True)
        for old in _by_age(folder)[KEEP:]:
            old.unlink()
    finally:
        _sweep(folder)


def _sweep(folder: Path) -> None:
    """Delete the chunks that no checkpoint names; none of them while there is a checkpoint that cannot be read."""
    with contextlib.suppress(CheckpointError):
        heads = [_read_head(path) for path in _by_age(folder)]
        named = {digest for head in heads for entry in head.tensors.values() for digest in entry.get("chunks", ())}
        for chunk in (folder / CHUNKS).glob("*"):
            if chunk.name not in named:
                chunk.unlink()


def clean(folder: Path, steps: int) -> None:
    """Delete what processes that were killed while they wrote have left, and of checkpoints of more than so many steps, which were
    passed over as broken, the damaged chunks, which would be taken for some that need not be written. The folder must be this
    process's alone (`locked`)."""
    for scratch in folder.glob(".*.safetensors.*"):
        scratch.unlink(missing_ok=True)
    for path in _by_age(folder):
        if int(path.stem.removeprefix("step_")) > steps:
            with contextlib.suppress(CheckpointError):
                for piece in _all_pieces(path, _read_head(path)):
                    if piece.file != path and not _is_whole(piece):
                        piece.file.unlink(missing_ok=True)
    _sweep(folder)


def load_newest(
    folder: Path, template: Any, device: torch.device | str = "cpu", part: Callable[[Any], Any] = lambda state: state
) -> tuple[Any, dict[str, Any]]:
    """`load` the newest whole checkpoint, as `newest` does."""
    return newest(folder, lambda path: load(path, template, device, part))


def newest(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in the newest whole checkpoint; a broken one is passed over with a warning.

    Raises:
        StructureError: it is of another structure.
        CheckpointError: there is none.
    """
    for path in _by_age(folder):
        try:
            return read(path)
        except StructureError:  # as those before are
            raise
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    raise CheckpointError(f"{folder}: no whole checkpoint")


def newest_meta(folder: Path) -> dict[str, Any]:
    """The meta of the newest checkpoint whose head is whole, empty if there is none: what its tensors hold, the meta's bytes among
    them, is not looked at."""
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
    return all(map(_is_whole, _all_pieces(path, head)))


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((p for p in folder.glob("step_*.safetensors") if re.fullmatch(r"step_\d{12}", p.stem)), reverse=True)
