import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from purerl import envs, fuse, make_a2c, make_policy, make_ppo, nets, random, tree, vmap
from purerl.algos import PPOConfig
from purerl.spaces import blank_inputs


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
def test_a_network_is_tried_out_without_computing():
    """Only its shapes are of interest, whatever it costs; one that looks at a number is tried out on zeros."""
    seen = []

    class Looks(nn.Module):
        def __init__(self, at_numbers):
            super().__init__()
            self.layer, self.at_numbers = nn.Linear(4, 2), at_numbers

        def forward(self, obs):
            seen.append(obs.device.type)
            return self.layer(obs) * (1 + float(obs.sum())) if self.at_numbers else self.layer(obs)

    example = tree.map(lambda x: x[None], blank_inputs(envs.make("CartPole-v1").spec, 3))
    for at_numbers in (False, True):
        nets.as_network(Looks(at_numbers), nets.SCHEMES["torch"], lambda out, lead: None, example)
    assert seen == ["meta", "meta", "cpu"]


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
    with pytest.raises(
        ValueError, match=r"^observation: an image of 20 x 84 is too small for the Nature CNN, which needs 36 x 36$"
    ):
        nets.Convolutions((4, 20, 84))


@pytest.mark.torch_modules
def test_images_with_their_channels_last():
    first, last = gym.spaces.Box(0, 255, (3, 96, 64), "uint8"), gym.spaces.Box(0, 255, (96, 64, 3), "uint8")
    torsos = [nets.torso(space, (), "tanh")[0] for space in (first, last)]
    params = nets.init(torsos[0], random.key(0))
    renamed = TensorDict({name.replace("convolutions", "convolutions.1"): x for name, x in params.items()})
    obs = (random.uniform(random.key(1), (2, 3, 96, 64)) * 255).to(torch.uint8)
    torch.testing.assert_close(
        nets.apply(torsos[0], params, obs),
        nets.apply(torsos[1], renamed, obs.permute(0, 2, 3, 1).contiguous()),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.torch_modules
def test_the_torso_for_boards_is_a_convolution():
    space = gym.spaces.Box(0.0, 1.0, (4, 10, 7))
    torso, width = nets.torso(space, (), "tanh")
    assert isinstance(torso.convolutions, nets.Patches)
    assert width == 128
    params = nets.init(torso, random.key(0))
    obs = random.uniform(random.key(1), (3, 4, 10, 7))
    conv = (
        torch.relu(nn.functional.conv2d(obs, params["convolutions.conv.weight"], params["convolutions.conv.bias"]))
        .permute(0, 2, 3, 1)
        .flatten(1)
    )
    expected = torch.relu(nn.functional.linear(conv, params["linear.weight"], params["linear.bias"]))
    torch.testing.assert_close(nets.apply(torso, params, obs), expected)


def test_what_is_a_board():
    assert nets.is_board(gym.spaces.Box(0.0, 1.0, (10, 10, 10)))
    for other in (
        gym.spaces.Box(-1.0, 1.0, (4, 10, 10)),
        gym.spaces.Box(0.0, 1.0, (4, 84, 84)),
        gym.spaces.Box(0.0, 1.0, (4, 10, 2)),
        gym.spaces.Box(0.0, 1.0, (10, 10)),
        gym.spaces.Box(0, 1, (4, 10, 10), "uint8"),
        gym.spaces.Discrete(3),
    ):
        assert not nets.is_board(other)


class Odd(nn.Module):
    """What a newcomer's actor-critic may return."""

    def __init__(self, returns, n_params=2):
        super().__init__()
        self.body, self.value, self.returns = nn.Linear(4, n_params), nn.Linear(4, 1), returns

    def forward(self, obs):
        return self.returns(self.body(obs), self.value(obs))


@pytest.mark.parametrize(
    ("returns", "n_params", "message"),
    [
        (lambda p, v: (p, v), 2, r"^net: the value of 2 observations has shape \[2, 1\], but \[2\] is wanted; squeeze\(-1\)"),
        (lambda p, v: (p, v.mean()), 2, r"^net: the value of 2 observations has shape \[\], but \[2\] is wanted$"),
        (
            lambda p, v: (p, v[..., 0]),
            3,
            r"^net: the action parameters of 2 observations has shape \[2, 3\], but \[2, 2\] is wanted",
        ),
        (lambda p, v: (p[None], v[..., 0]), 2, r"^net: the action parameters of 2 observations has shape \[1, 2, 2\]"),
        (lambda p, v: p, 2, r"^net: it returns Tensor, but \(action parameters \[N, 2\], value \[N\]\) is wanted"),
    ],
    ids=["value [N, 1]", "one value", "too wide", "an axis more", "no value"],
)
@pytest.mark.torch_modules
def test_what_a_network_returns_is_checked(returns, n_params, message):
    with torch.device("meta"):
        net = Odd(returns, n_params)
    for make in (make_ppo, make_a2c):
        with pytest.raises(ValueError, match=message):
            make(envs.make("CartPole-v1").spec, net=net)


@pytest.mark.torch_modules
def test_a_network_that_changes_with_the_number_of_observations():
    """What passes when an algorithm is made is checked again when it is traced."""
    with torch.device("meta"):
        net = Odd(lambda p, v: (p, v[..., 0] if len(p) == 2 else v))
    env = envs.make("CartPole-v1")
    init, step = fuse(make_ppo(env.spec, PPOConfig(n_steps=8), net), env)
    with pytest.raises(ValueError, match=r"^net: the value of 4 observations has shape \[4, 1\]"):
        vmap(step)(vmap(init)(random.split(random.key(0), 2)))


@pytest.mark.torch_modules
def test_the_width_of_a_policys_parameters_is_checked():
    with pytest.raises(
        ValueError, match=r"^net: the action parameters of 2 observations has shape \[2, 3\], but \[2, 2\] is wanted"
    ):
        make_policy(envs.make("CartPole-v1").spec, nn.Linear(4, 3, device="meta"))


@pytest.mark.torch_modules
def test_dropout_is_refused():
    with pytest.raises(ValueError, match=r"^module: \['1'\] draw from torch's global generator"):
        nets.init(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), random.key(0))


@pytest.mark.parametrize("make", [make_ppo, make_a2c, lambda spec: make_policy(spec, None)])
@pytest.mark.parametrize("spec", ["CartPole-v1", envs.make("CartPole-v1"), None])
def test_what_is_no_spec_is_refused(make, spec):
    with pytest.raises(ValueError, match=r"^spec: (str|Env|NoneType) is not an environment's spec; envs.make\(id\).spec is one$"):
        make(spec)


def test_spaces_that_cannot_be_flattened():
    with pytest.raises(ValueError, match=r"^observation space: Dict\(\) is empty$"):
        nets.Flatten(gym.spaces.Dict({}))
    with pytest.raises(ValueError, match=r"^space: the key 1 of Dict\(.* is not a string$"):
        nets.Flatten(gym.spaces.Dict({1: gym.spaces.Discrete(2)}))


@pytest.mark.torch_modules
def test_the_scheme_called_torch_is_torch_s_own():
    theirs, mine = nn.Linear(50, 400).weight, nets.SCHEMES["torch"](random.key(0), torch.Size((400, 50)), 1.4)
    assert mine.abs().max() <= 50**-0.5
    torch.testing.assert_close(mine.std(), theirs.std(), rtol=0.02, atol=0)
