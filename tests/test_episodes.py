import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from purerl.base import Batch, Inputs
from purerl.episodes import init_episodes, mean_length, mean_return, record_episodes


def make_batch(reward, terminated, truncated, valid):
    """A batch of which only the course of the episodes matters."""
    nothing = torch.zeros(reward.shape)
    inputs = Inputs(obs=nothing[..., None], prev_action=nothing, prev_reward=nothing, first=~valid)
    return Batch(
        inputs=inputs,
        action=nothing,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        extras=TensorDict(),
        carry=TensorDict(),
        last=inputs[-1] if inputs.batch_dims else inputs,
        episode=TensorDict(),
    )


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.05, 0.9))
@settings(max_examples=30, deadline=None)
def test_agrees_with_a_loop_over_many_fragments(seed, n_envs, rate):
    g = torch.Generator().manual_seed(seed)
    episodes, done = init_episodes(n_envs), torch.zeros(n_envs, dtype=torch.bool)
    running, lengths, finished = [0.0] * n_envs, [0] * n_envs, []
    for _ in range(4):
        steps = []
        for _ in range(37):
            reward = torch.where(done, 0.0, torch.randint(-3, 4, (n_envs,), generator=g).float())
            ends = (torch.rand(n_envs, generator=g) < rate) & ~done
            kind = torch.rand(n_envs, generator=g) < 0.5
            for b in range(n_envs):
                if done[b]:
                    running[b], lengths[b] = 0.0, 0
                    continue
                running[b], lengths[b] = running[b] + reward[b].item(), lengths[b] + 1
                if ends[b]:
                    finished.append((running[b], lengths[b]))
            steps.append((reward, ends & kind, ends & ~kind, ~done))
            done = ends
        episodes = record_episodes(episodes, make_batch(*(torch.stack(x) for x in zip(*steps, strict=True))))
    assert episodes.count == len(finished)
    last = finished[-100:]
    if last:
        torch.testing.assert_close(mean_return(episodes), torch.tensor([x for x, _ in last]).mean(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean_length(episodes), torch.tensor([float(n) for _, n in last]).mean())


def test_nan_before_the_first_episode():
    assert mean_return(init_episodes(2)).isnan()
