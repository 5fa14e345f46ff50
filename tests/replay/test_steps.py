import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.histories import SIZE, STACK, History
from tensordict import TensorDict

from purerl import SpentError, compile, random, tree, vmap
from purerl.replay import steps as rp
from purerl.replay import uniform

ACTION = torch.zeros((), dtype=torch.int64)
KINDS = {
    "whole": (rp.whole(), lambda obs: obs, TensorDict(x=torch.zeros(1), image=torch.zeros(STACK, SIZE, SIZE, dtype=torch.uint8))),
    "frames": (rp.frames(STACK), lambda obs: obs["image"], torch.zeros(STACK, SIZE, SIZE, dtype=torch.uint8)),
}


def seen(batch, kind):
    return tree.replace(batch, inputs=tree.replace(batch.inputs, obs=KINDS[kind][1](batch.inputs.obs)))


def start(kind, capacity, n_envs):
    observations, _, obs = KINDS[kind]
    ring = rp.init(obs, ACTION, capacity, n_envs, observations)
    return ring, uniform.init(rp.n_slots_of(ring) * n_envs)


def add(kind, ring, index, batch):
    ring, added = rp.add(ring, batch, KINDS[kind][0])
    return ring, uniform.add(index, added)


def held(index):
    """The rows in the index, by hand."""
    places = torch.arange(int(index.start), int(index.end)) % len(index.rows.memory["rows"])
    return index.rows.memory["rows"][places].long()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    n=st.integers(1, 4),
    n_envs=st.integers(1, 3),
    capacity=st.integers(8, 20),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    breaks=st.booleans(),
    repeats=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_transitions_are_those_of_a_slow_search(kind, n, n_envs, capacity, lengths, breaks, repeats, seed):
    history, gamma = History(n_envs, seed, repeats), torch.tensor(0.9)
    ring, index = start(kind, capacity * n_envs, n_envs)
    n_slots, observations = rp.n_slots_of(ring), KINDS[kind][0]
    for length in lengths:
        ring, index = add(kind, ring, index, seen(history.batch(length, breaks), kind))
        wanted = history.transitions(n_slots - observations.history, n, 0.9)
        rows = held(index)
        n_steps = len(history.steps[0])
        times = [n_steps - 1 - (n_steps - 1 - row // n_envs) % n_slots for row in rows.tolist()]
        assert [(row % n_envs, t) for row, t in zip(rows.tolist(), times, strict=True)] == sorted(wanted, key=lambda at: at[::-1])
        found = rp.transitions(ring, rows, n, gamma, observations)
        for i, (row, t) in enumerate(zip(rows.tolist(), times, strict=True)):
            it = wanted[row % n_envs, t]
            assert int(found.action[i]) == it["step"]["action"]
            np.testing.assert_allclose(float(found.reward[i]), it["reward"], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(float(found.discount[i]), it["discount"], rtol=1e-6)
            for obs, step in ((found.obs, it["step"]), (found.next_obs, it["next"])):
                if kind == "whole":
                    assert float(obs["x"][i]) == step["obs"]
                assert np.array_equal((obs["image"] if kind == "whole" else obs)[i], step["stack"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_compiled_lanes_are_as_each_alone(kind):
    def f(ring, index, batches, key):
        for batch in batches:
            ring, index = add(kind, ring, index, batch)
        rows = uniform.sample(index, key, 16)
        return ring, index, rows, rp.transitions(ring, rows, 3, torch.tensor(0.9), KINDS[kind][0])

    histories = [History(2, seed) for seed in (1, 2)]
    batches = [[seen(history.batch(4), kind) for _ in range(2)] for history in histories]
    keys = random.split(random.key(0), 2)
    both = vmap(lambda _: start(kind, 12, 2))(torch.zeros(2))
    lanes = compile(vmap(f))(*both, tree.stack(batches), keys)
    for lane in range(2):
        alone = f(*start(kind, 12, 2), batches[lane], keys[lane])
        assert_trees_equal(tree.leaves(tree.index(lanes, lane)), tree.leaves(alone), rtol=1e-6, atol=1e-6)


def test_sample_is_uniform():
    history = History(3, 5)
    ring, index = start("whole", 30, 3)
    for _ in range(20):
        ring, index = add("whole", ring, index, seen(history.batch(2), "whole"))
    rows, n = held(index), 20_000
    counts = torch.bincount(uniform.sample(index, random.key(1), n), minlength=int(rows.max()) + 1)[rows]
    assert counts.sum() == n
    expected = n / len(rows)
    assert ((counts - expected) ** 2 / expected).sum() < len(rows) + 5 * (2 * len(rows)) ** 0.5


def test_add_donates_and_refuses_what_does_not_fit():
    history = History(2, 0)
    ring, _ = start("whole", 8, 2)
    batch = seen(history.batch(3), "whole")
    after, _ = rp.add(ring, batch, rp.whole())
    with pytest.raises(SpentError):
        rp.add(ring, batch, rp.whole())
    with pytest.raises(ValueError, match="2 environments, but the replay was made for 3"):
        rp.add(start("whole", 9, 3)[0], batch, rp.whole())
    with pytest.raises(ValueError, match="a batch of 5 steps is too long for a replay that takes 4 at once"):
        rp.add(after, seen(history.batch(5), "whole"), rp.whole())
    with pytest.raises(ValueError, match="capacity = 1 is less than one step of each of n_envs = 2"):
        start("whole", 1, 2)
