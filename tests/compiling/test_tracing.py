"""What a traced function may not do, and what becomes of what it closes over."""

import pytest
import torch
from conftest import assert_trees_equal
from torch import nn

from purerl import compile, iterate, scan, tree, vmap
from purerl.compiling.tracing import TraceError, trace


def branch(x):
    if x.sum() > 0:
        return x
    return -x


def item(x):
    return x * x.sum().item()


def mask(x):
    return x[x > 0]


def add(x):
    y = x * 2
    y.add_(1)
    return y


def assign(x):
    y = x.clone()
    y[0] = 1.0
    return y


def argument(x):
    x += 1
    return x


def in_a_loop(x):
    return scan(lambda carry, x: (carry.add_(x), carry * 1), x[0], x)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("f", [branch, item, mask])
def test_what_depends_on_numbers_is_refused_where_it_stands(f, mapped):
    with pytest.raises(
        TraceError, match=r"test_tracing\.py:\d+ \(.*\): what happens next depends on the numbers in a tensor.*where"
    ):
        compile(vmap(f) if mapped else f)(torch.ones(3, 2))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("f", [add, assign, argument, in_a_loop])
def test_what_writes_into_a_tensor_is_refused_where_it_stands(f, mapped):
    x = torch.ones(3, 2)
    with pytest.raises(TraceError, match=r"test_tracing\.py:\d+ \(.*\): \w+_ writes into a tensor; in a pure function write"):
        compile(vmap(f) if mapped else f)(x)
    assert torch.equal(x, torch.ones(3, 2))


def test_torch_may_write_into_its_own_tensors():
    """The gradient of `clamp` does."""
    f = torch.func.grad(lambda x: torch.clamp(x, max=1.0).sum())
    assert compile(f)(torch.tensor([0.5, 2.0])).tolist() == [1.0, 0.0]


def test_large_constants_become_inputs_and_small_ones_code():
    large, small = torch.arange(100.0), torch.tensor([1.0, 2.0])
    graph = trace(lambda x: [x + large, x + small[0]], [torch.zeros(100)])
    assert len(graph.constants) == 1
    assert graph.constants[0] is large
    found = compile(lambda x: (x + large, scan(lambda c, x: (c + large, x * small[1]), x, x)))(torch.zeros(100))
    assert torch.equal(found[0], large)
    assert torch.equal(found[1][0], 100 * large)


def test_what_is_used_is_told():
    assert trace(lambda a, b: [a + 1], [torch.zeros(2), torch.zeros(3)]).used == [True, False]


def test_an_argument_that_requires_a_gradient_is_refused():
    with pytest.raises(ValueError, match="an argument requires a gradient; take it inside the function"):
        compile(lambda x: x * 2)(torch.ones(2, requires_grad=True))


def test_a_loop_cannot_be_differentiated_through():
    def f(x):
        return scan(lambda carry, x: (carry * x, carry), x[0], x)[0]

    with pytest.raises(ValueError, match="take the gradient inside its body"):
        compile(torch.func.grad(f))(torch.ones(3))


def test_a_compiled_function_becomes_part_of_another():
    inner = compile(lambda x: scan(lambda carry, x: (carry + x, carry), x[0] * 0, x)[0])
    xs = torch.arange(6.0).reshape(2, 3)
    assert compile(vmap(inner))(xs).tolist() == vmap(inner)(xs).tolist() == [3.0, 12.0]


def test_scans_in_scans_under_two_vmaps():
    def inner(x):
        return scan(lambda carry, x: (carry + x * x.sum(), carry), x[0], x)[0]

    def outer(x):
        return scan(lambda carry, y: (carry + inner(x + y), carry.sum()), x[0], x[:, :1])

    f = vmap(vmap(outer))
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(compile(f)(x), f(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_cells_of_torch_write_into_tensors_of_their_own(make):
    with torch.random.fork_rng():
        cell = make(3, 5)
    params = {name: x.detach() for name, x in cell.named_parameters()}
    x, h = torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(-1, 1, 20).reshape(4, 5)

    def run(params, x):
        state = (h, h * 2) if make is nn.LSTMCell else h
        for _ in range(3):
            state = torch.func.functional_call(cell, params, (x, state))
        return state[0] if make is nn.LSTMCell else state

    def grad(params, x):
        return torch.func.grad(lambda params: run(params, x).pow(2).sum())(params)

    for f in (run, grad):
        assert_trees_equal(compile(f)(params, x), f(params, x), rtol=1e-5, atol=1e-6)
        if make is nn.LSTMCell:  # torch cannot map it
            continue
        lanes = tree.stack([(params, x), (params, x * 2)])
        assert_trees_equal(compile(vmap(f))(*lanes), tree.stack([f(params, x), f(params, x * 2)]), rtol=1e-5, atol=1e-6)


def test_what_an_inner_and_an_outer_loop_both_close_over_and_what_comes_behind_the_inner_one():
    """A small constant of both, and a product behind the inner loop, whose memory belongs to the outer one."""
    draw = torch.Generator().manual_seed(0)
    by, weights = torch.tensor([0.5, -0.25]), torch.rand(2, 2, generator=draw)

    def outer(x, ys):
        x, _ = scan(lambda x, y: (x * by + y, {}), x, ys)
        product = (x[None] * by) @ weights
        return x + torch.tanh(product @ weights)[0], {"norm": (product @ weights.mT).sum()}

    def f(x, yss):
        return scan(outer, x, yss)

    x, yss = torch.rand(3, 2, generator=draw), torch.rand(3, 4, 5, 2, generator=draw)
    after, found = compile(vmap(f))(x, yss)
    for i in range(3):
        lone, norm = f(x[i], yss[i])
        torch.testing.assert_close(after[i], lone)
        torch.testing.assert_close(found["norm"][i], norm["norm"])


def test_a_result_of_a_loop_that_is_given_back_twice():
    """By a loop that is repeated: as the state, and as what is told of it."""

    def twice(x):
        x, _ = scan(lambda x, y: (0.5 * x + y, {}), x, torch.arange(4.0))
        return x, {"again": x}

    x = torch.arange(3.0)
    state, info = iterate(twice)(x, 2)
    expected, _ = twice(twice(x)[0])
    assert_trees_equal([state, info["again"]], [expected, expected], rtol=1e-6, atol=1e-6)
