"""Environments that draw from global generators."""

import random as python
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from worlds import Drawing, Walk

from purerl import envs, make_a2c, random, samplers
from purerl.algos import A2CConfig
from purerl.envs.generators import Streams, current, seeded, stream
from purerl.evaluate import evaluate

KINDS = {
    "serial": samplers.serial,
    "parallel": partial(samplers.parallel, n_workers=2),
    "parallel, 4 workers": partial(samplers.parallel, n_workers=4),
    "spawn": partial(samplers.parallel, n_workers=2, start_method="spawn"),
    "central": partial(samplers.central, n_workers=2),
    "alternating": partial(samplers.alternating, n_workers=2),
}


def collect(kind, key=0, disturb=False):
    algo = make_a2c(envs.host(Drawing).spec, A2CConfig(n_envs=4, n_steps=60, hidden=(8,)))
    batches = []
    with KINDS[kind](Drawing, algo, 4, 60, random.key(key)) as feed:
        feed.publish(algo.init(random.key(1)))
        for _ in range(3):
            if disturb:
                np.random.seed(7)
            batches.append(next(feed))
    return batches


@pytest.mark.parametrize("kind", KINDS)
def test_each_environment_draws_numbers_of_its_own_whoever_steps_it(kind):
    before = current()
    batches, expected = collect(kind), collect("serial", disturb=True)
    assert_trees_equal(batches, expected)
    for batch in batches:
        assert len(batch.inputs.obs.flatten(0, 1).unique(dim=0)) == batch.inputs.obs[..., 0].numel()
    assert not torch.equal(batches[0].inputs.obs, collect("serial", key=1)[0].inputs.obs)
    if kind != "serial":  # whose disturbance is this test's own
        assert str(before.python) == str(current().python)
        assert torch.equal(before.torch, current().torch)


def test_the_global_generators_stay_as_they_are():
    before = current()
    collect("serial")
    after = current()
    assert before.python == after.python
    assert np.array_equal(before.numpy["state"]["key"], after.numpy["state"]["key"])
    assert before.numpy["state"]["pos"] == after.numpy["state"]["pos"]
    assert torch.equal(before.torch, after.torch)


def test_an_evaluation_of_such_an_environment_repeats():
    env = envs.host(Drawing)
    algo = make_a2c(env.spec, A2CConfig(hidden=(8,)))
    states = torch.vmap(algo.init)(random.split(random.key(0), 1))
    a, b = (evaluate(algo, env, states, 3, seed=0).returns[0] for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert len(set(a)) == 3


def test_streams_are_left_alone_where_nobody_draws():
    streams = Streams([1, 2], watched=3)
    for _ in range(3):
        assert not streams.free
        assert streams.call(0, lambda: 1) == 1
        streams.stepped()
    assert streams.free
    streams.reseed([1, 2])
    assert streams.free
    streams.reseed([3, 2])
    first = streams.call(0, python.random)
    for _ in range(5):
        streams.stepped()
    assert not streams.free
    with stream(seeded(3)):
        assert first == python.random()
    with stream(seeded(2)):
        assert streams.call(1, python.random) == python.random()


def test_walks_need_no_streams_after_their_first_steps():
    algo = make_a2c(envs.host(Walk).spec, A2CConfig(n_envs=2, n_steps=120, hidden=(8,)))
    with samplers.serial(Walk, algo, 2, 120, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        next(feed)
        assert feed._source._environments._streams.free


class Late(Drawing):
    """Draws only after its first 150 steps."""

    def _draw(self):
        return super()._draw() if getattr(self, "n", 0) > 150 else np.zeros(3, np.float32)

    def step(self, action):
        return super().step(action)[0], 0.0, False, False, {}


@pytest.mark.parametrize("kind", ["parallel", "central"])
def test_even_late_draws_differ_between_workers(kind):
    algo = make_a2c(envs.host(Late).spec, A2CConfig(n_envs=2, n_steps=160, hidden=(8,)))
    with KINDS[kind](Late, algo, 2, 160, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        last = next(feed).last.obs[:, 3:]
    assert (last[0] != last[1]).all()


def test_what_is_drawn_in_the_making_is_not_drawn_again():
    algo = make_a2c(envs.host(Drawing).spec, A2CConfig(n_envs=2, n_steps=5, hidden=(8,)))
    with samplers.serial(Drawing, algo, 2, 5, random.key(0)) as feed:
        feed.publish(algo.init(random.key(1)))
        first = next(feed).inputs.obs[0]
    assert (first[:, :3] != first[:, 3:]).all()


def test_two_threads_take_turns():
    """Each would else take the other's states for those outside, and put them back last."""
    before, inside = current(), threading.Event()

    def first():
        with stream(seeded(1)):
            inside.set()
            time.sleep(0.1)
            return np.random.rand()

    def second():
        inside.wait()
        with stream(seeded(2)):
            time.sleep(0.3)
            return np.random.rand()

    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in (pool.submit(first), pool.submit(second))]
    assert found == [np.random.RandomState(seed).rand() for seed in (1, 2)]
    assert torch.equal(current().torch, before.torch)
    assert current().python == before.python
