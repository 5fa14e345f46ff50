import numpy as np
import torch
from test_episodes import make_batch

from purerl import normalize


def test_moments_of_fragments_are_moments_of_the_whole():
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)) * 4 + 2
    mask = torch.arange(90) % 4 != 0
    moments = normalize.init_moments(torch.Size([3]))
    for i in range(0, 90, 30):
        moments = normalize.update_moments(moments, x[i : i + 30], mask[i : i + 30])
    torch.testing.assert_close(moments.average, x[mask].mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moments.variance, x[mask].var(0, unbiased=False), rtol=1e-3, atol=1e-3)
    z = normalize.standardize(moments, x[mask])
    assert z.mean().abs() < 1e-2
    assert (normalize.standardize(moments, torch.full((3,), 1e9)) == 10).all()


def test_reward_scale_follows_gymnasiums_returns():
    """The running return of Gymnasium's NormalizeReward, over episodes with resets between."""
    rewards = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    terminated = (torch.arange(50) % 7 == 6)[:, None]
    valid = (torch.arange(50) % 7 != 0)[:, None] | (torch.arange(50) == 0)[:, None]
    batch = make_batch(torch.where(valid, rewards, 0.0), terminated & valid, torch.zeros_like(valid), valid)
    scale, scaled = normalize.scale_rewards(normalize.init_reward_scale(1), batch, 0.9)
    running, returns = 0.0, []
    for t in range(50):
        running = running * 0.9 + batch.reward[t, 0].item() if valid[t] else 0.0
        if valid[t]:
            returns.append(running)
    torch.testing.assert_close(scale.moments.variance, torch.tensor(np.var(returns), dtype=torch.float32), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled, batch.reward / scale.moments.variance.sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale.largest, torch.tensor(max(abs(x) for x in returns)))
    deviation = scale.moments.variance.sqrt()
    torch.testing.assert_close(normalize.reward_unit(scale), deviation)
    torch.testing.assert_close(normalize.reward_unit(scale, 100.0), deviation)
    torch.testing.assert_close(normalize.reward_unit(scale, 0.5), scale.largest / 0.5)


def test_moments_of_float16_are_computed_in_float32():
    """The square of 300 is beyond float16."""
    x = torch.linspace(-3000, 3000, 101, dtype=torch.float16)[:, None]
    moments = normalize.update_moments(normalize.init_moments(torch.Size([1])), x, torch.ones(101, dtype=torch.bool))
    torch.testing.assert_close(moments.variance, x.float().var(0, correction=0), rtol=1e-3, atol=0)
    assert moments.variance.dtype == normalize.standardize(moments, x).dtype == torch.float32
    assert torch.isfinite(normalize.standardize(moments, x)).all()
