import gymnasium as gym
import numpy as np
import pytest
import torch

from purerl import nets, tree
from purerl.spaces import env_actions, to_tensors, zero_actions, zero_obs


def test_actions_are_clipped_or_counted_from_the_start():
    assert env_actions(gym.spaces.Box(-1, 2, (2,)), torch.tensor([[-5.0, 5.0]])).tolist() == [[-1, 2]]
    assert env_actions(gym.spaces.Discrete(3, start=-1), torch.tensor([0, 2])).tolist() == [-1, 1]
    assert env_actions(gym.spaces.MultiDiscrete([2, 2], start=[5, 6]), torch.tensor([[0, 1]])).tolist() == [[5, 7]]
    assert env_actions(gym.spaces.MultiBinary(2), torch.tensor([[0, 1]])).tolist() == [[0, 1]]


def test_observations_are_one_hot_from_the_start():
    flatten = nets.Flatten(gym.spaces.Tuple([gym.spaces.Discrete(3, start=4), gym.spaces.MultiDiscrete([2, 2], start=[0, 7])]))
    obs = to_tensors((np.array([5]), np.array([[1, 7]])))
    assert flatten(obs).tolist() == [[0, 1, 0, 0, 1, 1, 0]]
    assert flatten.width == 7


def test_float64_becomes_float32_and_zero_actions_have_the_spaces_type():
    assert to_tensors(np.zeros(3)).dtype == torch.float32
    assert to_tensors(np.zeros(3, np.uint8)).dtype == torch.uint8
    assert zero_actions(gym.spaces.Box(-1, 1, (2,)), 4).shape == (4, 2)
    assert zero_actions(gym.spaces.Discrete(2), 4).dtype == torch.int64


def test_actions_lie_in_their_space_to_the_last_bit():
    """float32's 0.1 is more than float64's."""
    for dtype in (np.float16, np.float32, np.float64):
        space = gym.spaces.Box(-0.1, 0.1, (2,), dtype)
        sent = env_actions(space, torch.tensor([-5.0, 5.0])).numpy()
        assert sent.dtype == dtype
        assert space.contains(sent)


def test_a_box_without_axes_inside_a_dict():
    space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, ()), b=gym.spaces.Box(-1, 1, (2, 2)))
    flatten = nets.Flatten(space)
    assert flatten.width == 5
    obs = to_tensors({"a": np.array([0.5, 1.0], np.float32), "b": np.zeros((2, 2, 2), np.float32)})
    assert flatten(obs)[:, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("space", "seen", "wanted"),
    [
        (gym.spaces.Box(0, 255, (2, 2), np.uint8), 255, 1.0),
        (gym.spaces.Box(0, 4, (3,), np.uint8), 2, 0.5),
        (gym.spaces.Box(10, 20, (3,), np.uint8), 10, 0.0),
        (gym.spaces.Dict(image=gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)), 51, 0.2),
        (gym.spaces.Box(0, 255, (2,), np.float32), 200, 200.0),
        (gym.spaces.Box(-100, 100, (2,), np.int32), 50, 50.0),
    ],
)
def test_bytes_are_scaled_and_other_numbers_are_not(space, seen, wanted):
    obs = tree.map(lambda x: torch.full_like(x, seen), zero_obs(space, 3))
    torch.testing.assert_close(nets.Flatten(space)(obs), torch.full((3, gym.spaces.flatdim(space)), wanted))
