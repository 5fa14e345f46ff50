from functools import partial

import pytest
import torch
from conftest import assert_trees_equal
from tensordict import TensorDict

from purerl import Donated, envs, fuse, make_ppo, random, tree
from purerl.compiling import passes
from purerl.transforms import compile, repeat, scan, shapes, specialize, vmap, write


def cumulate(carry, x):
    total = TensorDict(sum=carry["sum"] + x["a"], n=carry["n"] + 1)
    return total, {"sum": total["sum"] * 2.0, "odd": (total["n"] % 2).bool()}


def run(start, xs):
    return scan(cumulate, TensorDict(sum=start, n=torch.zeros((), dtype=torch.int64)), {"a": xs})


def test_scan_eager_by_hand():
    carry, ys = run(torch.tensor(1.0), torch.tensor([1.0, 2.0, 3.0]))
    assert carry["sum"] == 7
    assert ys["sum"].tolist() == [4, 8, 14]
    assert ys["odd"].tolist() == [True, False, True]


def test_scan_compiled_vmapped_equals_eager_singles():
    start, xs = torch.rand(4, generator=torch.Generator().manual_seed(0)), torch.arange(20.0).reshape(4, 5)
    carry, ys = compile(vmap(run))(start, xs)
    for i in range(4):
        assert_trees_equal((carry[i], {k: v[i] for k, v in ys.items()}), run(start[i], xs[i]), rtol=1e-6, atol=0)


def test_scan_of_one_tensor_and_no_results():
    xs = torch.arange(6.0).reshape(2, 3)
    total = lambda start, xs: scan(lambda c, x: (c + x, {}), start, xs)[0]  # noqa: E731
    assert compile(total)(torch.zeros(()), xs[1]) == 12
    assert compile(vmap(total))(torch.zeros(2), xs).tolist() == [3, 12]


def test_scan_from_a_number():
    xs = torch.arange(6.0).reshape(2, 3)
    total = lambda xs: scan(lambda c, x: (c + x, {}), torch.tensor(1.0), xs)[0]  # noqa: E731
    assert compile(vmap(total))(xs).tolist() == [4, 13]


@pytest.mark.parametrize("leaf", [2, None, "s", True])
def test_results_are_tensors(leaf):
    for f in (lambda x: (x, leaf), lambda x: scan(lambda c, x: (c + x, leaf), x[0], x)[0]):
        with pytest.raises(ValueError, match=f"has the leaf {leaf!r}; under compile and vmap all are tensors"):
            compile(f)(torch.arange(3.0))
    with pytest.raises(ValueError, match=f"a result has the leaf {leaf!r}"):
        vmap(lambda x: (x, leaf))(torch.arange(3.0))


def test_nothing_to_compute():
    x = torch.arange(3.0)
    assert compile(lambda x: ())(x) == ()
    assert compile(lambda x: {"a": ()})(x) == {"a": ()}
    assert compile(lambda: torch.tensor(3.0))() == 3
    same, again = compile(lambda x: (x, x))(x)
    assert same.tolist() == again.tolist() == x.tolist()
    assert len({same.data_ptr(), again.data_ptr(), x.data_ptr()}) == 3


def test_scan_needs_a_turn():
    for run in (compile, lambda f: f):
        with pytest.raises(ValueError, match="scan: there is nothing to go through"):
            run(lambda x: scan(lambda c, x: (c + x, x), x.sum(), x))(torch.zeros(0))


def test_numbers_are_every_lane_s():
    assert vmap(lambda x, options: x * options["scale"])(torch.ones(2), {"scale": 3.0}).tolist() == [3, 3]


def test_what_a_turn_leaves_is_not_overwritten_by_a_later_one():
    """Intermediates that library calls fill, carried on, handed to the next turn as the one before, and stacked."""
    generator = torch.Generator().manual_seed(2)
    w, xs = torch.randn(5, 5, generator=generator) / 2, torch.randn(9, 3, 5, generator=generator)

    def step(carry, x):
        now, before = carry
        product = (now + x) @ w
        square = product.T @ product
        return (torch.tanh(product), now), (product, square, before * 1.0)

    def twice(carry, x):
        return scan(step, carry, torch.stack([x, -x]))

    for body in (step, twice):
        f = lambda xs, body=body: scan(body, (xs[0], xs[1]), xs)  # noqa: E731
        assert_trees_equal(compile(f)(xs), f(xs), rtol=1e-5, atol=1e-6)


def test_scan_takes_a_gradient_inside():
    def step(w, x):
        return w - 0.1 * torch.func.grad(lambda w: ((w * x - 1.0) ** 2).sum())(w), (w * 2).sum()

    w, xs = torch.ones(3, 2), torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(1))
    f = vmap(lambda w, xs: scan(step, w, xs))
    assert_trees_equal(compile(f)(w, xs), f(w, xs), rtol=1e-5, atol=1e-6)


def test_different_scan_bodies_do_not_share_a_cache_entry():
    xs = torch.arange(4.0)
    plus = compile(lambda x: scan(lambda c, x: (c + x, c * 1), x[0] * 0, x))(xs)
    minus = compile(lambda x: scan(lambda c, x: (c - x, c * 1), x[0] * 0, x))(xs)
    assert plus[0] == 6
    assert minus[0] == -6


