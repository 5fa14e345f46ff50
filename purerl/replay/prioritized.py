"""Prioritized sampling of a replay's transitions, proportional variant (Schaul et al. 2016)."""

import torch
from tensordict import TensorClass
from torch import Tensor

from purerl import random
from purerl.donation import Donated
from purerl.replay import sum_tree
from purerl.replay.steps import Added

FLOOR = 1e-6  # what is added to a priority, so that no transition is never seen again


class Prioritized(TensorClass):
    """Priorities of a replay's rows, those that cannot be learnt from having none.

    Attributes:
        tree: over `priority ** alpha`. It is *Donated*.
        highest: `[]` float32, the highest priority so far, which a new transition gets.
        n_valid: `[]` int64, how many transitions can be learnt from.
    """

    tree: Donated
    highest: Tensor
    n_valid: Tensor


def init(n_rows: int, device: torch.device | None = None) -> Prioritized:
    """No transitions, of a replay with `n_rows`."""
    none = torch.zeros((), dtype=torch.int64, device=device)
    return Prioritized(tree=sum_tree.init(n_rows, device), highest=torch.ones((), device=device), n_valid=none)


def add(priorities: Prioritized, n_rows: int, added: Added, alpha: Tensor) -> Prioritized:
    """New transitions get the highest priority so far; those that are gone lose theirs. It *donates* the tree.

    Args:
        n_rows: of the replay.
        alpha: `[]` how much priorities count, 0 for not at all.
    """
    new = added.valid * priorities.highest**alpha
    rows, weights = torch.cat([added.gone, added.rows]), torch.cat([new.new_zeros(len(added.gone)), new])
    return Prioritized(
        tree=sum_tree.update(priorities.tree, n_rows, rows, weights),
        highest=priorities.highest.clone(),
        n_valid=priorities.n_valid + added.valid.sum() - added.n_gone,
    )


def sample(priorities: Prioritized, n_rows: int, key: Tensor, n: int, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one row of each of `n` equal parts of the sum of all priorities.

    Args:
        beta: `[]` how much of the bias is corrected, 1 for all of it.

    Returns:
        `[n]` int64 rows, and `[n]` importance weights `(N P(row)) ** -beta` over the largest among them (section 3.4);
        while there are no transitions, any rows and ones.
    """
    total = sum_tree.total(priorities.tree)
    part = (torch.arange(n, device=key.device) + random.uniform(key, (n,))) / n
    rows, weights = sum_tree.find(priorities.tree, n_rows, part * total)
    importance = (priorities.n_valid * weights / total) ** -beta
    return rows, torch.where(total > 0, importance / importance.max(), 1.0)


def update(priorities: Prioritized, n_rows: int, rows: Tensor, errors: Tensor, alpha: Tensor) -> Prioritized:
    """Give rows the absolute errors they were found with as priorities. It *donates* the tree.

    Args:
        rows: `[M]` as they were drawn; of one that was drawn several times, the largest error counts, and one that cannot be
            learnt from any more stays as it is.
        errors: `[M]` float32 of any sign; one that is not finite changes nothing.

    Raises:
        ValueError: there are not as many errors as rows.
    """
    if errors.shape != rows.shape:
        raise ValueError(f"update: errors are {list(errors.shape)}, but rows {list(rows.shape)}; there is one error a row")
    found = torch.where(errors.isfinite(), errors.abs() + FLOOR, 0.0)
    largest = torch.where(rows[:, None].int() == rows.int(), found, 0.0).amax(-1)
    before = sum_tree.weights(priorities.tree, n_rows)[rows]
    after = torch.where((before > 0) & (largest > 0), largest**alpha, before)
    return Prioritized(
        tree=sum_tree.update(priorities.tree, n_rows, rows, after),
        highest=torch.maximum(priorities.highest, found.max()),
        n_valid=priorities.n_valid.clone(),
    )
