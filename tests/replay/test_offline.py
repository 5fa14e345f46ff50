import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.test_replays import ENV, batches

from purerl import EnvSpec, checkpoint, random, replay, tree
from purerl.replay import steps as rp
from purerl.transforms import shapes

SPEC = EnvSpec("data", gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-1, 1, (3,)))
ALPHA, BETA, GAMMA = torch.tensor(0.6), torch.tensor(0.4), torch.tensor(0.9)


def episodes(seed, n, cut):
    """Episodes as lists of steps, the last of which may break off, and whose observations are numbered."""
    draw, made, count = np.random.default_rng(seed), [], 0
    for i in range(n):
        length, end = draw.integers(1, 5), draw.choice(["terminated", "truncated"])
        end = "cut" if cut and i == n - 1 else end
        obs = np.arange(count, count + length + 1, dtype=np.float64)
        count += length + 1
        made.append(
            [
                {
                    "obs": obs[k],
                    "next": obs[k + 1],
                    "action": draw.normal(size=3),
                    "reward": draw.normal(),
                    "terminated": k == length - 1 and end == "terminated",
                    "truncated": k == length - 1 and end == "truncated",
                }
                for k in range(length)
            ]
        )
    return made


def arrays(steps, knows_next):
    """As a file has them: in float64."""
    of = lambda name: np.array([step[name] for step in steps])  # noqa: E731
    two = lambda x: np.stack([x, -x], -1)  # noqa: E731
    given = {name: of(name) for name in ("action", "reward", "terminated", "truncated")}
    return {"obs": two(of("obs")), **given, **({"next_obs": two(of("next"))} if knows_next else {})}


