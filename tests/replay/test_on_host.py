import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import assert_trees_equal
from replay.histories import SIZE, STACK, History
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from purerl import EnvSpec, random, replay, tree

SPEC = EnvSpec("games", gym.spaces.Box(0, 255, (STACK, SIZE, SIZE), np.uint8), gym.spaces.Discrete(3), None)
OBSERVATIONS = {"whole": replay.whole(), "frames": replay.frames(STACK)}


def batches(n):
    history = History(2, 3, True)
    for _ in range(n):
        batch = history.batch(4)
        yield tree.replace(batch, inputs=tree.replace(batch.inputs, obs=batch.inputs.obs["image"]))


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("make", [replay.make_uniform, replay.make_prioritized])
def test_it_changes_nothing_on_a_cpu(make, kind):
    number, samples = torch.tensor(0.9), []
    for observations in (OBSERVATIONS[kind], replay.on_host(OBSERVATIONS[kind])):
        memory = make(SPEC, 30, 2, 2, observations)
        state = memory.init(None)
        for batch in batches(6):
            state = memory.add(state, batch, number)
        samples.append(memory.sample(state, random.key(0), 50, number, number))
    assert_trees_equal(*samples)


@pytest.fixture(scope="module")
def device():
    """One that has no data and is not the CPU, as a GPU would be."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of torch makes no such device")
    backend_registration._setup_privateuseone_for_python_backend("elsewhere")
    return torch.device("elsewhere", 0)


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observations_lie_in_the_cpus_memory_and_all_else_on_the_device(device, kind):
    given = list(batches(2))
    with FakeTensorMode() as mode:
        number, key = torch.full((), 0.9, device=device), random.key(0).to(device)
        memory = replay.make_uniform(SPEC, 30, 2, 2, replay.on_host(OBSERVATIONS[kind]))
        state = memory.init(device)
        for batch in given:
            state = memory.add(state, tree.map(lambda x: mode.from_tensor(x).to(device), batch), number)
        sample = memory.sample(state, key, 50, number, number)
        state = memory.update(state, sample.rows, sample.weights, number)
        stored = state.steps.content.memory
        on_host = {name for name, x in stored.items() if x.device.type == "cpu"}
        assert on_host == {"obs" if kind == "whole" else "frame"}
        rest = [x for x in tree.leaves(state) if all(x is not stored[name] for name in on_host)]
        assert {x.device for x in (*rest, *tree.leaves(sample))} == {device}
