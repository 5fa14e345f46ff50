"""Records of finished episodes, kept as state: the same numbers from any batch, whoever collected it."""

from collections.abc import Sequence

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl.base import Batch
from purerl.losses.returns import linear_recurrence

WINDOW = 100
SUMS = ("Return", "Length", "NonzeroRewards", "DiscountedReturn")
TOLD = ("reward", "game_start", "game_end")  # of games, in a batch's `episode`; all else there are infos


class Episodes(TensorClass):
    """The episodes under way, and the last 100 finished.

    Attributes:
        current: `[B]` float32 each: `Return`, `Length`, `NonzeroRewards` and `DiscountedReturn` so far.
        discount: `[B]` float32, the next reward's.
        finished: `[100]` float32 each, rings of the same and of the environment's infos that are kept.
        count: `[]` int64, episodes finished so far.
        gamma: `[]` float32, of `DiscountedReturn`.
    """

    current: TensorDict
    discount: Tensor
    finished: TensorDict
    count: Tensor
    gamma: Tensor


def check_infos(infos: Sequence[str]) -> None:
    """Refuse names of infos that would stand for something else in the records, or twice.

    Raises:
        ValueError: naming it.
    """
    for name in infos:
        if name in (*SUMS, *TOLD):
            raise ValueError(f"infos = {name!r} is reserved for the records' own figures ({', '.join((*SUMS, *TOLD))})")
        if list(infos).count(name) > 1:
            raise ValueError(f"infos = {name!r} is named twice")


def init_episodes(
    n_envs: int, gamma: float | Tensor = 1.0, infos: Sequence[str] = (), device: torch.device | None = None
) -> Episodes:
    """No episode yet."""
    return Episodes(
        current=TensorDict({name: torch.zeros(n_envs, device=device) for name in SUMS}),
        discount=torch.ones(n_envs, device=device),
        finished=TensorDict({name: torch.zeros(WINDOW, device=device) for name in (*SUMS, *infos)}),
        count=torch.zeros((), dtype=torch.int64, device=device),
        gamma=torch.ones((), device=device) * gamma,
    )


def record_episodes(episodes: Episodes, batch: Batch) -> Episodes:
    """Follow the episodes through a batch `[T, B]`; the finished ones enter the rings in order of time.

    Where the batch tells of games (`batch.episode`), those are followed: a clipped reward or a lost life is the learner's affair.
    """
    told: dict[str, Tensor] = batch.episode.to_dict()
    reward, game_start = told.pop("reward", batch.reward), told.pop("game_start", batch.inputs.first)
    game_end = told.pop("game_end", batch.terminated | batch.truncated)

    counts = batch.valid.float()
    go_on = (~game_start).float()
    decay = torch.where(batch.valid, episodes.gamma.expand_as(reward), torch.ones_like(reward))
    discounts = linear_recurrence(go_on * decay, game_start * decay, episodes.discount)  # after each step
    discount = torch.where(game_start, 1.0, torch.cat([episodes.discount[None], discounts[:-1]]))
    increments = torch.stack([reward, torch.ones_like(reward), (reward != 0).float(), discount * reward], -1) * counts[..., None]
    start = torch.stack([episodes.current[name] for name in SUMS], -1)
    sums = linear_recurrence(go_on[..., None], increments, start)

    game_end = game_end.flatten()
    order = game_end.long().cumsum(0)
    kept = game_end & (order > order[-1] - WINDOW)
    slot = torch.where(kept, (episodes.count + order - 1) % WINDOW, WINDOW)

    def insert(ring: Tensor, new: Tensor) -> Tensor:
        spare = torch.cat([ring, ring[:1]])  # what is not kept lands in one slot too many
        return spare.scatter(0, slot, new.flatten())[:WINDOW]

    new = {**dict(zip(SUMS, sums.unbind(-1), strict=True)), **told}
    return Episodes(
        current=TensorDict(dict(zip(SUMS, sums[-1].unbind(-1), strict=True))),
        discount=discounts[-1],
        finished=TensorDict({name: insert(episodes.finished[name], x) for name, x in new.items()}),
        count=episodes.count + order[-1],
        gamma=episodes.gamma,
    )


def averages(episodes: Episodes) -> dict[str, Tensor]:
    """The mean of each record over the episodes in the window, `[...]`; NaN before the first has finished."""
    count = episodes.count
    filled = count.clamp(max=WINDOW)  # slots not yet filled hold zeros
    rings: dict[str, Tensor] = episodes.finished.to_dict()
    return {name: torch.where(count > 0, ring.sum(-1) / filled, torch.nan) for name, ring in rings.items()}


def mean_return(episodes: Episodes) -> Tensor:
    """Mean return of the episodes in the window, `[...]`; NaN before the first has finished."""
    return averages(episodes)["Return"]


def mean_length(episodes: Episodes) -> Tensor:
    """Mean length of the episodes in the window, `[...]`; NaN before the first has finished."""
    return averages(episodes)["Length"]
