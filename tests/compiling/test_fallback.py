"""A version of torch that nobody has tried: plain `torch.compile`, and a warning."""

import pytest
import torch
from conftest import assert_trees_equal

from purerl import compile, compiling, envs, fuse, make_a2c, random, specialize, tree, vmap
from purerl.algos import A2CConfig
from purerl.transforms import specialize_into


@pytest.fixture
def _untried(monkeypatch):
    monkeypatch.setattr(compiling, "TESTED", ("0.1",))
    compiling._warn.cache_clear()


@pytest.mark.usefixtures("_untried")
@pytest.mark.filterwarnings("ignore:torch .* is none of")
def test_the_same_results():
    env = envs.make("CartPole-v1")
    init, step = fuse(make_a2c(env.spec, A2CConfig(n_envs=2, n_steps=4, hidden=(8,))), env)
    state = vmap(init)(random.split(random.key(0), 2))
    assert_trees_equal(compile(vmap(step))(state), vmap(step)(state), rtol=1e-5, atol=1e-6)
    x, out = torch.arange(3.0), torch.zeros(3)
    program, structure = specialize(lambda x: {"y": x + 1}, x)
    assert tree.unflatten(structure, program([x]))["y"].tolist() == [1.0, 2.0, 3.0]
    specialize_into(lambda x: x + 2, out, x)([out, x])
    assert out.tolist() == [2.0, 3.0, 4.0]


@pytest.mark.usefixtures("_untried")
def test_it_is_told_once(recwarn):
    for n in (1, 2):
        compile(lambda x: x + 1)(torch.zeros(n))
    assert [str(w.message).endswith("torch.compile takes over, slower") for w in recwarn if "is none of" in str(w.message)] == [
        True
    ]
