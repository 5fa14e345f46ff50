"""Compiled programs on disk: what finds one, and what does not."""

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorClass

from purerl import compile, envs, fuse, make_a2c, make_ppo, random, tree, vmap
from purerl import config as cfg
from purerl.algos import A2CConfig, PPOConfig
from purerl.compiling import disk, identity, inductor, tracing

SMALL = {"n_envs": 2, "n_steps": 4, "hidden": (8,)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PURERL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def traced(monkeypatch):
    """How many functions were traced, and how many compiled."""
    counts = {"trace": 0, "build": 0}

    def count(name, f):
        def counted(*args):
            counts[name] += 1
            return f(*args)

        return counted

    from purerl.compiling import inductor

    monkeypatch.setattr(tracing, "trace", count("trace", tracing.trace))
    monkeypatch.setattr(inductor, "build", count("build", inductor.build))
    return counts


def a2c_step(**config):
    env = envs.make("CartPole-v1")
    return fuse(make_a2c(env.spec, A2CConfig(**{**SMALL, **config})), env)


PROGRAM = """
import sys
import torch
from tensordict import TensorClass
from purerl import envs, fuse, make_a2c, random, tree, vmap, compile
from purerl.algos import A2CConfig
env = envs.make("CartPole-v1")
init, step = fuse(make_a2c(env.spec, A2CConfig(n_envs=2, n_steps=4, hidden=(8,))), env)
state, _ = compile(vmap(step))(vmap(init)(random.split(random.key(0), 2)))
print("torch._inductor.compile_fx" in sys.modules, sum(x.double().sum().item() for x in tree.leaves(state.algo.params)))
"""


def test_other_processes_load_what_one_has_compiled(cache):
    def start():
        return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)

    first = [process.communicate()[0].split() for process in (start(), start())]  # at once
    second = start().communicate()[0].split()
    assert [compiled for compiled, _ in first] == ["True", "True"]
    assert second[0] == "False"
    assert {number for _, number in first} == {second[1]}
    assert len(list(cache.glob("*.program"))) == 2
    assert not list(cache.glob(".*"))


def test_what_is_on_disk_is_neither_traced_nor_compiled(cache, traced):
    init, step = a2c_step()
    state = vmap(init)(random.split(random.key(0), 2))
    one, _ = compile(vmap(step))(state)
    assert traced == {"trace": 1, "build": 1}
    compile(vmap(a2c_step()[1]))(state)
    assert traced == {"trace": 1, "build": 1}
    init, step = a2c_step(lr=0.5, total_steps=77, gamma=0.5)  # which are no part of the program, as its graph shows
    other = vmap(init)(random.split(random.key(0), 2))
    two, _ = compile(vmap(step))(other)
    assert traced == {"trace": 2, "build": 1}
    expected, _ = vmap(step)(other)
    for a, b, c in zip(*map(tree.leaves, (one.algo.params, two.algo.params, expected.algo.params)), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-6)
        assert not torch.equal(a, b)
    compile(vmap(a2c_step(n_steps=5)[1]))(state)
    assert traced == {"trace": 3, "build": 2}


def test_a_function_of_ones_own_is_known_by_its_graph(cache, traced):
    x = torch.arange(3.0)
    for factor in (2.0, 2.0, 3.0):
        assert torch.equal(compile(lambda x, factor=factor: x * factor)(x), x * factor)
    assert traced == {"trace": 3, "build": 2}


def test_constants_come_back(cache, traced):
    large, x = torch.arange(100.0).reshape(10, 10).T, torch.zeros(10, 10)
    for _ in range(2):
        assert torch.equal(compile(lambda x: x + large)(x), large)
    assert traced["build"] == 1
    other = large + 1
    assert torch.equal(compile(lambda x: x + other)(x), other)


def spoil(path, how):
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "altered":
            path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()


@pytest.mark.parametrize("how", ["cut", "altered", "empty", "gone"])
@pytest.mark.parametrize("which", ["*.so", "*.program"])
def test_a_damaged_entry_is_compiled_anew(cache, traced, which, how):
    x = torch.arange(3.0)
    f = partial(torch.add, alpha=len(how))
    assert torch.equal(compile(f)(x, x), f(x, x))
    for path in list(cache.glob(which)):
        copy = path.read_bytes()
        path.unlink()  # what is loaded stays what it was
        path.write_bytes(copy)
        spoil(path, how)
    assert torch.equal(compile(f)(x, x), f(x, x))
    assert traced["build"] == 2
    assert torch.equal(compile(f)(x, x), f(x, x))
    assert traced["build"] == 2


