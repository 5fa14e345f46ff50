import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from purerl import compile, vmap
from purerl.replay import sum_tree


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 15, 16, 17, 300]), st.integers(0, 2**31))
def test_update_and_find_follow_an_exact_reference(n, seed):
    draw = np.random.default_rng(seed)
    tree, exact = sum_tree.init(n), np.zeros(n)
    for _ in range(6):
        items = draw.choice(n, min(n, 9), replace=False)
        weights = np.where(draw.random(len(items)) < 0.3, 0, draw.random(len(items)) * 10 ** draw.uniform(-6, 6, len(items)))
        tree = sum_tree.update(tree, n, torch.tensor(items), torch.tensor(weights, dtype=torch.float32))
        exact[items] = weights
    np.testing.assert_allclose(sum_tree.weights(tree, n).numpy(), exact, rtol=1e-6)
    np.testing.assert_allclose(float(sum_tree.total(tree)), exact.sum(), rtol=1e-5)
    if exact.sum() == 0:
        return
    heights = torch.linspace(0, 1, 97) * sum_tree.total(tree)
    items, weights = sum_tree.find(tree, n, heights)
    assert (weights > 0).all()
    assert (exact[items.numpy()] > 0).all()
    np.testing.assert_allclose(weights.numpy(), exact[items.numpy()], rtol=1e-6)
    above = np.cumsum(exact)
    below, slack = above - exact, 1e-4 * exact.sum()
    assert (heights.numpy() >= below[items.numpy()] - slack).all()
    assert (heights.numpy() <= above[items.numpy()] + slack).all()


def test_an_item_of_weight_zero_never_comes_out_whatever_the_rounding():
    n = 4000
    weights = torch.zeros(n)
    weights[::7] = 1.0 / 3.0
    weights[5], weights[3999] = 1e7, 1e-7
    weights[3998] = 0.0
    tree = sum_tree.update(sum_tree.init(n), n, torch.arange(n), weights)
    edges = torch.cat([torch.zeros(1), weights.cumsum(0), sum_tree.total(tree)[None]])
    heights = torch.cat([edges, torch.nextafter(edges, torch.tensor(0.0)), torch.nextafter(edges, torch.tensor(1e9))])
    items, found = sum_tree.find(tree, n, heights.clamp(min=0.0))
    assert (weights[items] > 0).all()
    assert torch.equal(found, weights[items])


@pytest.mark.parametrize("lanes", [None, 3])
def test_compiled_and_mapped_are_as_eager(lanes):
    n = 300

    def f(tree, items, weights, heights):
        tree = sum_tree.update(tree, n, items, weights)
        return tree, sum_tree.find(tree, n, heights * sum_tree.total(tree))

    lead = (lanes,) if lanes else ()
    items = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i))[:20] for i in range(lanes or 1)])
    items = items if lanes else items[0]
    draw = torch.Generator().manual_seed(0)
    args = items, torch.rand(*lead, 20, generator=draw), torch.rand(*lead, 50, generator=draw)
    init = vmap(lambda _: sum_tree.init(n))(torch.zeros(lanes)) if lanes else sum_tree.init(n)
    compiled, (found, weights) = compile(vmap(f) if lanes else f)(init, *args)
    for lane in range(lanes or 1):
        mine = [x[lane] for x in args] if lanes else args
        tree, (wanted, wanted_weights) = f(sum_tree.init(n), *mine)
        sums = compiled.memory["sums"][lane] if lanes else compiled.memory["sums"]
        torch.testing.assert_close(sums, tree.memory["sums"])
        assert torch.equal(found[lane] if lanes else found, wanted)
        torch.testing.assert_close(weights[lane] if lanes else weights, wanted_weights)