def test_vmap_results_own_their_memory():
    zeros = vmap(lambda key: torch.zeros(3))(random.split(random.key(0), 2))
    assert zeros.stride() == (3, 1)


def test_compiled_again_for_other_arguments():
    f = compile(lambda x, n: x["a"] * n)
    x = torch.arange(1.0, 7.0)
    assert f({"a": x}, 2).tolist() == [2, 4, 6, 8, 10, 12]
    for a, n in ((x, 3), (x, 0.5), (x[:2].clone(), 3), (x.double(), 3), (x[::2], 3), (x.reshape(2, 3), torch.tensor(2))):
        result = f({"a": a}, n)
        assert result.dtype == a.dtype
        assert torch.equal(result, a * n)


def test_compiled_functions_do_not_share_a_cache():
    compiled = [compile(vmap(lambda x, i=i: x + i)) for i in range(12)]  # dynamo allows 8 programs for one code object
    assert [f(torch.zeros(1)).item() for f in compiled] == list(range(12))


def test_specialized_equals_compiled_and_refuses_other_shapes():
    w = torch.rand(3, 2, generator=torch.Generator().manual_seed(3))

    def f(x, memory):
        return {"y": torch.tanh(x["a"] @ w), "half": memory[0] / 2}, [memory[0] + 1]

    x = torch.linspace(-1, 1, 60).reshape(4, 5, 3)
    args = TensorDict(a=x), [torch.arange(4)]
    program, structure = specialize(vmap(f), *args)
    before = tree.map(torch.clone, args)
    assert_trees_equal(tree.unflatten(structure, program(tree.leaves(args))), compile(vmap(f))(*args), rtol=1e-6, atol=0)
    assert_trees_equal(args, before, rtol=0, atol=0)
    other = TensorDict(a=x.expand(4, 5, 3)[:, :4]), [torch.arange(4)]
    with pytest.raises((RuntimeError, AssertionError), match="expected"):
        program(tree.leaves(other))


def test_rational_tanh_is_accurate():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-30, 0, 1000), -torch.logspace(-30, 0, 1000)])
    torch.testing.assert_close(passes.rational_tanh(x), torch.tanh(x.double()).float(), rtol=1e-6, atol=0)
    assert (passes.rational_tanh(x).abs() <= 1.0 + 2**-23).all()


def test_compiled_tanh_uses_it():
    x = torch.linspace(-3, 3, 64)
    assert torch.allclose(compile(torch.tanh)(x), passes.rational_tanh(x), rtol=3e-7, atol=0)


def test_wrong_scan_carry_is_refused():
    with pytest.raises(Exception, match="carry"):
        compile(lambda x: scan(lambda c, x: (torch.stack([c, x]), x), x[0], x))(torch.arange(3.0))


def test_shapes_of_a_fused_state_without_computing_it():
    env = envs.make("CartPole-v1")
    init, _ = fuse(make_ppo(env.spec), env)
    keys = random.split(random.key(0), 3)
    found, real = shapes(vmap(init), keys), vmap(init)(keys)
    assert tree.structure(found) == tree.structure(real)
    kinds = [[(x.shape, x.dtype) for x in tree.leaves(state)] for state in (found, real)]
    assert kinds[0] == kinds[1]
    assert {x.device.type for x in tree.leaves(found)} == {"meta"}


def test_repeat_takes_as_many_turns_as_a_number_says():
    def step(state):
        x, total, ring = state
        ring = write(ring, (total % 3)[None].long(), (x.sum() + total)[None])
        y, stacked = scan(lambda c, u: (c * 0.5 + u, {"c": c}), x, torch.arange(3.0))
        return (y, total + 1, ring), {"mean": y.mean(), "first": (stacked["c"][0],)}

    def start(scale):
        return torch.tensor([1.0, -2.0]) * scale, torch.zeros(()), Donated(memory=TensorDict(r=torch.zeros(3)))

    run = compile(vmap(partial(repeat, step), in_dims=(0, None)))
    for n in (1, 4, 2):
        state = tree.stack([start(1.0), start(3.0)])
        place = state[2].memory["r"].data_ptr()
        found, info = run(state, torch.tensor(n))
        assert found[2].memory["r"].data_ptr() == place
        for lane, scale in enumerate((1.0, 3.0)):
            wanted, wanted_info = repeat(step, start(scale), torch.tensor(n))
            assert_trees_equal(tree.leaves(tree.index(found, lane)), tree.leaves(wanted), rtol=1e-6, atol=1e-6)
            assert_trees_equal(tree.leaves(tree.index(info, lane)), tree.leaves(wanted_info), rtol=1e-6, atol=1e-6)


def test_large_parts_of_a_carry_may_come_back_in_another_order_of_memory():
    def turn(state):
        def body(carry, x):
            a, b = carry
            return (b.T + x, a.T), x

        (a, b), _ = scan(body, (state, 2 * state), torch.arange(3.0))
        return a.T + b, a[0, 0]

    def function(x):
        return repeat(turn, x, torch.tensor(3))[0]

    x = torch.arange(2.0 * 130 * 130).reshape(130, 130, 2)
    found = compile(vmap(function, in_dims=2))(x)
    assert_trees_equal(found, torch.stack([function(x[..., i]) for i in range(2)]))
    assert found.is_contiguous()
