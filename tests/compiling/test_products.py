import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from purerl import compile, vmap
from purerl.compiling import disk, products

needs_kernel = pytest.mark.skipif(not products._has_kernel(), reason="a processor without AVX-512, or torch without oneDNN")
SIZES = [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1), (600, 530, 520), (33, 64, 17), (1, 700, 600)]


def layouts(a, b, across, down, bias):
    """Every way in which factors lie, as layers and their gradients multiply them; with a bias of a row, and of the whole."""
    a = a.tanh()
    whole = torch.nn.functional.linear(a, down, bias)
    return a @ b, a @ down.T, across.T @ b, across.T @ down.T, whole, torch.addmm(whole, a, b), torch.addmm(bias, a, b, beta=0.5)


def factors(m, k, n, *lead):
    return [torch.randn(*lead, *size) for size in ((m, k), (k, n), (k, m), (n, k), (n,))]


@pytest.mark.parametrize("size", SIZES)
def test_products_are_those_of_torch(size):
    torch.manual_seed(0)
    for threads in (1, 2):
        for function, given_ in ((layouts, factors(*size)), (vmap(layouts), factors(*size, 3))):
            for ours, theirs in zip(compile(function, threads=threads)(*given_), function(*given_), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