def slow_search(made, knows_next, n):
    """By observation: action, n-step reward, discount and next observation."""
    found = {}
    for steps in made:
        known = steps if knows_next or steps[-1]["terminated"] else steps[:-1]
        for t in range(len(known)):
            window = known[t : t + n]
            reward = sum(0.9**k * step["reward"] for k, step in enumerate(window))
            discount = 0.0 if window[-1]["terminated"] else 0.9 ** len(window)
            found[steps[t]["obs"]] = steps[t]["action"], reward, discount, window[-1]["next"]
    return found


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 6),
    n_step=st.integers(1, 3),
    cut=st.booleans(),
    knows_next=st.booleans(),
    order=st.sampled_from(["kept", "shuffled"]),
)
def test_transitions_are_those_of_a_slow_search(seed, n, n_step, cut, knows_next, order):
    made = episodes(seed, n, cut)
    steps = [step for episode in made for step in episode]
    if order == "shuffled" and knows_next:  # each step an episode of its own, if no two happen to lie one behind the other
        steps = [steps[i] for i in np.random.default_rng(seed).permutation(len(steps))]
        n_step = 1
    wanted = slow_search(made, knows_next, n_step)
    if not wanted:
        with pytest.raises(ValueError, match="no step whose next observation is known"):
            replay.from_arrays(**arrays(steps, knows_next))
        return
    batch = replay.from_arrays(**arrays(steps, knows_next))
    assert int(batch.valid.sum()) == len(wanted)
    check_batch(batch)
    capacity = max(len(batch.reward), n_step + 1)
    memory = replay.make_uniform(SPEC, capacity, 1, n_step)
    state = memory.add(memory.init(None), batch, ALPHA)
    assert int(memory.size(state)) == len(wanted)
    rows = state.index.rows.memory["rows"][int(state.index.start) : int(state.index.end)].long()
    found = rp.transitions(state.steps, rows, n_step, GAMMA, rp.whole())
    assert sorted(found.obs[:, 0].tolist()) == sorted(wanted)
    for i, obs in enumerate(found.obs[:, 0].tolist()):
        action, reward, discount, next_obs = wanted[obs]
        np.testing.assert_allclose(found.action[i].numpy(), action, rtol=1e-6)
        np.testing.assert_allclose(float(found.reward[i]), reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(float(found.discount[i]), discount, rtol=1e-6)
        assert discount == 0 or found.next_obs[i].tolist() == [next_obs, -next_obs]
        assert not knows_next or found.next_obs[i].tolist() == [next_obs, -next_obs]


def check_batch(batch):
    """What holds of every batch."""
    done = batch.terminated | batch.truncated
    assert torch.equal(batch.valid[1:], ~done[:-1])
    assert torch.equal(batch.inputs.first[1:], ~batch.valid[:-1])
    assert not (done & ~batch.valid).any()
    assert not batch.valid[-1].any()
    assert batch.inputs.first[0].all()
    goes_on = ~batch.inputs.first[1:]
    assert torch.equal(batch.inputs.prev_reward[1:], batch.reward[:-1] * goes_on)
    assert torch.equal(batch.inputs.prev_action[1:], batch.action[:-1] * goes_on[..., None])
    assert (batch.inputs.prev_action[0] == 0).all()


def test_a_stream_by_hand():
    batch = replay.from_arrays(
        obs=[[1.0], [2.0], [3.0], [4.0], [5.0]],
        action=[0, 1, 0, 1, 1],
        reward=[1, 2, 3, 4, 5],
        terminated=[False, True, False, False, False],
        truncated=[False, False, False, True, False],
    )
    assert batch.inputs.obs[:, 0, 0].tolist() == [1, 2, 2, 3, 4]  # 2 once more; 4 ends the second episode; 5 is not known to go on
    assert batch.valid[:, 0].tolist() == [True, True, False, True, False]
    assert batch.inputs.first[:, 0].tolist() == [True, False, False, True, False]
    assert batch.terminated[:, 0].tolist() == [False, True, False, False, False]
    assert batch.truncated[:, 0].tolist() == [False, False, False, True, False]
    assert batch.reward[:, 0].tolist() == [1, 2, 0, 3, 0]
    assert (batch.action.dtype, batch.reward.dtype, batch.inputs.obs.dtype) == (torch.int64, torch.float32, torch.float32)


def test_arrays_of_different_lengths():
    with pytest.raises(ValueError, match=r"the arrays have \[2, 2, 3, 2, 2\] steps"):
        replay.from_arrays(np.zeros((2, 2)), np.zeros(2), np.zeros(3), [False] * 2, [True] * 2)


@pytest.mark.parametrize("make", [replay.make_uniform, replay.make_prioritized])
def test_one_run_fills_a_replay_and_another_goes_on_with_it(make, tmp_path):
    memory, path = make(ENV.spec, 100, 4, n_step=3), tmp_path / "replay.safetensors"
    first, second, third = batches(3)
    state = memory.add(memory.add(memory.init(None), first, ALPHA), second, ALPHA)
    checkpoint.save(path, [state], {"env": ENV.spec.id})
    found, meta = checkpoint.load(path, shapes(memory.init, None))
    assert meta == {"env": ENV.spec.id}
    assert_trees_equal(tree.leaves(found), tree.leaves(state))
    mine, its = memory.add(state, third, ALPHA), memory.add(found, third, ALPHA)
    draws = [memory.sample(one, random.key(0), 8, GAMMA, BETA) for one in (mine, its)]
    assert_trees_equal(*map(tree.leaves, draws))


def test_a_replay_of_another_shape_is_refused(tmp_path):
    memory, path = replay.make_uniform(ENV.spec, 100, 4), tmp_path / "replay.safetensors"
    checkpoint.save(path, [memory.init(None)], {})
    with pytest.raises(checkpoint.StructureError, match=r"action.* is I64 \[104\], not I64 \[204\]"):
        checkpoint.load(path, shapes(replay.make_uniform(ENV.spec, 200, 4).init, None))
    with pytest.raises(checkpoint.StructureError, match=r"it has no .*tree"):
        checkpoint.load(path, shapes(replay.make_prioritized(ENV.spec, 100, 4).init, None))


def test_next_observations_are_found_by_name_and_of_the_same_kind():
    n = 4
    x = np.arange(n, dtype=np.float32)[:, None]
    rest = (np.zeros(n, np.int64), np.ones(n), np.array([False, False, False, True]), np.zeros(n, bool))
    one, other = ({"x": x + 1, "y": 10 * (x + 1)}, {"y": 10 * (x + 1), "x": x + 1})
    batches = [replay.from_arrays({"x": x, "y": 10 * x}, *rest, next_obs) for next_obs in (one, other)]
    assert_trees_equal(*batches)
    with pytest.raises(ValueError, match="tree: one has x, but another y"):
        replay.from_arrays({"x": x}, *rest, {"y": x})
    with pytest.raises(ValueError, match=r"observations are float32 \[1\] a step, but next observations float32 \[2\]"):
        replay.from_arrays(x, *rest, np.zeros((n, 2), np.float32))
    with pytest.raises(ValueError, match=r"from_arrays: reward has shape \[4, 1\], but one number a step, \[N\], is wanted"):
        replay.from_arrays(x, rest[0], np.ones((n, 1)), *rest[2:], x)


def test_what_the_environment_cannot_have_is_refused():
    n = 4
    x = np.arange(n, dtype=np.float32)[:, None]
    rest = (np.ones(n), np.array([False, False, False, True]), np.zeros(n, bool), x + 1)
    box = gym.spaces.Box(-9, 9, (1,))
    counted, turned = EnvSpec("counted", box, gym.spaces.Discrete(3, start=5)), EnvSpec("turned", box, gym.spaces.Box(-1, 1, (1,)))
    batch = replay.from_arrays(x, np.array([5, 6, 7, 5]), *rest, spec=counted)
    assert batch.action[:n, 0].tolist() == [0, 1, 2, 0]
    batch = replay.from_arrays(x, x / 3, *rest, spec=turned)
    assert torch.equal(batch.action[:n, 0], torch.tensor(x / 3))
    for action, spec, said in (
        (np.array([5, 8, 7, 5]), counted, r"action of step 1 is 8, which is not in its space Discrete\(3, start=5\)"),
        (x, counted, r"action is float32 \[1\] a step, but counted has int64 \[\]"),
        (x, turned, r"action of step 2 is \[2.0\], which is not in its space Box"),
        (x * np.nan, turned, r"action of step 0 is \[nan\], which is not in its space Box"),
    ):
        with pytest.raises(ValueError, match=f"^from_arrays: {said}"):
            replay.from_arrays(x, action, *rest, spec=spec)
    with pytest.raises(ValueError, match=r"^from_arrays: observations are float32 \[\] a step, but turned has float32 \[1\]$"):
        replay.from_arrays(x[:, 0], x, *rest[:-1], x[:, 0], spec=turned)
