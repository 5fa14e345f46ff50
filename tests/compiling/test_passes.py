import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from purerl.compiling import passes

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _own_draws():
    with torch.random.fork_rng():
        yield


def rewritten(function, *args):
    module = make_fx(function, tracing_mode="fake")(*args)
    passes.Cheaper()(module.graph)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(*args), function(*args), rtol=1e-5, atol=1e-5)
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def test_the_transpose_of_a_product_is_a_product_of_transposes():
    a, b = torch.rand(2, 3, 4), torch.rand(2, 4, 5)
    targets = rewritten(lambda a, b: torch.permute(torch.bmm(a, b).reshape(2, 3, 5), [0, 2, 1]).clone(), a, b)
    assert targets == [aten.permute.default, aten.permute.default, aten.bmm.default, aten.clone.default]


def test_a_product_that_is_used_itself_stays():
    def both(a, b):
        product = torch.bmm(a, b)
        return product, torch.permute(product, [0, 2, 1])

    assert rewritten(both, torch.rand(2, 3, 4), torch.rand(2, 4, 5))[0] is aten.bmm.default
    assert rewritten(lambda a: torch.permute(torch.bmm(a, a), [1, 2, 0]), torch.rand(3, 3, 3))[0] is aten.bmm.default
