import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from purerl import random
from purerl.transforms import compile

N = 200_000


def words(*hexes):
    return torch.tensor([random._int32(int(h, 16)) for h in hexes], dtype=torch.int32)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # Random123 1.14, tests/kat_vectors, threefry2x32 with 20 rounds
        (("0", "0"), ("0", "0"), ("6b200159", "99ba4efe")),
        (("ffffffff", "ffffffff"), ("ffffffff", "ffffffff"), ("1cb996fc", "bb002be7")),
        (("13198a2e", "03707344"), ("243f6a88", "85a308d3"), ("c4923a9c", "483df7a0")),
    ],
)
def test_known_answers(key, counter, expected):
    x = random.threefry2x32(words(*key), tuple(words(*counter)))
    assert torch.stack(x).tolist() == words(*expected).tolist()


def test_key_holds_64_bits_and_refuses_more():
    assert random.key(0xDEADBEEF_00000001).tolist() == words("1", "deadbeef").tolist()
    with pytest.raises(ValueError, match=r"^seed: -1 is not in \[0, 2\*\*64\)$"):
        random.key(-1)


def test_streams_of_one_key_are_disjoint():
    key = random.key(1)
    streams = [random.bits(key, (2000,)), random.split(key, 1000).flatten(), random.fold_in(key, 3)]
    pairs = {tuple(p) for s in streams for p in s.reshape(-1, 2).tolist()}
    assert len(pairs) == 1000 + 1000 + 1


def test_bits_are_fair():
    x = random.bits(random.key(2), (N,))
    ones = torch.stack([((x >> i) & 1).sum() for i in range(32)]).double()
    assert ((ones - N / 2).abs() < 5 * math.sqrt(N) / 2).all()


def test_uniform_and_normal_and_gumbel_distributions():
    assert stats.kstest(random.uniform(random.key(3), (N,)).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(random.normal(random.key(4), (N + 1,)).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(random.gumbel(random.key(5), (N,)).numpy(), "gumbel_r").pvalue > 1e-3
    low_high = random.uniform(random.key(6), (N,), -2.0, 3.0)
    assert -2 <= low_high.min() < -1.99
    assert 2.99 < low_high.max() <= 3


def test_categorical_randint_bernoulli_choice_frequencies():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    draws = {
        "categorical": random.categorical(random.key(7), p.log().expand(N, 4)),
        "choice": random.choice(random.key(8), 4, (N,), p),
    }
    for x in draws.values():
        assert stats.chisquare(torch.bincount(x, minlength=4).numpy(), N * np.array([0.1, 0.2, 0.3, 0.4])).pvalue > 1e-3
    x = random.randint(random.key(9), (N,), -3, 4)
    assert stats.chisquare(torch.bincount(x + 3, minlength=7).numpy()).pvalue > 1e-3
    assert abs(random.bernoulli(random.key(10), 0.3, (N,)).float().mean() - 0.3) < 0.005
    without = random.choice(
        random.key(11), 10, (10,), torch.rand(10, generator=torch.Generator().manual_seed(0)) + 0.1, replace=False
    )
    assert sorted(without.tolist()) == list(range(10))


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_permutation_is_one(n, seed):
    assert torch.equal(random.permutation(random.key(seed), n).sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [2, 3, 5, 64, 100])
def test_permutation_is_uniform(n):
    keys = torch.vmap(lambda i: random.fold_in(random.key(12), i))(torch.arange(40_000))
    p = torch.vmap(lambda key: random.permutation(key, n))(keys)
    expected = len(keys) / n
    places = torch.stack([(p == value).sum(0) for value in range(n)]).double()
    chi2 = ((places - expected) ** 2 / expected).sum().item()
    assert stats.chi2.sf(chi2, (n - 1) ** 2) > 1e-4
    neighbours = torch.bincount(p[:, 0] * n + p[:, 1], minlength=n * n)[~torch.eye(n, dtype=torch.bool).flatten()]
    assert stats.chisquare(neighbours.numpy()).pvalue > 1e-4


def test_all_orders_of_five_come_up_equally():
    keys = random.split(random.key(13), 60_000)
    p = torch.vmap(lambda key: random.permutation(key, 5))(keys)
    _, counts = torch.unique((p * 5 ** torch.arange(5)).sum(-1), return_counts=True)
    assert len(counts) == 120
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: random.bits(key, (33,)),
        lambda key: random.uniform(key, (5, 7)),
        lambda key: random.split(key, 3),
        lambda key: random.fold_in(key, 5),
        lambda key: random.permutation(key, 100),
    ],
)
def test_same_bits_eager_vmapped_and_compiled(draw):
    keys = random.split(random.key(14), 3)
    singles = torch.stack([draw(key) for key in keys])
    assert torch.equal(torch.vmap(draw)(keys), singles)
    assert torch.equal(compile(torch.vmap(draw))(keys), singles)


def test_compiled_normals_are_within_a_few_ulp():
    keys = random.split(random.key(15), 2)
    torch.testing.assert_close(
        compile(torch.vmap(lambda key: random.normal(key, (1001,))))(keys),
        torch.vmap(lambda key: random.normal(key, (1001,)))(keys),
        rtol=2e-6,
        atol=2e-6,
    )


def test_bad_input():
    with pytest.raises(ValueError, match=r"^randint: \[3, 3\) must hold between 1 and 2\*\*32 integers$"):
        random.randint(random.key(0), (), 3, 3)
    with pytest.raises(ValueError, match=r"^permutation: n = 0 is not in \[1, 2\*\*30\]$"):
        random.permutation(random.key(0), 0)
    with pytest.raises(ValueError, match=r"^choice: 4 draws without replacement from n = 3$"):
        random.choice(random.key(0), 3, (4,), replace=False)


@pytest.mark.parametrize("wrong", [0, 1.0, None, torch.zeros(2), torch.zeros(3, 2, dtype=torch.int32)], ids=str)
@pytest.mark.parametrize(
    "f",
    [
        random.split,
        lambda key: random.fold_in(key, 1),
        random.uniform,
        random.normal,
        lambda key: random.permutation(key, 5),
        lambda key: random.categorical(key, torch.zeros(3)),
        lambda key: random.choice(key, 5),
    ],
)
def test_what_is_no_key_is_refused(f, wrong):
    with pytest.raises(ValueError, match=r"^key: .* is not a key, int32 \[2\]; random.key\(0\) makes one, vmap maps over several$"):
        f(wrong)


@pytest.mark.parametrize("wrong", ["0", 1.5, None])
def test_what_is_no_seed_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^seed: .* is not an integer$"):
        random.key(wrong)
