import gymnasium as gym
import pytest
import torch
from torch import distributions as td

from purerl import distributions, random


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tanh_reference(params):
    mean, log_std = params.split(2, -1)
    transforms = [td.TanhTransform(cache_size=1), td.AffineTransform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))]
    return td.Independent(td.TransformedDistribution(td.Normal(mean, log_std.exp()), transforms), 1)


CASES = {
    "categorical": (distributions.categorical(5), lambda p: td.Categorical(logits=p)),
    "gaussian": (
        distributions.diagonal_gaussian((3,)),
        lambda p: td.Independent(td.Normal(p[..., :3], p[..., 3:].exp()), 1),
    ),
    "tanh": (distributions.tanh_gaussian(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 3.0])), tanh_reference),
}


def sample(dist, params, key):
    return dist.sample(params, torch.vmap(dist.draw)(random.split(key, len(params))))


@pytest.mark.parametrize("name", CASES)
def test_log_prob_agrees_with_torch(name):
    dist, reference = CASES[name]
    params = rand(50, dist.n_params)
    if name == "tanh":
        params = params / 2  # the reference knows no number where float32's tanh reaches a wall
    action = sample(dist, params, random.key(0))
    torch.testing.assert_close(dist.log_prob(params, action), reference(params).log_prob(action), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_entropy_and_kl_agree_with_torch(name):
    dist, reference = CASES[name]
    p, q = rand(50, dist.n_params), rand(50, dist.n_params, seed=1)
    torch.testing.assert_close(dist.entropy(p), reference(p).entropy())
    torch.testing.assert_close(dist.kl(p, q), td.kl_divergence(reference(p), reference(q)), rtol=1e-4, atol=1e-5)


def test_tanh_kl_is_the_gaussians_and_actions_stay_inside():
    dist, _ = CASES["tanh"]
    p = torch.tensor([3.0, -3.0, 1.0, 1.0]).expand(10_000, 4)
    a = sample(dist, p, random.key(1))
    assert (a >= torch.tensor([-1.0, -1.0])).all()
    assert (a <= torch.tensor([1.0, 3.0])).all()
    assert torch.isfinite(dist.log_prob(p, a)).all()
    gaussian = distributions.diagonal_gaussian((2,))
    assert torch.equal(dist.kl(p, p + 1), gaussian.kl(p, p + 1))


def test_multi_categorical_is_independent_categoricals():
    dist = distributions.multi_categorical((2, 3))
    logits, other = rand(40, 5), rand(40, 5, seed=1)
    a = sample(dist, logits, random.key(2))
    parts = [td.Categorical(logits=x) for x in logits.split((2, 3), -1)]
    others = [td.Categorical(logits=x) for x in other.split((2, 3), -1)]
    torch.testing.assert_close(dist.log_prob(logits, a), sum(p.log_prob(x) for p, x in zip(parts, a.unbind(-1), strict=True)))
    torch.testing.assert_close(dist.entropy(logits), sum(p.entropy() for p in parts))
    torch.testing.assert_close(dist.kl(logits, other), sum(td.kl_divergence(p, q) for p, q in zip(parts, others, strict=True)))
    assert dist.mode(logits)[:, 1].equal(logits[:, 2:].argmax(-1))


def test_sample_moments():
    dist, _ = CASES["gaussian"]
    params = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.3, -1.0])
    a = sample(dist, params.expand(100_000, 6), random.key(3))
    torch.testing.assert_close(a.mean(0), params[:3], atol=0.02, rtol=0)
    torch.testing.assert_close(a.std(0), params[3:].exp(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("space", "n"),
    [
        (gym.spaces.Discrete(4), 4),
        (gym.spaces.MultiDiscrete([2, 3]), 5),
        (gym.spaces.MultiBinary(3), 6),
        (gym.spaces.Box(-1, 1, (2, 2)), 8),
    ],
)
def test_for_space(space, n):
    dist = distributions.for_space(space)
    assert dist.n_params == n
    params = rand(7, n)
    action = sample(dist, params, random.key(4))
    assert dist.log_prob(params, action).shape == (7,)
    assert action.shape == (7, *space.shape)


def test_other_spaces_are_refused():
    with pytest.raises(
        ValueError, match=r"^action space: Text\(.* is not Discrete, MultiDiscrete, MultiBinary or a Box of floats$"
    ):
        distributions.for_space(gym.spaces.Text(3))


def test_nested_actions_are_independent_parts():
    pair = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.MultiDiscrete([2, 4])])
    parts = {"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(-1, 1, (2,)), "c": pair}
    dist = distributions.for_space(gym.spaces.Dict(parts))
    singles = {name: distributions.for_space(space) for name, space in parts.items()}
    assert dist.n_params == sum(d.n_params for d in singles.values()) == 3 + 4 + 8
    params, other = (random.normal(random.key(i), (5, dist.n_params)) for i in range(2))
    noise = torch.vmap(dist.draw)(random.split(random.key(2), 5))
    action, mode = dist.sample(params, noise), dist.mode(params)
    assert action["b"].shape == (5, 2)
    assert action["c", "1"].shape == (5, 2)
    cut = dict(zip(singles, params.split([3, 4, 8], -1), strict=True))
    log_prob = sum(d.log_prob(cut[name], action[name]) for name, d in singles.items())
    torch.testing.assert_close(dist.log_prob(params, action), log_prob)
    torch.testing.assert_close(dist.entropy(params), sum(d.entropy(cut[name]) for name, d in singles.items()))
    assert torch.equal(mode["a"], singles["a"].mode(cut["a"]))
    assert (dist.kl(params, other) > 0).all()
    torch.testing.assert_close(dist.kl(params, params), torch.zeros(5))
