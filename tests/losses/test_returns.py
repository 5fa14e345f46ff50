import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from purerl import losses
from purerl.transforms import compile


def problem(t, seed=0, b=3):
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(t, b, generator=g), torch.randn(t + 1, b, generator=g)
    terminated = torch.rand(t, b, generator=g) < 0.2
    cut = terminated | (torch.rand(t, b, generator=g) < 0.2)
    return rewards, 0.9 * (~terminated).float(), cut, values


def loop_gae(rewards, discounts, cut, values, lambda_):
    out, following = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + discounts[t] * values[t + 1] - values[t]
        following = delta + torch.where(cut[t], 0.0, discounts[t] * lambda_ * following)
        out[t] = following
    return out


def loop_n_step(rewards, discounts, cut, values, n):
    out = torch.zeros_like(rewards)
    for t in range(rewards.shape[0]):
        for b in range(rewards.shape[1]):
            total, weight = 0.0, 1.0
            for k in range(t, min(t + n, len(rewards))):
                total, weight = total + weight * rewards[k, b], weight * discounts[k, b]
                if cut[k, b]:
                    break
            out[t, b] = total + weight * values[k + 1, b]
    return out


def loop_vtrace(rewards, discounts, cut, values, log_rhos):
    rho = log_rhos.exp().clamp(max=1.0)
    vs, following = torch.zeros_like(rewards), values[-1]
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        target_next = torch.where(cut[t], values[t + 1], following)
        delta = rho[t] * (rewards[t] + discounts[t] * values[t + 1] - values[t])
        vs[t] = values[t] + delta + discounts[t] * rho[t] * (target_next - values[t + 1])
        advantages[t] = rho[t] * (rewards[t] + discounts[t] * target_next - values[t])
        following = vs[t]
    return vs, advantages


def test_gae_by_hand():
    # One episode of two steps that terminates: deltas 1 + 0.5 * 4 - 2 = 1 and 3 - 4 = -1; A0 = 1 + 0.5 * 0.5 * -1.
    a = losses.gae(
        torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.0]), torch.tensor([False, True]), torch.tensor([2.0, 4.0, 9.0]), 0.5
    )
    assert a.tolist() == [0.75, -1.0]


def test_truncation_bootstraps_and_cuts():
    a = losses.gae(
        torch.tensor([1.0, 5.0]), torch.tensor([0.5, 0.5]), torch.tensor([True, False]), torch.tensor([0.0, 4.0, 2.0]), 1.0
    )
    assert a.tolist() == [3.0, 2.0]


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_all_agree_with_loops(t, seed):
    rewards, discounts, cut, values = problem(t, seed)
    close = {"rtol": 1e-4, "atol": 1e-4}
    expected = loop_gae(rewards, discounts, cut, values, 0.8)
    torch.testing.assert_close(losses.gae(rewards, discounts, cut, values, 0.8), expected, **close)
    torch.testing.assert_close(losses.td_lambda_returns(rewards, discounts, cut, values, 0.8), expected + values[:-1], **close)
    for n in (1, 2, 5):
        torch.testing.assert_close(
            losses.n_step_returns(rewards, discounts, cut, values, n), loop_n_step(rewards, discounts, cut, values, n), **close
        )
    g, x = values[-1], torch.zeros_like(rewards)
    for i in reversed(range(t)):
        g = rewards[i] + discounts[i] * g
        x[i] = g
    torch.testing.assert_close(losses.discounted_returns(rewards, discounts, values[-1]), x, **close)
    log_rhos = 0.5 * values[1:]
    torch.testing.assert_close(
        losses.vtrace(rewards, discounts, cut, values, log_rhos), loop_vtrace(rewards, discounts, cut, values, log_rhos), **close
    )


def test_laws():
    rewards, discounts, cut, values = problem(20)
    one_step = rewards + discounts * values[1:]
    torch.testing.assert_close(losses.td_lambda_returns(rewards, discounts, cut, values, 0.0), one_step)
    torch.testing.assert_close(losses.n_step_returns(rewards, discounts, cut, values, 1), one_step)
    torch.testing.assert_close(
        losses.n_step_returns(rewards, discounts, cut, values, 20),
        losses.td_lambda_returns(rewards, discounts, cut, values, 1.0),
        rtol=1e-4,
        atol=1e-4,
    )
    on_policy, _ = losses.vtrace(rewards, discounts, cut, values, torch.zeros_like(rewards))
    torch.testing.assert_close(on_policy, losses.td_lambda_returns(rewards, discounts, cut, values, 1.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "f", [lambda *a: losses.gae(*a, 0.9), lambda *a: losses.n_step_returns(*a, 3), lambda *a: losses.vtrace(*a, a[0])]
)
def test_transforms(f):
    batch = [torch.stack(x) for x in zip(*(problem(8, seed) for seed in range(3)), strict=True)]
    singles = [f(*(x[i] for x in batch)) for i in range(3)]
    for g in (torch.vmap(f), compile(torch.vmap(f))):
        for i in range(3):
            torch.testing.assert_close(
                torch.utils._pytree.tree_map(lambda x, i=i: x[i], g(*batch)), singles[i], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("shape", [(6, 2, 1), (5, 2), (6,), (6, 1)])
def test_values_of_another_shape_are_refused(shape):
    rewards, cut = torch.zeros(5, 2), torch.zeros(5, 2, dtype=torch.bool)
    values = torch.zeros(shape)
    for f in (
        lambda: losses.gae(rewards, rewards, cut, values, 0.9),
        lambda: losses.n_step_returns(rewards, rewards, cut, values, 3),
        lambda: losses.vtrace(rewards, rewards, cut, values, rewards),
    ):
        with pytest.raises(ValueError, match=r"^values have shape \[.*\], but rewards \[5, 2\] want \[6, 2\]$"):
            f()
    with pytest.raises(ValueError, match=r"^value has shape \[4, 1\], but its target \[4\]$"):
        losses.value_loss(torch.zeros(4, 1), torch.zeros(4))
