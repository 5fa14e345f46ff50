import numpy as np
import pytest
import torch

from purerl import losses


def test_huber_and_squared_loss():
    error = torch.tensor([0.5, -3.0])
    assert losses.squared_loss(error).tolist() == [0.125, 4.5]
    assert losses.huber_loss(error).tolist() == [0.125, 2.5]
    torch.testing.assert_close(losses.huber_loss(error, 2.0), torch.tensor([0.125, 4.0]))
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(losses.huber_loss(x), torch.nn.functional.huber_loss(x, torch.zeros(33), reduction="none"))


def test_categorical_projection_by_hand():
    support = torch.tensor([-1.0, 0.0, 1.0])
    probs = torch.tensor([[0.2, 0.3, 0.5]] * 4)
    reward, discount = torch.tensor([0.0, 0.5, 5.0, 0.25]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = losses.categorical_projection(support, probs, reward, discount)
    wanted = [
        [0.2, 0.3, 0.5],  # nothing moves
        [0.1, 0.25, 0.65],  # half a gap to the right: -0.5, 0.5, and 1.5, which is beyond the end
        [0.0, 0.0, 1.0],  # all beyond the end
        [0.0, 0.75, 0.25],  # an end: one return, between two atoms
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_categorical_projection_follows_a_slow_reference():
    draw = np.random.default_rng(0)
    support, n = np.linspace(-2, 3, 11), 11
    probs = draw.dirichlet(np.ones(n), 40)
    reward, discount = draw.normal(size=40) * 2, draw.random(40)
    wanted = np.zeros((40, n))
    for i in range(40):
        for j in range(n):
            at = (np.clip(reward[i] + discount[i] * support[j], -2, 3) + 2) / 0.5
            low = min(int(np.floor(at)), n - 2)
            wanted[i, low] += probs[i, j] * (low + 1 - at)
            wanted[i, low + 1] += probs[i, j] * (at - low)
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (support, probs, reward, discount)]
    found = losses.categorical_projection(*tensors)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(-1).numpy(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("reward", [torch.nan, torch.inf, -torch.inf])
def test_categorical_projection_of_no_number(reward):
    """It is no access out of bounds, and of NaN it is NaN."""
    found = losses.categorical_projection(torch.linspace(-1, 1, 5), torch.full((1, 5), 0.2), torch.tensor([reward]), torch.ones(1))
    assert bool(found.isnan().any()) == (reward != reward)


def test_categorical_loss_is_the_cross_entropy():
    logits = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float32)
    found = losses.categorical_loss(logits, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(found, torch.tensor([-0.5 * np.log(0.25) - 0.5 * np.log(0.75)], dtype=torch.float32))


def test_quantile_huber_loss_by_hand():
    """Two quantiles, of the levels 1/4 and 3/4, at 0 and 1; two returns, 0.5 and 3."""
    found = losses.quantile_huber_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 3.0]]))
    first = (0.25 * 0.125 + 0.25 * 2.5) / 2  # both are above
    second = (0.25 * 0.125 + 0.75 * 1.5) / 2  # one is below
    torch.testing.assert_close(found, torch.tensor([first + second]))


def test_quantile_huber_loss_has_the_derivatives_of_its_formula():
    def formula(quantiles, returns, delta):
        error = returns[:, None, :] - quantiles[:, :, None]
        size = error.abs()
        huber = torch.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
        levels = (torch.arange(5)[:, None] + 0.5) / 5
        return ((levels - (error < 0).float()).abs() * huber / delta).mean(-1).sum(-1)

    draw = torch.Generator().manual_seed(0)
    args = 2 * torch.randn(7, 5, generator=draw), 2 * torch.randn(7, 4, generator=draw), 0.7
    torch.testing.assert_close(losses.quantile_huber_loss(*args), formula(*args))
    for by in (0, 1):
        wanted = torch.func.grad(lambda *args: formula(*args).sum(), by)(*args)
        torch.testing.assert_close(torch.func.grad(lambda *args: losses.quantile_huber_loss(*args).sum(), by)(*args), wanted)


def test_quantile_huber_loss_is_least_at_the_quantiles():
    returns = torch.linspace(0, 1, 101)[None]
    quantiles = torch.zeros(1, 4)
    for _ in range(4000):
        quantiles = quantiles - 0.1 * torch.func.grad(lambda q: losses.quantile_huber_loss(q, returns, 1e-3).sum())(quantiles)
    torch.testing.assert_close(quantiles, torch.tensor([[0.125, 0.375, 0.625, 0.875]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("x", [-300.0, -1.0, 0.0, 0.5, 1e4])
def test_rescale_and_unscale(x):
    x = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(losses.unscale(losses.rescale(x)), x)
    torch.testing.assert_close(
        losses.rescale(torch.tensor([3.0, -8.0])), torch.tensor([1.0 + 0.003, -2.0 - 0.008])
    )  # sqrt(4) - 1 and sqrt(9) - 1
