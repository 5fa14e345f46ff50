import gymnasium as gym
import numpy as np
import torch

from purerl import nets
from purerl.spaces import env_actions, to_tensors, zero_actions


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
