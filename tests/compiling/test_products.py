import pytest
import torch

from purerl import compile, vmap
from purerl.compiling import inductor, products

pytestmark = pytest.mark.usefixtures("seeded")

SIZES = [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1), (600, 530, 520), (33, 64, 17), (1, 700, 600)]


def factors(m, k, n, *lead):
    sizes = {"a": (m, k), "b": (k, n), "across": (k, m), "down": (n, k), "bias": (n,)}
    return {name: torch.randn(*lead, *size) for name, size in sizes.items()}


def multiply(a, b, across, down, bias):
    """Factors that lie in every way, as layers and their gradients have them; with a bias of a row, and of the whole."""
    a = a.tanh()
    whole = torch.nn.functional.linear(a, down, bias)
    return a @ b, a @ down.T, across.T @ b, across.T @ down.T, whole, torch.addmm(whole, a, b), torch.addmm(bias, a, b, beta=0.5)


def multiply_all(all_factors):
    return [multiply(**it) for it in all_factors]


@pytest.mark.parametrize("lanes", [(), (3,)])
def test_products_are_those_of_torch(lanes):
    given = [factors(*size, *lanes) for size in SIZES]
    function = vmap(multiply_all) if lanes else multiply_all
    ours, theirs = compile(function)(given), function(given)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if not lanes:
        torch.testing.assert_close(ours, compile(function, threads=2)(given), rtol=0, atol=0)


@pytest.mark.skipif(
    not (products._has_kernel() and inductor.CPP_WRAPPER), reason="a processor without AVX-512, or a torch without C++ wrappers"
)
def test_a_program_multiplies_by_the_micro_kernel(monkeypatch):
    calls, call = [], products._call
    monkeypatch.setattr(products, "_call", lambda node: calls.append(call(node)) or calls[-1])
    compile(lambda a, b: (a @ b.T).tanh() @ b)(torch.randn(9, 11), torch.randn(10, 11))
    assert len(calls) == 2
    assert all("purerl_products(" in x for x in calls)


def test_what_is_no_product_of_float32_is_left_to_torch():
    a = torch.randn(9, 11, dtype=torch.float64)
    torch.testing.assert_close(compile(lambda a: a @ a.T)(a), a @ a.T)
