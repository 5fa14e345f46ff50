import pytest
import torch
from conftest import assert_trees_equal
from torch import Tensor

from purerl import compile, repeat, vmap
from purerl.compiling import CPP_WRAPPER, lowering
from purerl.compiling.keeping import keep, sound

pytestmark = pytest.mark.usefixtures("seeded")

INF, NAN = float("inf"), float("nan")
GOING = torch.tensor([True, False, True])


@pytest.fixture
def calls(monkeypatch):
    """The functions of `keeping.h` that programs are given calls of."""
    found, write = [], lowering._call
    monkeypatch.setattr(lowering, "_call", lambda wrapper, name, *args: found.append(name) or write(wrapper, name, *args))
    return found


@pytest.fixture
def in_place(monkeypatch):
    """For each call of `keep` in programs, whether it writes over what is new where it is."""
    found, ask = [], lowering._is_own
    monkeypatch.setattr(lowering, "_is_own", lambda new: found.append(ask(new)) or found[-1])
    return found


def same_compiled(f, *args):
    """What `f` gives for each lane by itself, in one compiled program, whose arguments stay as they are."""
    before = [x.clone() for x in args]
    alone = [f(*[x[i] for x in args]) for i in range(len(args[0]))]
    together = compile(vmap(f))(*args)
    assert_trees_equal(list(args), before)
    for i, one in enumerate(alone):
        assert_trees_equal([x[i] for x in together], list(one))


@pytest.mark.parametrize("n", [1, 10_007])
def test_sound(n, calls):
    place = [0, n // 2, n - 1]
    new, old = torch.ones(7, n), torch.zeros(7, n)
    for lane, (number, before) in enumerate([(INF, 1.0), (-INF, 1.0), (NAN, NAN), (INF, INF), (INF, -INF), (-3e38, NAN)]):
        new[lane, place[lane % 3]], old[lane, place[lane % 3]] = number, before
    expected = [False, False, False, True, False, True, True]
    assert [bool(sound(*lane)) for lane in zip(new, old, strict=True)] == expected
    assert compile(vmap(sound))(new, old).tolist() == expected
    assert sound(new, new).item() is False
    assert calls == ["purerl_sound"] * CPP_WRAPPER


def test_sound_looks_at_parts_where_they_lie(monkeypatch):
    def f(new, old):
        return (sound(new[1:4], old[:3]),)

    found, write = [], lowering._call
    monkeypatch.setattr(lowering, "_call", lambda wrapper, *args: found.append(args) or write(wrapper, *args))
    new, old = torch.zeros(3, 5), torch.zeros(3, 7)
    new[0, 0], new[1, 2], new[2, 3], old[2, 2] = NAN, INF, INF, INF
    assert compile(vmap(f))(new, old)[0].tolist() == [True, False, True]
    assert [(args[2], args[4]) for args in found] == [(5, 7)] * CPP_WRAPPER  # numbers from lane to lane
    assert [compile(f)(*lane)[0].item() for lane in zip(new, old, strict=True)] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sound_of_other_floats(dtype):
    new, old = torch.tensor([[1.0, INF], [1.0, INF]], dtype=dtype), torch.tensor([[0.0, 1.0], [0.0, INF]], dtype=dtype)
    assert compile(vmap(sound))(new, old).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_keep(dtype, calls):
    def f(going, x, old):
        return (keep(going, (x + 1).to(dtype), old),)

    same_compiled(f, GOING, torch.randint(0, 9, (3, 2, 5)).float(), torch.randint(0, 9, (3, 2, 5)).to(dtype))
    assert calls == ["purerl_keep"] * CPP_WRAPPER


def test_keep_writes_over_nothing_that_is_read_later():
    def f(going, x, old):
        new = (3 * x).cumsum(0)
        part = new.reshape(-1)[:3]
        return keep(going, new, old), new, keep(going, part, old[0]), keep(going, x, old), keep(going, old, x), keep(going, x, x)

    same_compiled(f, GOING, *torch.randint(0, 9, (2, 3, 2, 3)).float())


def test_keep_writes_into_what_was_put_together(in_place):
    def f(going, x, old):
        new = torch.cat([3 * x[:2], x[2:] + 1])
        return (keep(going, new, old),)

    same_compiled(f, GOING, *torch.randint(0, 9, (2, 3, 5)).float())
    assert in_place == [True] * CPP_WRAPPER


def test_keep_writes_over_no_part_that_is_read_later(in_place):
    def f(going, x, old):
        a, b = x.cumsum(0), 3 * x
        late = a * 2
        new = torch.cat([a, b])
        kept = keep(going, new, old)
        return kept, late, a - 1, b[1:] + kept.sum()

    same_compiled(f, GOING, torch.randint(0, 9, (3, 3)).float(), torch.randint(0, 9, (3, 6)).float())
    assert in_place == [True] * CPP_WRAPPER


def test_keep_in_a_loop_in_which_some_results_are_what_it_was_given():
    def turn(state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        i, x, last, constant = state

        def inner(state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
            x, y, constant = state
            return (x @ constant / 64, y + x, constant), x.sum()

        (a, b, c), info = repeat(inner, (x, x, constant), torch.tensor(2))
        going = (constant[0, 0] > 0) | (i < 1)  # some lanes stand still from the second turn on
        return (i + 1, keep(going, a, x), keep(going, b, last), keep(going, c, constant)), info

    def f(x, constant):
        (_, *kept), info = repeat(turn, (torch.zeros(()), x, torch.zeros_like(x), constant), torch.tensor(3))
        return *kept, info

    x, constant = torch.randn(4, 160, 160), torch.randn(4, 160, 160)
    before = x.clone(), constant.clone()
    found, expected = compile(vmap(f))(x, constant), [f(*lane) for lane in zip(x, constant, strict=True)]
    for i, one in enumerate(expected):
        for a, b in zip([y[i] for y in found], one, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert_trees_equal((x, constant), before)
    assert len(set((constant[:, 0, 0] > 0).tolist())) == 2
