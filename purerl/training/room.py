"""Whether there is room for what a run holds in `Donated` memory, such as a replay: told before any of it is taken."""

from pathlib import Path
from typing import NamedTuple

from purerl import checkpoint, random, tree
from purerl.base import Algorithm
from purerl.storage import RoomError, available_memory, free_disk, gigabytes, there
from purerl.transforms import shapes


class Held(NamedTuple):
    """What each lane of a run holds in donated memory.

    Attributes:
        size: bytes.
        most: the largest tensor of it, in words.
    """

    size: int
    most: str


def held(algo: Algorithm) -> Held:
    """What each lane holds: nothing is computed, and no memory is taken."""
    state = shapes(algo.init, random.key(0))
    marks = tree.donated(tree.structure(state))
    found = [(name, x) for (name, x), is_donated in zip(checkpoint.named(state).items(), marks, strict=True) if is_donated]
    name, largest = max(found, key=lambda item: item[1].nbytes, default=("", None))
    most = "" if largest is None else f"{name}, {str(largest.dtype).removeprefix('torch.')} {list(largest.shape)}"
    return Held(sum(x.nbytes for _, x in found), most)


def check_memory(what: Held, n_lanes: int, device: str, folder: str | None) -> None:
    """Raise a `RoomError` if a run's memory cannot be had on its device or, where it is to lie in files, in their folder.

    Several lanes on a device take one more while they are made.
    """
    if folder is None:
        wanted, free = what.size * (n_lanes + (n_lanes > 1)), available_memory(device)
        if wanted > free:
            raise RoomError(
                f"memory: {_lanes(n_lanes, what)}, take {gigabytes(wanted)}{' while they are made' if n_lanes > 1 else ''}, but "
                f"{device} has {gigabytes(free)} available; files take none of it: replay_folder"
            )
    elif what.size * n_lanes > free_disk(Path(folder)):
        raise RoomError(
            f"replay_folder: {_lanes(n_lanes, what)}, take {gigabytes(what.size * n_lanes)}, but the disk of {folder} has "
            f"{gigabytes(free_disk(Path(folder)))} of room"
        )


def check_checkpoints(what: Held, n_lanes: int, out: Path, folder: str | None) -> None:
    """Raise a `RoomError` if a run's checkpoints, which hold its memory, have no room in its folder, beside the memory itself where
    that lies in files on the same disk.

    What the folder's checkpoints have of it need not be written again.
    """
    saved = sum(path.stat().st_size for path in (out / "checkpoints" / checkpoint.CHUNKS).glob("*"))
    shares = folder is not None and there(Path(folder)).stat().st_dev == there(out).stat().st_dev
    wanted, free = what.size * n_lanes * (1 + shares) - saved, free_disk(out)
    if wanted > free:
        raise RoomError(
            f"out: checkpoints hold {_lanes(n_lanes, what)}, up to {gigabytes(wanted)}{' with replay_folder' if shares else ''}, "
            f"but the disk of {out} has {gigabytes(free)} of room; checkpoint_replay = no leaves it out"
        )


def _lanes(n: int, what: Held) -> str:
    return f"{n} lane{'s' * (n > 1)} of {what.most}, and what goes with it"
