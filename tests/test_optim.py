import math

import pytest
import torch
from tensordict import TensorDict

from purerl import optim

G = torch.Generator().manual_seed(0)
START = {"w": torch.randn(4, 3, generator=G), "b": torch.randn(3, generator=G)}
X, Y = torch.randn(20, 4, generator=G), torch.randn(20, 3, generator=G)


def loss(params):
    return ((X @ params["w"] + params["b"] - Y) ** 2).mean()


def ours(optimizer, steps=100):
    params = TensorDict(START)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(torch.func.grad(loss)(params), state, params)
        params = optim.apply_updates(params, updates)
    return params


def theirs(make, clip=None, steps=100):
    params = {name: x.clone().requires_grad_() for name, x in START.items()}
    optimizer = make(list(params.values()))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(params).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        optimizer.step()
    return params


@pytest.mark.parametrize(
    ("mine", "make"),
    [
        (optim.sgd(0.05), lambda p: torch.optim.SGD(p, 0.05)),
        (optim.sgd(0.05, 0.9), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
        (optim.sgd(0.05, 0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True)),
        (optim.adam(1e-2, eps=1e-5), lambda p: torch.optim.Adam(p, 1e-2, eps=1e-5)),
        (optim.adamw(1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1)),
        (optim.rmsprop(1e-3), lambda p: torch.optim.RMSprop(p, 1e-3)),
    ],
)
def test_a_hundred_steps_of_torch_optim(mine, make):
    expected = theirs(make)
    for name, x in ours(mine).items():
        torch.testing.assert_close(x, expected[name].detach(), rtol=1e-4, atol=1e-5)


def test_clipping_as_torch():
    mine = ours(optim.chain(optim.clip_by_global_norm(0.3), optim.sgd(0.1)))
    expected = theirs(lambda p: torch.optim.SGD(p, 0.1), clip=0.3)
    for name, x in mine.items():
        torch.testing.assert_close(x, expected[name].detach(), rtol=1e-4, atol=1e-5)


def test_rmsprop_tf_by_hand():
    optimizer = optim.rmsprop_tf(0.5, decay=0.9, eps=0.01)
    updates, state = optimizer.update(torch.tensor([2.0]), optimizer.init(torch.tensor([0.0])), torch.tensor([0.0]))
    v = 0.9 * 1.0 + 0.1 * 4.0
    torch.testing.assert_close(updates, torch.tensor([-0.5 * 2.0 / math.sqrt(v + 0.01)]))
    torch.testing.assert_close(state["0", "v"], torch.tensor([v]))


def test_learning_rate_can_be_vmapped():
    def one(lr):
        return ours(optim.adam(lr), steps=5)["w"]

    both = torch.vmap(one)(torch.tensor([1e-3, 1e-2]))
    torch.testing.assert_close(both[1], one(1e-2))


def test_schedules_by_hand():
    assert optim.linear_schedule(1.0, 0.0, 0.25) == 0.75
    assert optim.linear_schedule(1.0, 0.5, 2.0) == 0.5
    torch.testing.assert_close(optim.cosine_schedule(2.0, 0.0, 0.5), torch.tensor(1.0))
    torch.testing.assert_close(optim.cosine_schedule(2.0, 1.0, torch.tensor(0.0)), torch.tensor(2.0))


def test_inputs_are_unmutated():
    optimizer = optim.chain(optim.clip_by_global_norm(0.1), optim.adam(0.1))
    params, grads = torch.ones(3), torch.full((3,), 2.0)
    state = optimizer.init(params)
    optimizer.update(grads, state, params)
    assert params.tolist() == [1, 1, 1]
    assert grads.tolist() == [2, 2, 2]
    assert state["1", "0", "mu"].tolist() == [0, 0, 0]


def test_radam_follows_torch():
    start = torch.tensor([1.0, -2.0, 3.0])
    mine, theirs = start.clone(), start.clone().requires_grad_()
    optimizer, reference = optim.radam(1e-2), torch.optim.RAdam([theirs], lr=1e-2)
    state = optimizer.init(mine)
    for t in range(12):
        gradient = torch.sin(torch.arange(3.0) + t)
        updates, state = optimizer.update(gradient, state, mine)
        mine = optim.apply_updates(mine, updates)
        theirs.grad = gradient
        reference.step()
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)
