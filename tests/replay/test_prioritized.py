import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.histories import STACK, History
from replay.test_steps import ACTION, KINDS, seen

from purerl import SpentError, compile, random, tree, vmap
from purerl.replay import prioritized, sum_tree
from purerl.replay import steps as rp

ALPHA, BETA = torch.tensor(0.6), torch.tensor(0.4)


def start(kind, capacity, n_envs):
    observations, _, obs = KINDS[kind]
    ring = rp.init(obs, ACTION, capacity, n_envs, observations)
    return ring, prioritized.init(rp.n_slots_of(ring) * n_envs)


def add(kind, ring, index, batch, alpha=ALPHA):
    n_rows = len(ring.flags.memory["flags"])
    ring, added = rp.add(ring, batch, KINDS[kind][0])
    assert not set(added.rows.tolist()) & set(added.gone.tolist())  # each row is written once, with one weight
    return ring, prioritized.add(index, n_rows, added, alpha)


def fits(counts, expected):
    """Whether counts may be those of draws with these expectations: chi-square within five standard deviations."""
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    n = len(counts)
    return ((counts - expected) ** 2 / expected).sum() < n + 5 * (2 * n) ** 0.5 + 5


class Reference:
    """Priorities by (environment, step), without a ring or a tree."""

    def __init__(self, n_envs, n_slots, history):
        self.n_envs, self.n_slots, self.history = n_envs, n_slots, history
        self.priorities, self.highest = {}, 1.0

    def row(self, at):
        return at[1] % self.n_slots * self.n_envs + at[0]

    def add(self, past):
        held = past.transitions(self.n_slots - self.history, 1, 0.9)
        self.priorities = {at: self.priorities.get(at, self.highest) for at in held}

    def update(self, rows, errors):
        at = {self.row(at): at for at in self.priorities}
        for row in set(rows):
            largest = max(abs(error) for r, error in zip(rows, errors, strict=True) if r == row) + prioritized.FLOOR
            if row in at:
                self.priorities[at[row]] = largest
        self.highest = max(self.highest, max(map(abs, errors)) + prioritized.FLOOR)

    def weights(self, alpha):
        found = np.zeros(self.n_slots * self.n_envs)
        for at, priority in self.priorities.items():
            found[self.row(at)] = priority**alpha
        return found


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    n_envs=st.integers(1, 3),
    capacity=st.integers(8, 20),
    acts=st.lists(st.tuples(st.sampled_from(["add", "add", "update", "stale"]), st.integers(1, 4)), min_size=2, max_size=16),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    breaks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_samples_follow_an_exact_reference(kind, n_envs, capacity, acts, alpha, breaks, seed):
    draw, past = np.random.default_rng(seed), History(n_envs, seed)
    ring, index = start(kind, capacity * n_envs, n_envs)
    n_rows, power = rp.n_slots_of(ring) * n_envs, torch.tensor(alpha)
    exact = Reference(n_envs, rp.n_slots_of(ring), KINDS[kind][0].history)
    stale = torch.arange(2)
    for i, (what, size) in enumerate(acts):
        if what == "add":
            ring, index = add(kind, ring, index, seen(past.batch(size, breaks), kind), power)
            exact.add(past)
        else:
            drawn, _ = prioritized.sample(index, n_rows, random.key(i), 2 * size, BETA)
            rows = stale if what == "stale" else drawn  # those of an earlier draw, some of which may be gone
            errors = draw.normal(size=len(rows)) * 10 ** draw.uniform(-2, 1)
            stale = drawn
            index = prioritized.update(index, n_rows, rows, torch.tensor(errors, dtype=torch.float32), power)
            exact.update(rows.tolist(), errors.tolist())
        wanted = exact.weights(alpha)
        np.testing.assert_allclose(sum_tree.weights(index.tree, n_rows).numpy(), wanted, rtol=1e-5)
        np.testing.assert_allclose(float(index.highest), exact.highest, rtol=1e-6)
        assert int(index.n_valid) == len(exact.priorities)
    if not exact.priorities:
        return
    n, p = 4096, wanted / wanted.sum()
    rows, weights = prioritized.sample(index, n_rows, random.key(seed), n, BETA)
    counts = np.bincount(rows.numpy(), minlength=n_rows)
    assert fits(counts, n * p)
    importance = (len(exact.priorities) * p[rows.numpy()]) ** -float(BETA)
    np.testing.assert_allclose(weights.numpy(), importance / importance.max(), rtol=1e-4)
    if alpha == 0:
        assert fits(counts, n * (wanted > 0) / len(exact.priorities))
        assert (weights == 1).all()


def numbers(n_valid=4, n_rows=20):
    """Priorities whose first rows can be learnt from, the others not."""
    rows = torch.arange(n_valid)
    added = rp.Added(rows, torch.ones(n_valid, dtype=torch.bool), torch.tensor([n_valid]), torch.tensor(0))
    return prioritized.add(prioritized.init(n_rows), n_rows, added, torch.tensor(1.0)), n_rows


