"""Statistics of finished episodes, kept as state: the same numbers from any batch, whoever collected it."""

import torch
from tensordict import TensorClass
from torch import Tensor

from purerl.base import Batch
from purerl.losses.returns import linear_recurrence

WINDOW = 100


class Episodes(TensorClass):
    """The episodes under way, and the last 100 finished.

    Attributes:
        current_return: `[B]` float32, reward so far.
        current_length: `[B]` float32, steps so far.
        returns: `[100]` float32, a ring.
        lengths: `[100]` float32, a ring.
        count: `[]` int64, episodes finished so far.
    """

    current_return: Tensor
    current_length: Tensor
    returns: Tensor
    lengths: Tensor
    count: Tensor


def init_episodes(n_envs: int, device: torch.device | None = None) -> Episodes:
    """No episode yet."""

    def zeros(n: int) -> Tensor:
        return torch.zeros(n, device=device)

    return Episodes(
        current_return=zeros(n_envs),
        current_length=zeros(n_envs),
        returns=zeros(WINDOW),
        lengths=zeros(WINDOW),
        count=torch.zeros((), dtype=torch.int64, device=device),
    )


def record_episodes(episodes: Episodes, batch: Batch) -> Episodes:
    """Follow the returns and lengths through a batch `[T, B]`; the finished ones enter the ring in order of time."""
    done = batch.terminated | batch.truncated
    go_on = batch.valid.float()  # the step that only resets starts the sums anew
    sums = linear_recurrence(
        go_on[..., None],
        torch.stack([batch.reward * go_on, go_on], -1),
        torch.stack([episodes.current_return, episodes.current_length], -1),
    )
    returns, lengths = sums.unbind(-1)

    done = done.flatten()
    order = done.long().cumsum(0)
    kept = done & (order > order[-1] - WINDOW)
    slot = torch.where(kept, (episodes.count + order - 1) % WINDOW, WINDOW)

    def insert(ring: Tensor, new: Tensor) -> Tensor:
        spare = torch.cat([ring, ring[:1]])  # what is not kept lands in one slot too many
        return spare.scatter(0, slot, new.flatten())[:WINDOW]

    return Episodes(
        current_return=returns[-1],
        current_length=lengths[-1],
        returns=insert(episodes.returns, returns),
        lengths=insert(episodes.lengths, lengths),
        count=episodes.count + order[-1],
    )


def mean_return(episodes: Episodes) -> Tensor:
    """Mean return of the episodes in the window, `[...]`; NaN before the first has finished."""
    return _window_mean(episodes.returns, episodes.count)


def mean_length(episodes: Episodes) -> Tensor:
    """Mean length of the episodes in the window, `[...]`; NaN before the first has finished."""
    return _window_mean(episodes.lengths, episodes.count)


def _window_mean(ring: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, ring.sum(-1) / count.clamp(max=WINDOW), torch.nan)  # slots not yet filled hold zeros
