import torch

from purerl import losses


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([0.5, 1.1, 1.5, 0.5, 1.5])
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    expected = torch.tensor([-0.5, -1.1, -1.2, 0.8, 1.5])
    torch.testing.assert_close(losses.clipped_surrogate_loss(ratio.log(), advantage, 0.2), expected)
    torch.testing.assert_close(losses.clipped_surrogate_loss(ratio.log(), advantage, torch.tensor(0.2)), expected)


def test_no_gradient_beyond_the_clip():
    grad = torch.func.grad(lambda x: losses.clipped_surrogate_loss(x, torch.tensor(1.0), 0.2))
    assert grad(torch.tensor(1.5).log()) == 0
    assert grad(torch.tensor(1.1).log()) != 0


def test_values_by_hand():
    assert losses.value_loss(torch.tensor(3.0), torch.tensor(1.0)) == 2.0
    # The value moved from 0 to 3; kept within 0.5 of 0 it is 0.5, at 0.125 from the target 1: the plain loss is larger.
    assert losses.clipped_value_loss(torch.tensor(3.0), torch.tensor(0.0), torch.tensor(1.0), 0.5) == 2.0
    # Moved past the target's side: the kept one is worse.
    assert losses.clipped_value_loss(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0), 0.5) == 0.125


def test_the_rest_by_hand():
    assert losses.policy_gradient_loss(torch.tensor(-2.0), torch.tensor(3.0)) == 6.0
    assert losses.approximate_kl(torch.tensor(0.0)) == 0.0
    torch.testing.assert_close(losses.approximate_kl(torch.tensor(1.0)), torch.tensor(torch.e - 2.0))
    assert losses.masked_mean(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([True, False, True])) == 2.0
    assert losses.masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)) == 0.0
