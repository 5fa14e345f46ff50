"""Stacks that are rebuilt of single frames are those that ALE gave."""

import pytest
import torch
from samplers.test_atari import collect

from purerl import envs, samplers
from purerl.replay import steps as rp
from purerl.replay import uniform

pytest.importorskip("ale_py")


def test_stacks_are_ales_own():
    n_envs, n_steps, observations = 2, 40, rp.frames(4)
    batches = collect(samplers.serial, envs.make("ALE/Breakout-v5", max_frames=600), 12, n_envs, n_steps)
    seen = torch.cat([batch.inputs.obs for batch in batches])
    ring = rp.init(seen[0, 0], batches[0].action[0, 0], 90 * n_envs, n_envs, observations)
    index, n_slots, opened = uniform.init(rp.n_slots_of(ring) * n_envs), rp.n_slots_of(ring), 0
    for i, batch in enumerate(batches):
        ring, added = rp.add(ring, batch, observations)
        index = uniform.add(index, added)
        places = torch.arange(int(index.start), int(index.end)) % len(index.rows.memory["rows"])
        rows, newest = index.rows.memory["rows"][places].long(), (i + 1) * n_steps - 1
        times, whose = newest - (newest - rows // n_envs) % n_slots, rows % n_envs
        assert len(rows) > min(newest, 90) * n_envs - 8
        found = rp.transitions(ring, rows, 1, torch.tensor(0.99), observations)
        assert torch.equal(found.obs, seen[times, whose])
        assert torch.equal(found.next_obs, seen[times + 1, whose])
        assert torch.equal(found.action, torch.cat([b.action for b in batches])[times, whose])
        opened += int((batch.episode["game_start"] & (torch.arange(n_steps) > 0)[:, None]).sum())
    assert opened > 2
    lives = sum(int((batch.terminated & ~batch.episode["game_end"]).sum()) for batch in batches)
    assert lives > 2
