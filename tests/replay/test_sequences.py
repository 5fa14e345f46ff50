import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.histories import SIZE, STACK, History
from replay.test_prioritized import fits
from replay.test_replays import batches, nbytes
from replay.test_steps import KINDS, seen
from tensordict import TensorDict

from purerl import EnvSpec, SpentError, compile, envs, random, replay, tree, vmap
from purerl.replay import sum_tree
from purerl.transforms import shapes

IMAGE = gym.spaces.Box(0, 255, (STACK, SIZE, SIZE), np.uint8)
OBS = {"whole": gym.spaces.Dict(x=gym.spaces.Box(-9, 9, (1,)), image=IMAGE), "frames": IMAGE}
SPECS = {kind: EnvSpec("history", space, gym.spaces.Discrete(4)) for kind, space in OBS.items()}
ALPHA, BETA = torch.tensor(0.6), torch.tensor(0.4)


def carry(n_envs):
    return TensorDict(h=torch.zeros(n_envs, 2), inner=TensorDict(n=torch.zeros(n_envs, dtype=torch.int64)))


def carried(history):
    """A memory that says before which step it was."""
    t = torch.full((history.n_envs,), len(history.steps[0]))
    b = torch.arange(history.n_envs)
    return TensorDict(h=torch.stack([t, b], -1).float(), inner=TensorDict(n=100 * t + b))


def held(index, n_rows):
    """The rows in the index, by hand."""
    if hasattr(index, "tree"):
        return sum_tree.weights(index.tree, n_rows).nonzero().flatten()
    places = torch.arange(int(index.start), int(index.end)) % len(index.rows.memory["rows"])
    return index.rows.memory["rows"][places].long()


