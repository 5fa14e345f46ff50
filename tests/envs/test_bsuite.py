"""Catch and DeepSea against values by hand."""

import pytest
import torch

from purerl import envs, random, vmap


def walk(env, state, actions):
    """The observations, rewards and ends of some actions."""
    seen = []
    for action in actions:
        state, obs, reward, terminated, truncated, _ = env.step(state, torch.tensor(action), random.key(0))
        assert not truncated
        seen.append((obs, reward.item(), terminated.item()))
    return seen


def test_catch():
    env = envs.make("bsuite/Catch-v0")
    assert env.spec.observation_space.shape == (10, 5)
    assert env.spec.action_space.n == 3
    state, obs = env.reset(torch.tensor(4, dtype=torch.int32))
    assert obs.nonzero().tolist() == [[0, 4], [9, 2]]
    seen = walk(env, state, [2, 2, 2, 1, 0, 2, 1, 1, 1])
    assert [obs.nonzero().tolist() for obs, _, _ in seen[:5]] == [
        [[t, 4], [9, x]] for t, x in ((1, 3), (2, 4), (3, 4), (4, 4), (5, 3))
    ]
    assert seen[-1][0].nonzero().tolist() == [[9, 4]]  # the ball on the paddle
    assert [reward for _, reward, _ in seen] == [0.0] * 8 + [1.0]
    assert [over for _, _, over in seen] == [False] * 8 + [True]
    assert walk(env, state, [0] * 9)[-1][1] == -1.0


def test_balls_come_down_everywhere():
    env = envs.make("bsuite/Catch-v0", rows=4, columns=3)
    _, obs = vmap(env.reset)(random.split(random.key(0), 300))
    assert obs.shape == (300, 4, 3)
    assert (obs[:, 0].sum(0) > 70).all()


def test_deep_sea():
    env = envs.make("bsuite/DeepSea-v0", size=4)
    state, obs = env.reset(random.key(0))
    assert obs.nonzero().tolist() == [[0, 0]]
    seen = walk(env, state, [1, 1, 1, 1])
    assert [obs.nonzero().tolist() for obs, _, _ in seen] == [[[1, 1]], [[2, 2]], [[3, 3]], []]
    assert [round(reward, 6) for _, reward, _ in seen] == [-0.0025, -0.0025, -0.0025, 0.9975]
    assert [over for _, _, over in seen] == [False, False, False, True]
    seen = walk(env, state, [0, 1, 1, 1])
    assert [obs.nonzero().tolist() for obs, _, _ in seen] == [[[1, 0]], [[2, 1]], [[3, 2]], []]
    assert sum(reward for _, reward, _ in seen) == pytest.approx(-0.0075)
    assert [reward for _, reward, _ in walk(env, state, [0] * 4)] == [0.0] * 4
    assert envs.make("bsuite/DeepSea").spec.observation_space.shape == (10, 10)


def test_the_way_right_may_differ_from_cell_to_cell():
    env = envs.make("bsuite/DeepSea-v0", size=5, mapping_seed=3)
    same = envs.make("bsuite/DeepSea-v0", size=5, mapping_seed=3)
    returns, taken = {}, []
    for number in range(32):
        actions = [number >> i & 1 for i in range(5)]
        seen = walk(env, env.reset(random.key(0))[0], actions)
        returns[number] = sum(reward for _, reward, _ in seen)
        assert returns[number] == sum(reward for _, reward, _ in walk(same, same.reset(random.key(0))[0], actions))
        taken += [number] if returns[number] > 0 else []
    assert max(returns.values()) == pytest.approx(0.99)
    assert len(taken) == 1  # of all ways one
    assert taken != [31]  # and it is not the same action everywhere


def test_boards_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"'bsuite/Catch-v0' cannot be made .* rows = 1 and columns = 5 has no room"):
        envs.make("bsuite/Catch-v0", rows=1)
    with pytest.raises(ValueError, match=r"'bsuite/DeepSea-v0' cannot be made .* size = 0 is not at least 1"):
        envs.make("bsuite/DeepSea-v0", size=0)
