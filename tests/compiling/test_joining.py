import random

import pytest
import torch
from conftest import assert_trees_equal
from torch.fx.experimental.proxy_tensor import make_fx

from purerl import compile, repeat, scan, tree, vmap
from purerl.compiling import joining, passes

pytestmark = pytest.mark.usefixtures("seeded")

SHAPES = [(2, 3), (4,), (), (3, 1)]
SIZES = [6, 4, 1, 3]


@pytest.fixture
def joined(monkeypatch):
    """How many tensors each `cat` of traced programs puts together after all."""
    found = []

    def join(graph):
        real(graph)
        found.extend(len(x.args[0]) for x in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default))

    real = joining.join
    monkeypatch.setattr(passes.joining, "join", join)
    return found


def pieces(x):
    return [part.reshape(shape) for part, shape in zip(x.split(SIZES, -1), SHAPES, strict=True)]


def flat(parts):
    return torch.cat([part.clone().reshape(-1) for part in parts])


def same(f, *args):
    """What `f` gives with each lane, in one compiled program and by itself; the arguments stay as they are."""
    before = [x.clone() for x in args]
    together = compile(vmap(f))(*args)
    assert_trees_equal(list(args), before)
    for i in range(len(args[0])):
        assert_trees_equal([x[i] for x in together], list(f(*[x[i] for x in args])))


@pytest.mark.parametrize(
    ("order", "left"),
    [([0, 1, 2, 3], []), ([0, 1, 3, 2], [3]), ([1, 2], []), ([3, 2, 1, 0], [4]), ([0, 1, 0, 1], [2])],
)
def test_join(order, left, joined):
    def f(x):
        parts = pieces(x)
        return (2 * flat([parts[i] for i in order]),)

    same(f, torch.randn(3, 14))
    assert joined == left


def test_join_of_what_is_cut_and_put_together_twice(joined):
    def f(x):
        y = flat(pieces(2 * x))
        z = flat(pieces(y + 1))
        return y, torch.cat([z[:3], z[3:5], z[7:]]), flat(pieces(x))

    same(f, torch.randn(3, 14))
    assert joined == [2]


def test_results_own_their_memory_all_the_same(joined):
    x = torch.randn(14)
    (y,) = compile(lambda x: (flat(pieces(x)),))(x)
    assert joined == []
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert_trees_equal(y, x)


@pytest.mark.parametrize("lanes", [1, 2])
def test_join_of_what_loops_are_handed(lanes, joined):
    def body(x, turn):
        return x + turn, flat(pieces(x * 2))

    def f(x):
        y = flat(pieces(x))
        z, each = scan(body, y, torch.arange(3.0))
        last, _ = repeat(lambda x: (flat(pieces(x)) + y, x.sum()), z, torch.tensor(2))
        return y, z, each, last

    same(f, torch.randn(lanes, 14))
    assert joined == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_join_of_a_part_that_loops_are_handed(lanes, joined):
    def f(x):
        parts = pieces(x)
        z, each = scan(lambda y, turn: (y * turn, flat([y[:1], y[1:]])), flat(parts[1:3]), torch.arange(3.0))
        last, _ = repeat(lambda y: (y + 1, y.sum()), flat(parts[1:]), torch.tensor(2))
        return z, each, last

    same(f, torch.randn(lanes, 14))
    assert joined == []


@pytest.mark.parametrize("seed", range(60))
def test_join_of_any_graph(seed):
    """Graphs that cut, put together, show otherwise, copy and write what they were given and have made."""
    choose, x = random.Random(seed), torch.randn(3, 12)

    def f(x):
        found = [x, 2 * x]
        for _ in range(12):
            a = choose.choice(found)
            n, last = a.shape[-1], a.ndim - 1
            match choose.choice(["cut", "cut", "join", "show", "copy", "add", "write"]):
                case "cut" if n > 1:
                    k = choose.randrange(1, n)
                    parts = [x.clone() if choose.random() < 0.5 else x for x in a.split([k, n - k], -1)]
                    found += [*parts, torch.cat(parts if choose.random() < 0.8 else parts[::-1], last)]
                case "join":
                    found.append(torch.cat([x for x in found if x.shape[:-1] == a.shape[:-1]][-3:], last))
                case "show" if n % 2 == 0:
                    found += [a.reshape(*a.shape[:-1], n // 2, 2), a.reshape(*a.shape[:-1], 2, n // 2).clone().reshape(a.shape)]
                case "copy":
                    found.append(a[..., n // 2 :].clone())
                case "add":
                    found.append(a + 1)
                case "write" if len(found) > 2:
                    choose.choice(found[2:]).mul_(3)
        return tuple(choose.sample(found, 3))

    state = choose.getstate()
    graph = make_fx(f, tracing_mode="fake")(x.clone())
    joining.join(graph.graph)
    graph.graph.lint()
    graph.recompile()
    found = graph(x.clone())
    choose.setstate(state)
    assert_trees_equal(list(found), list(f(x.clone())))


def test_a_packed_tree_that_is_put_together_is_not_copied(joined):
    parts = {"a": torch.randn(3, 2, 5), "b": torch.randn(3, 7), "c": torch.randn(3, 4)}
    packed, unpack = tree.pack(parts, axes=1)

    def f(x):
        it = tree.copy(unpack({torch.float32: x}))
        vector, unravel = tree.ravel({name: it[name] for name in ("a", "b")})
        new = tree.copy(unravel(vector - 1))
        return (tree.pack({**it, **new})[0][torch.float32],)

    same(f, packed[torch.float32])
    assert joined == [2]