def test_an_entry_under_another_name_is_not_trusted(cache):
    x = torch.arange(3.0)
    compile(torch.neg)(x)
    compile(torch.sin)(x)
    one, two, *_ = sorted(cache.glob("*.program"))
    two.write_bytes(one.read_bytes())
    assert disk.load(two.stem) is None
    assert disk.load(one.stem) is not None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PURERL_CACHE", str(tmp_path / "file" / "below"))
    assert compile(lambda x: x + 1)(torch.zeros(1)).item() == 1


def test_old_entries_are_deleted(cache, monkeypatch):
    monkeypatch.setattr(disk, "KEPT", 4)
    x = torch.zeros(2)
    for i in range(6):
        compile(lambda x, i=i: x + i)(x)
    assert len(list(cache.glob("*.program"))) <= 5
    named = {path.stem for path in cache.glob("*.so")}
    assert all(disk.load(path.stem).library.stem in named for path in cache.glob("*.program"))


@pytest.mark.parametrize(("make", "config"), [(make_a2c, A2CConfig), (make_ppo, PPOConfig)])
def test_no_number_that_is_a_leaf_is_part_of_the_graph(make, config):
    """Which is why another one compiles nothing; a function that does read them is another one."""
    env = envs.make("CartPole-v1")
    start = config(**SMALL, lr_schedule="linear")

    def graph(config):
        init, step = fuse(make(env.spec, config), env)
        state = vmap(init)(random.split(random.key(0), 2))
        leaves, structure = tree.flatten((state,))
        f = vmap(step).leafwise
        return tracing.describe(tracing.trace(lambda *x: f(x, structure)[0], leaves)), identity.of(f)

    code, name = graph(start)
    changed = dataclasses.replace(start, **{field: 0.5 if field != "total_steps" else 9 for field in cfg.sweepable(start)})
    assert changed != start
    other_code, other_name = graph(changed)
    assert repr(other_code) == repr(code)
    assert other_name != name
    assert repr(graph(dataclasses.replace(start, n_steps=6))[0]) != repr(code)


def own(x):
    """A function that closes over `x` and that might be this package's."""
    f = lambda y: x  # noqa: E731
    f.__module__ = "purerl.somewhere"
    return f


def test_identities():

    values = [
        1,
        1.0,
        True,
        "1",
        None,
        (1,),
        [1],
        {"a": 1},
        {"a": 2},
        torch.ones(2),
        torch.ones(2).double(),
        np.ones(2),
        np.zeros(2),
    ]
    values += [torch.zeros(2), torch.zeros(1, 2), torch.float32, random.split, partial(random.split, n=2), PPOConfig(), A2CConfig()]
    values += [envs.make("CartPole-v1"), envs.make("Acrobot-v1"), PPOConfig(n_steps=3), PPOConfig(lr=1.0)]
    names = [identity.of(own(x)) for x in values]
    assert len(set(names)) == len(names)
    assert names == [identity.of(own(x)) for x in values]
    loop: list = []
    loop.append(loop)
    assert identity.of(own(loop)) == identity.of(own(loop))
    for stranger in (spoil, lambda x: x, object(), cfg):
        with pytest.raises(identity.Unknown):
            identity.of(own(stranger))


def test_the_cache_has_a_place(monkeypatch, tmp_path):
    monkeypatch.delenv("PURERL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk.folder() == tmp_path / "purerl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert disk.folder() == Path.home() / ".cache" / "purerl"


def test_a_state_of_a_class_that_cannot_be_pickled():
    class Local(TensorClass):
        x: torch.Tensor

    for _ in range(2):  # the second time it is found by its graph
        f = compile(lambda state: tree.replace(state, x=state.x * 3 + 1))
        assert f(Local(x=torch.ones(7))).x.tolist() == [4.0] * 7


def test_headers_are_precompiled_once_they_pay(cache):
    cache.mkdir()
    assert not inductor.options(1)["cpp_cache_precompile_headers"]
    for i in range(inductor.FEW):
        (cache / f"{i}.so").touch()
    assert inductor.options(1)["cpp_cache_precompile_headers"]
