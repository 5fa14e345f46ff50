"""A version of torch that nobody has tried: plain `torch.compile`, and a warning."""

import pytest
import torch
from conftest import assert_trees_equal
from tensordict import TensorDict

from purerl import Donated, SpentError, compile, compiling, envs, fuse, make_a2c, make_dqn, random, specialize, tree, vmap, write
from purerl.algos import A2CConfig, DQNConfig
from purerl.compiling import fallback
from purerl.transforms import specialize_into, trace


@pytest.fixture
def _untried(monkeypatch):
    monkeypatch.setattr(compiling, "TESTED", ("0.1",))
    compiling._warn.cache_clear()


@pytest.mark.usefixtures("_untried")
@pytest.mark.filterwarnings("ignore:torch .* is none of")
def test_the_same_results(monkeypatch):
    env = envs.make("CartPole-v1")
    init, step = fuse(make_a2c(env.spec, A2CConfig(n_envs=2, n_steps=4, hidden=(8,))), env)
    state = vmap(init)(random.split(random.key(0), 2))
    with monkeypatch.context() as patch:
        patch.setattr(fallback, "SETTINGS", {"backend": "aot_eager"})
        assert_trees_equal(compile(vmap(step))(state), vmap(step)(state), rtol=1e-5, atol=1e-6)
    x, out = torch.arange(3.0), torch.zeros(3)
    program, structure = specialize(lambda x: {"y": x + 1}, x)
    assert tree.unflatten(structure, program([x]))["y"].tolist() == [1.0, 2.0, 3.0]
    specialize_into(lambda x: x + 2, out, x)([out, x])
    assert out.tolist() == [2.0, 3.0, 4.0]


@pytest.mark.usefixtures("_untried")
@pytest.mark.filterwarnings("ignore:torch .* is none of")
@pytest.mark.parametrize(
    ("prioritized", "lanes"),
    [(False, False), (False, True), (True, True)],
    ids=["uniform, alone", "uniform, lanes", "prioritized, lanes"],
)
def test_a_replay_is_written_in_place_and_its_step_compiled_once(prioritized, lanes, monkeypatch):
    """Lane i is the lone eager run, the memory stays where it is, and who has handed it on has it no longer."""
    if not (prioritized and lanes):  # what inductor makes of it takes minutes to compile: once is enough
        monkeypatch.setattr(fallback, "SETTINGS", {"backend": "aot_eager"})
    env = envs.make("CartPole-v1")
    sizes = {"n_envs": 2, "n_steps": 3, "capacity": 16, "batch_size": 4, "replay_ratio": 1.0, "learning_starts": 6, "hidden": (8,)}
    init, step = fuse(make_dqn(env.spec, DQNConfig(**sizes, prioritized=prioritized)), env)
    keys = random.split(random.key(3), 2)
    start, run = (vmap(init)(keys), compile(vmap(step))) if lanes else (init(keys[0]), compile(step))
    held = memory(start)
    places = [x.data_ptr() for x in held]
    state, _ = run(start)
    for use in (lambda: run(start), *[x.sum for x in held]):
        with pytest.raises(SpentError):
            use()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            state, info = run(state)
    assert [x.data_ptr() for x in memory(state)] == places
    for i in range(2 if lanes else 1):
        lone = init(keys[i])
        for _ in range(4):
            lone, lone_info = step(lone)
        found = tree.index((state, info), i) if lanes else (state, info)
        assert_trees_equal(tree.leaves(found), tree.leaves((lone, lone_info)), rtol=1e-4, atol=1e-5)


def memory(state):
    """What is donated in a state."""
    leaves, structure = tree.flatten(state)
    return [x for x, is_donated in zip(leaves, tree.donated(structure), strict=True) if is_donated]


@pytest.mark.usefixtures("_untried")
@pytest.mark.filterwarnings("ignore:torch .* is none of")
def test_tracing_writes_nothing():
    ring = Donated(memory=TensorDict(x=torch.zeros(3)))
    traced = trace(lambda ring: write(ring, torch.tensor([1]), torch.ones(1)), ring)
    assert [(x.shape, x.device.type) for x in traced.results] == [((3,), "meta")]
    assert ring.memory["x"].tolist() == [0, 0, 0]


@pytest.mark.usefixtures("_untried")
def test_it_is_told_once(recwarn):
    for n in (1, 2):
        compile(lambda x: x + 1)(torch.zeros(n))
    assert [str(w.message).endswith("torch.compile takes over, slower") for w in recwarn if "is none of" in str(w.message)] == [
        True
    ]
