import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from purerl import nets, random


def test_orthogonal_rows_or_columns():
    for shape in [(8, 3), (3, 8), (4, 2, 2, 2)]:
        w = nets.orthogonal(random.key(0), torch.Size(shape), 2.0).flatten(1)
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        torch.testing.assert_close(gram, 4.0 * torch.eye(len(gram)), atol=1e-5, rtol=0)


def test_kaiming_bound_and_spread():
    w = nets.kaiming_uniform(random.key(0), torch.Size([256, 100]), 2**0.5)
    assert w.abs().max() <= 6**0.5 / 10
    torch.testing.assert_close(w.std(), torch.tensor(2**0.5 / 10), rtol=0.02, atol=0)


@pytest.mark.torch_modules
def test_a_module_of_ones_own_on_the_meta_device():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    params = nets.init(net, random.key(1))
    assert params["1.weight"].tolist() == [1] * 8
    assert params["0.bias"].tolist() == [0] * 8
    assert nets.apply(net, params, torch.ones(5, 4)).shape == (5, 2)
    assert all(p.is_meta for p in net.parameters())
    real = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    real.load_state_dict(dict(params.items()))
    torch.testing.assert_close(real(torch.ones(5, 4)), nets.apply(net, params, torch.ones(5, 4)))


@pytest.mark.torch_modules
def test_buffers_are_refused():
    with pytest.raises(ValueError, match=r"^module: buffers \['1.running_mean'.*\] are hidden state"):
        nets.init(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), random.key(0))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (gym.spaces.Box(-1, 1, (3,)), torch.zeros(5, 3)),
        (gym.spaces.Box(0, 255, (4, 84, 84), "uint8"), torch.zeros(5, 4, 84, 84, dtype=torch.uint8)),
        (
            gym.spaces.Dict(
                a=gym.spaces.Discrete(3), b=gym.spaces.Tuple([gym.spaces.Box(0, 1, (2, 2)), gym.spaces.MultiDiscrete([2, 2])])
            ),
            TensorDict(
                a=torch.zeros(5, dtype=torch.int64),
                b=TensorDict({"0": torch.zeros(5, 2, 2), "1": torch.zeros(5, 2, dtype=torch.int64)}),
            ),
        ),
    ],
)
def test_actor_critic_over_any_space(space, obs, shared):
    with torch.device("meta"):
        net = nets.ActorCritic(space, gym.spaces.Box(-1, 1, (2,)), (16,), "tanh", shared)
    params = nets.init(net, random.key(0))
    out, value = nets.apply(net, params, obs)
    assert out.shape == (5, 4)
    assert value.shape == (5,)
    assert any(name.startswith("critic_torso") for name in params.keys()) == (not shared)  # noqa: SIM118


def test_small_images_are_refused():
    with pytest.raises(ValueError, match=r"^observation: an image of 20 x 84 is too small for NatureCNN, which needs 36 x 36$"):
        nets.NatureCNN((4, 20, 84))
