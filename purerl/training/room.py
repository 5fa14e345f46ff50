"""Whether there is room for what a run holds in `Donated` memory, such as a replay: told before any of it is taken."""

from pathlib import Path
from typing import NamedTuple

from purerl import checkpoint, random, tree
from purerl.base import Algorithm
from purerl.storage import RoomError, available_memory, free_disk, gigabytes
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


def check_memory(what: Held, n_lanes: int, device: str) -> None:
    """Raise a `RoomError` if a run's memory cannot be had on its device."""
    wanted, free = what.size * n_lanes, available_memory(device)
    if wanted > free:
        raise RoomError(
            f"memory: {_lanes(n_lanes, what)}, take {gigabytes(wanted)}, but {device} has {gigabytes(free)} available; "
            "fewer lanes or a smaller memory take less"
        )


def check_checkpoints(what: Held, n_lanes: int, out: Path) -> None:
    """Raise a `RoomError` if a run's checkpoints, which hold its memory, have no room in its folder.

    What the folder's checkpoints have of it need not be written again.
    """
    there = sum(path.stat().st_size for path in (out / "checkpoints" / checkpoint.CHUNKS).glob("*"))
    wanted, free = what.size * n_lanes - there, free_disk(out)
    if wanted > free:
        raise RoomError(
            f"out: checkpoints hold {_lanes(n_lanes, what)}, up to {gigabytes(wanted)}, but the disk of {out} has "
            f"{gigabytes(free)} of room; checkpoint_replay = no leaves it out"
        )


def _lanes(n: int, what: Held) -> str:
    return f"{n} lane{'s' * (n > 1)} of {what.most}, and what goes with it"