def check_sequence(it, i, wanted, kind):
    before, *steps, behind = wanted
    for k, step in enumerate(steps):
        first = step["first"]
        obs = tree.index(it.obs, (k, i))
        assert np.array_equal(obs["image"] if kind == "whole" else obs, step["stack"])
        assert (bool(it.first[k, i]), int(it.action[k, i])) == (first, step["action"])
        assert int(it.prev_action[k, i]) == (0 if first else before["action"])
        assert float(it.prev_reward[k, i]) == (0 if first else np.float32(before["reward"]))
        assert float(it.reward[k, i]) == np.float32(step["reward"])
        assert (bool(it.terminated[k, i]), bool(it.truncated[k, i])) == (step["terminated"], step["truncated"])
        before = step
    obs = tree.index(it.next_obs, i)
    assert np.array_equal(obs["image"] if kind == "whole" else obs, behind["stack"])


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    make=st.sampled_from([replay.make_uniform_sequences, replay.make_prioritized_sequences]),
    has_carry=st.booleans(),
    n_envs=st.integers(1, 3),
    capacity=st.integers(10, 24),
    length=st.integers(1, 6),
    period=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 4), min_size=3, max_size=16),
    breaks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sequences_are_those_of_a_slow_search(kind, make, has_carry, n_envs, capacity, length, period, lengths, breaks, seed):
    past, observations = History(n_envs, seed, over=0.15), KINDS[kind][0]
    keeps = {"carry": carry} if has_carry else {}
    memory = make(SPECS[kind], capacity * n_envs, n_envs, length, period, observations=observations, **keeps)
    state = memory.init(None)
    n_rows = len(state.steps.flags.memory["flags"])
    n_slots, history = n_rows // n_envs, max(1, observations.history)
    assert n_slots - 1 - history >= capacity
    for i, n in enumerate(lengths):
        memories = carried(past)
        batch = seen(past.batch(period if has_carry else n, breaks), kind)
        state = memory.add(state, tree.replace(batch, carry=memories), ALPHA)
        wanted = past.sequences(n_slots - history, length, period)
        rows, n_steps = held(state.index, n_rows), len(past.steps[0])
        times = [n_steps - 1 - (n_steps - 1 - row // n_envs) % n_slots for row in rows.tolist()]
        found = [(row % n_envs, t) for row, t in zip(rows.tolist(), times, strict=True)]
        assert sorted(found) == sorted(wanted)
        assert int(memory.size(state)) == len(wanted)
        if not wanted:
            continue
        drawn = memory.sample(state, random.key(i), 8, BETA)
        assert set(drawn.rows.tolist()) <= set(rows.tolist())
        state = memory.update(state, drawn.rows, torch.ones(8), ALPHA)
        for j, row in enumerate(drawn.rows.tolist()):
            b, t = row % n_envs, n_steps - 1 - (n_steps - 1 - row // n_envs) % n_slots
            check_sequence(drawn.sequences, j, wanted[b, t], kind)
            if has_carry:
                assert drawn.sequences.carry["h"][j].tolist() == [t, b]
                assert int(drawn.sequences.carry["inner", "n"][j]) == 100 * t + b


@pytest.mark.parametrize("make", [replay.make_uniform_sequences, replay.make_prioritized_sequences])
def test_every_start_is_drawn_as_often_as_it_should_be(make):
    past = History(3, 5, over=0.1)
    memory = make(SPECS["whole"], 60, 3, 4)
    state = memory.init(None)
    for _ in range(20):
        state = memory.add(state, past.batch(3), ALPHA)
    n_rows, n = len(state.steps.flags.memory["flags"]), 20_000
    rows = held(state.index, n_rows)
    assert len(rows) > 8
    sample = memory.sample(state, random.key(0), len(rows), BETA)
    state = memory.update(state, sample.rows, torch.linspace(0.1, 3, len(rows)), ALPHA)
    p = sum_tree.weights(state.index.tree, n_rows) if hasattr(state.index, "tree") else torch.zeros(n_rows).index_fill(0, rows, 1.0)
    drawn = memory.sample(state, random.key(1), n, BETA)
    assert fits(np.bincount(drawn.rows.numpy(), minlength=n_rows), n * (p / p.sum()).double().numpy())


def test_compiled_lanes_are_as_each_alone():
    memory = replay.make_prioritized_sequences(SPECS["frames"], 40, 2, 4, 2, carry=carry, observations=KINDS["frames"][0])

    def turn(state, batch, key):
        state = memory.add(state, batch, ALPHA)
        drawn = memory.sample(state, key, 8, BETA)
        return memory.update(state, drawn.rows, torch.linspace(-1, 1, 8), ALPHA), drawn

    pasts = [History(2, seed, over=0.1) for seed in (1, 2)]
    lanes, alone = vmap(lambda _: memory.init(None))(torch.zeros(2)), [memory.init(None) for _ in pasts]
    mapped, size = compile(vmap(turn)), vmap(memory.size)
    for i in range(16):
        added = [tree.replace(seen(past.batch(2), "frames"), carry=carried(past)) for past in pasts]
        keys = random.split(random.key(i), 2)
        lanes, drawn = mapped(lanes, tree.stack(added), keys)
        sizes = size(lanes)
        for lane in range(2):
            alone[lane], its = turn(alone[lane], added[lane], keys[lane])
            if sizes[lane] > 0:
                assert_trees_equal(tree.leaves(tree.index(drawn, lane)), tree.leaves(its), rtol=1e-5, atol=1e-6)
            assert_trees_equal(tree.leaves(tree.index(lanes, lane)), tree.leaves(alone[lane]), rtol=1e-5, atol=1e-6)
    assert (sizes > 0).all()


def test_the_step_before_is_what_the_policy_saw():
    memory, done = replay.make_uniform_sequences(envs.make("CartPole-v1").spec, 200, 4, 5), []
    state = memory.init(None)
    for batch in batches(6):
        state = memory.add(state, batch, ALPHA)
        done.append(batch.inputs)
    drawn = memory.sample(state, random.key(0), 200, BETA)
    seen_ = tree.concatenate(done)
    times = 95 - (95 - drawn.rows // 4) % (len(state.steps.flags.memory["flags"]) // 4)
    at = times + torch.arange(5)[:, None], drawn.rows % 4
    for name in ("obs", "prev_action", "prev_reward", "first"):
        assert torch.equal(getattr(drawn.sequences, name), getattr(seen_, name)[at]), name
    assert drawn.sequences.first.any()


def test_a_stream_that_is_entered_in_the_middle_of_an_episode():
    """Of the step before its first one nothing is known."""
    past = History(1, 0, over=0.0)
    past.batch(1)
    memory = replay.make_uniform_sequences(SPECS["whole"], 20, 1, 3)
    state = memory.init(None)
    for _ in range(20):
        state = memory.add(state, past.batch(1), ALPHA)
        rows = held(state.index, 22).tolist()
        assert rows == list(range(1, int(state.steps.n_added) - 3))


def test_only_the_ring_grows_and_the_plain_replay_does_not():
    spec = envs.make("CartPole-v1").spec
    plain = nbytes(shapes(replay.make_uniform(spec, 10_000, 8).init, None))
    assert nbytes(shapes(replay.make_uniform_sequences(spec, 10_000, 8, 20).init, None)) - plain < 2 * 8 * 50
    kept = nbytes(shapes(replay.make_uniform_sequences(spec, 10_000, 8, 20, 10, carry).init, None))
    assert kept - plain < 10_000 / 10 * 16 + 15 * 8 * 50


def test_what_does_not_fit_is_said_and_what_is_added_is_spent():
    with pytest.raises(ValueError, match=r"capacity = 20 is not more than length \* n_envs = 10 \* 2"):
        replay.make_uniform_sequences(SPECS["whole"], 20, 2, 10)
    memory, past = replay.make_uniform_sequences(SPECS["whole"], 24, 2, 10), History(2, 0)
    with pytest.raises(ValueError, match="a batch of 4 steps is too long for a replay of sequences that takes 3 at once"):
        memory.add(memory.init(None), past.batch(4), ALPHA)
    state = memory.init(None)
    memory.add(state, past.batch(3), ALPHA)
    with pytest.raises(SpentError):
        memory.add(state, past.batch(3), ALPHA)
    memory = replay.make_uniform_sequences(SPECS["whole"], 40, 2, 4, 2, carry)
    with pytest.raises(ValueError, match="the batch has 3 steps, but carries are kept every period = 2 steps"):
        memory.add(memory.init(None), past.batch(3), ALPHA)
