import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from purerl.compiling import passes

pytestmark = pytest.mark.usefixtures("seeded")

aten = torch.ops.aten


def rewritten(function, *args):
    module = make_fx(function, tracing_mode="fake")(*args)
    with next(iter(module.graph.nodes)).meta["val"].fake_mode:
        passes.Cheaper()(module.graph)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(*args), function(*args), rtol=1e-5, atol=1e-5)
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def test_the_transpose_of_a_product_is_a_product_of_transposes():
    a, b = torch.rand(2, 3, 4), torch.rand(2, 4, 5)
    targets = rewritten(lambda a, b: torch.permute(torch.bmm(a, b).reshape(2, 3, 5), [0, 2, 1]).clone(), a, b)
    turned = [aten.permute.default, aten.permute.default, aten.bmm.default, aten.reshape.default, aten.clone.default]
    assert targets == turned
    assert turned == rewritten(lambda a, b: torch.bmm(a, b).reshape(1, 2, 3, 5).permute(0, 1, 3, 2).clone(), a, b)


def test_a_product_that_is_used_itself_stays():
    def both(a, b):
        product = torch.bmm(a, b)
        return product, torch.permute(product, [0, 2, 1])

    assert rewritten(both, torch.rand(2, 3, 4), torch.rand(2, 4, 5))[0] is aten.bmm.default
    assert rewritten(lambda a: torch.permute(torch.bmm(a, a), [1, 2, 0]), torch.rand(3, 3, 3))[0] is aten.bmm.default


def test_a_transposition_that_is_undone_is_none():
    def back_and_forth(a, b):
        return torch.permute(torch.permute(torch.bmm(a, b), [0, 2, 1]), [0, 2, 1]).clone()

    assert rewritten(back_and_forth, torch.rand(2, 3, 4), torch.rand(2, 4, 5)) == [aten.bmm.default, aten.clone.default]
    turned = rewritten(lambda x: torch.permute(torch.permute(x, [1, 2, 0]), [1, 2, 0]).clone(), torch.rand(2, 3, 4))
    assert turned == [aten.permute.default, aten.permute.default, aten.clone.default]


@pytest.mark.parametrize(
    "x", [torch.arange(-3, 9).reshape(2, 6), torch.arange(12).reshape(2, 6) % 3 > 0, torch.tensor([2**53 + 1, 1])]
)
def test_short_running_sums_of_integers_are_kernels(x):
    assert aten.cumsum.default not in rewritten(lambda x: x.cumsum(-1), x)
    assert aten.cumsum.default not in rewritten(lambda x: x.cumsum(x.ndim - 1), x)


@pytest.mark.parametrize(("x", "axis"), [(torch.arange(100), 0), (torch.arange(12).reshape(2, 6), 0), (torch.arange(5.0), 0)])
def test_other_running_sums_stay(x, axis):
    assert aten.cumsum.default in rewritten(lambda x: x.cumsum(axis), x)
