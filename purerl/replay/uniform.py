"""Uniform sampling of a replay's transitions: every one that can be learnt from is as likely as any other."""

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import random
from purerl.donation import Donated
from purerl.replay.steps import Added
from purerl.transforms import write


class Uniform(TensorClass):
    """The rows of the transitions that can be learnt from, in the order of time: a ring of its own, without gaps.

    Attributes:
        rows: `[2 N]` int32. It is *Donated*.
        start, end: `[]` int64, how many were ever taken out and put in; those from `start` to `end` are there.
    """

    rows: Donated
    start: Tensor
    end: Tensor


def init(n_rows: int, device: torch.device | None = None) -> Uniform:
    """No transitions, of a replay with `n_rows`."""
    none = torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.zeros(2 * n_rows, dtype=torch.int32, device=device)
    return Uniform(rows=Donated(memory=TensorDict(rows=rows)), start=none, end=none.clone())


def add(index: Uniform, added: Added) -> Uniform:
    """Put in what has become known, and take out what is gone. It *donates* the index."""
    n = len(index.rows.memory["rows"])
    n_valid = added.valid.sum()
    # the others go behind the end, where the next ones are put
    place = index.end + torch.where(added.valid, added.valid.cumsum(0) - 1, n_valid + (~added.valid).cumsum(0) - 1)
    return Uniform(
        rows=write(index.rows, place % n, added.rows.to(torch.int32)),
        start=index.start + added.n_gone,
        end=index.end + n_valid,
    )


def sample(index: Uniform, key: Tensor, n: int) -> Tensor:
    """`[n]` int64 rows, drawn with replacement; any ones while there are none."""
    words = random.bits(key, (n,)).long() & 0xFFFFFFFF
    place = index.start + ((words * (index.end - index.start)) >> 32)
    return index.rows.memory["rows"][place % len(index.rows.memory["rows"])].long()
