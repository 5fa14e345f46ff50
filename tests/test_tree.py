import pytest
import torch
from tensordict import TensorDict

from purerl import tree


def example():
    return TensorDict(a=torch.arange(6.0).reshape(2, 3), b=TensorDict(c=torch.tensor([True, False]), d=torch.arange(2)))


def test_pack_round_trip():
    packed, unpack = tree.pack(example())
    assert {dtype: x.shape for dtype, x in packed.items()} == {torch.float32: (6,), torch.bool: (2,), torch.int64: (2,)}
    for x, y in zip(tree.leaves(unpack(packed)), tree.leaves(example()), strict=True):
        assert torch.equal(x, y)


def test_pack_keeps_leading_axes():
    packed, unpack = tree.pack(example(), axes=1)
    assert packed[torch.float32].shape == (2, 3)
    assert torch.equal(unpack(tree.index(packed, 1))["a"], torch.tensor([3.0, 4.0, 5.0]))


def test_pack_leaves_the_large_ones_apart():
    packed, unpack = tree.pack(example(), axes=1, apart=1)
    assert {name: x.shape for name, x in packed.items()} == {torch.bool: (2, 1), torch.int64: (2, 1), 0: (2, 3)}
    assert torch.equal(packed[0], example()["a"])
    assert torch.equal(unpack(tree.index(packed, 1))["a"], torch.tensor([3.0, 4.0, 5.0]))
    assert torch.equal(unpack(packed)["b", "c"], torch.tensor([True, False]))


def test_ravel_round_trip():
    params = {"w": torch.ones(2, 2), "b": torch.zeros(3)}
    flat, unravel = tree.ravel(params)
    assert flat.shape == (7,)
    assert torch.equal(unravel(flat)["w"], params["w"])


def test_where_broadcasts_over_trailing_axes():
    mask = torch.tensor([True, False])
    out = tree.where(mask, example(), tree.map(torch.zeros_like, example()))
    assert out["a"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert out["b", "d"].tolist() == [0, 0]


def test_what_has_a_name_is_found_by_it():
    """Whatever the order, at any depth; other names are told."""
    a = TensorDict(x=torch.zeros(2), inner=TensorDict(p=torch.ones(2), q=torch.full((2,), 2.0)))
    b = TensorDict(inner=TensorDict(q=torch.full((2,), 20.0), p=torch.full((2,), 10.0)), x=torch.full((2,), 5.0))
    found = tree.map(lambda x, y: x + y, a, b)
    assert (found["x"].tolist(), found["inner", "p"].tolist(), found["inner", "q"].tolist()) == ([5, 5], [11, 11], [22, 22])
    chosen = tree.where(torch.tensor([True, False]), a, b)
    assert chosen["inner", "q"].tolist() == [2, 20]
    with pytest.raises(ValueError, match="tree: one has x, inner, but another x, other"):
        tree.map(lambda x, y: x, a, TensorDict(x=torch.zeros(2), other=torch.zeros(2)))