def test_importance_weights_by_hand():
    index, n = numbers()
    index = prioritized.update(index, n, torch.arange(4), torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.tensor(1.0))
    rows, weights = prioritized.sample(index, n, random.key(0), 10, torch.tensor(1.0))
    assert rows.tolist() == sorted(rows.tolist())
    assert torch.bincount(rows).tolist() == [1, 2, 3, 4]  # a part each, of ten equal ones
    torch.testing.assert_close(weights, torch.tensor([1.0, 1 / 2, 1 / 3, 1 / 4])[rows], rtol=1e-5, atol=0)  # 1/(4 p) over 2.5
    _, half = prioritized.sample(index, n, random.key(0), 10, torch.tensor(0.5))
    torch.testing.assert_close(half, weights**0.5)
    _, none = prioritized.sample(index, n, random.key(0), 10, torch.tensor(0.0))
    assert (none == 1).all()


def test_of_one_row_drawn_twice_the_largest_error_counts_and_new_ones_get_the_highest():
    index, n = numbers()
    rows, errors = torch.tensor([1, 2, 1, 1]), torch.tensor([0.5, 0.1, -7.0, 2.0])
    index = prioritized.update(index, n, rows, errors, torch.tensor(1.0))
    torch.testing.assert_close(sum_tree.weights(index.tree, n)[:4], torch.tensor([1.0, 7.0, 0.1, 1.0]), rtol=1e-4, atol=0)
    added = rp.Added(torch.tensor([4, 5]), torch.tensor([True, False]), torch.tensor([0]), torch.tensor(1))
    index = prioritized.add(index, n, added, torch.tensor(0.5))
    torch.testing.assert_close(sum_tree.weights(index.tree, n)[[0, 4, 5]], torch.tensor([0.0, 7.0**0.5, 0.0]), rtol=1e-4, atol=0)
    assert int(index.n_valid) == 4


def test_a_row_that_cannot_be_learnt_from_stays_away_after_an_update():
    index, n = numbers()
    index = prioritized.update(index, n, torch.tensor([4, 19, 0]), torch.tensor([100.0, 100.0, 1.0]), torch.tensor(1.0))
    assert (sum_tree.weights(index.tree, n)[4:] == 0).all()
    rows, _ = prioritized.sample(index, n, random.key(0), 1000, BETA)
    assert rows.max() == 3


def test_compiled_lanes_are_as_each_alone():
    def turn(ring, index, batch, key, errors):
        n_rows = len(ring.flags.memory["flags"])
        ring, added = rp.add(ring, batch, rp.frames(STACK))
        index = prioritized.add(index, n_rows, added, ALPHA)
        rows, weights = prioritized.sample(index, n_rows, key, 8, BETA)
        return ring, prioritized.update(index, n_rows, rows, errors, ALPHA), rows, weights

    pasts, errors = [History(2, seed) for seed in (1, 2)], random.normal(random.key(1), (2, 8))
    both, alone = vmap(lambda _: start("frames", 16, 2))(torch.zeros(2)), [start("frames", 16, 2) for _ in range(2)]
    mapped = compile(vmap(turn))
    for i in range(5):
        batches, keys = [seen(past.batch(4), "frames") for past in pasts], random.split(random.key(i), 2)
        *both, rows, weights = mapped(*both, tree.stack(batches), keys, errors)
        for lane in range(2):
            *alone[lane], its_rows, its_weights = turn(*alone[lane], batches[lane], keys[lane], errors[lane])
            found, wanted = tree.index((both, rows, weights), lane), (alone[lane], its_rows, its_weights)
            assert_trees_equal(tree.leaves(found), tree.leaves(wanted), rtol=1e-5, atol=1e-6)


def test_from_nothing_come_finite_numbers():
    rows, weights = prioritized.sample(prioritized.init(20), 20, random.key(0), 8, BETA)
    assert ((rows >= 0) & (rows < 20)).all()
    assert (weights == 1).all()


def test_what_is_not_donated_is_left_alone():
    index, n = numbers()
    highest, n_valid = index.highest.clone(), index.n_valid.clone()
    after = prioritized.update(index, n, torch.tensor([0]), torch.tensor([9.0]), ALPHA)
    assert torch.equal(index.highest, highest)
    assert torch.equal(index.n_valid, n_valid)
    with pytest.raises(SpentError):
        sum_tree.total(index.tree) + 0
    before = after.tree.memory["sums"].clone()
    prioritized.sample(after, n, random.key(0), 4, BETA)
    assert torch.equal(after.tree.memory["sums"], before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_error_that_is_not_finite_changes_nothing(bad):
    index, n = numbers()
    one = torch.tensor(1.0)
    index = prioritized.update(index, n, torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]), one)
    before, highest = sum_tree.weights(index.tree, n).clone(), index.highest.clone()
    index = prioritized.update(index, n, torch.tensor([1, 2, 2]), torch.tensor([bad, bad, 5.0]), one)
    after = sum_tree.weights(index.tree, n)
    assert after[1] == before[1]
    assert after[2] == pytest.approx(5.0, abs=1e-4)
    assert index.highest == pytest.approx(5.0, abs=1e-4)
    assert highest == pytest.approx(4.0, abs=1e-4)


def test_there_is_one_error_a_row():
    index, rows = prioritized.init(8), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match=r"^update: errors are \[3, 1\], but rows \[3\]; there is one error a row$"):
        prioritized.update(index, 8, rows, torch.ones(3, 1), ALPHA)
