"""Memory that is written in place: the same tensors, the right numbers, and nothing left to who has handed it on."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import Donated, SpentError, compile, compiling, random, scan, specialize, tree, vmap, write
from purerl.compiling import programs
from purerl.compiling.tracing import TraceError

CAPACITY = 24


class Buffer(TensorClass):
    """A ring of items with priorities."""

    content: Donated
    priorities: Donated
    cursor: Tensor


def init(capacity: int = CAPACITY) -> Buffer:
    content = TensorDict(obs=torch.zeros(capacity, 3), reward=torch.zeros(capacity, dtype=torch.float64))
    return Buffer(
        content=Donated(memory=content),
        priorities=Donated(memory=TensorDict(p=torch.zeros(capacity))),
        cursor=torch.zeros((), dtype=torch.int64),
    )


def add(buffer: Buffer, new: dict[str, Tensor]) -> Buffer:
    n, capacity = len(new["reward"]), len(buffer.content.memory["reward"])
    rows = (buffer.cursor + torch.arange(n)) % capacity
    return Buffer(
        content=write(buffer.content, rows, new),
        priorities=write(buffer.priorities, rows, torch.ones(n)),
        cursor=(buffer.cursor + n) % capacity,
    )


def learn(buffer: Buffer, weight: Tensor, rows: Tensor) -> tuple[Buffer, Tensor, Tensor]:
    """A gradient step a turn on the rows `[K, M]`, whose priorities become the errors."""

    def turn(carry: tuple[Donated, Tensor], rows: Tensor) -> tuple[tuple[Donated, Tensor], Tensor]:
        priorities, weight = carry
        obs, reward = buffer.content.memory["obs"][rows], buffer.content.memory["reward"][rows].float()

        def loss(w: Tensor) -> tuple[Tensor, Tensor]:
            error = obs @ w - reward
            return (priorities.memory["p"][rows] * error**2).mean(), error

        grad, error = torch.func.grad(loss, has_aux=True)(weight)
        return (write(priorities, rows, error.abs()), weight - 0.1 * grad), error.mean()

    (priorities, weight), errors = scan(turn, (buffer.priorities, weight), rows)
    return tree.replace(buffer, priorities=priorities), weight, errors


def step(buffer: Buffer, weight: Tensor, new: dict[str, Tensor], rows: Tensor) -> tuple[Buffer, Tensor, Tensor]:
    return learn(add(buffer, new), weight, rows)


def reference(buffer: dict[str, Tensor], cursor: int, weight: Tensor, new: dict[str, Tensor], rows: Tensor) -> tuple:
    """`step` by plain assignment."""
    buffer = {name: x.clone() for name, x in buffer.items()}
    for i in range(len(new["reward"])):
        at = (cursor + i) % CAPACITY
        buffer["obs"][at], buffer["reward"][at], buffer["p"][at] = new["obs"][i], new["reward"][i], 1.0
    errors = []
    for chosen in rows:
        error = buffer["obs"][chosen] @ weight - buffer["reward"][chosen].float()
        weight = weight - 0.1 * (2 * (buffer["p"][chosen] * error) @ buffer["obs"][chosen]) / len(chosen)
        buffer["p"][chosen] = error.abs()
        errors.append(error.mean())
    return buffer, (cursor + len(new["reward"])) % CAPACITY, weight, torch.stack(errors)


def inputs(key: Tensor, n: int = 4, turns: int = 3, m: int = 5) -> tuple[dict[str, Tensor], Tensor]:
    new_key, reward_key, *row_keys = random.split(key, 2 + turns)
    new = {"obs": random.normal(new_key, (n, 3)), "reward": random.normal(reward_key, (n,)).double()}
    return new, torch.stack([random.permutation(k, CAPACITY)[:m] for k in row_keys])


def leaves_of(buffer: Buffer, lane: int | None = None) -> dict[str, Tensor]:
    found = {**buffer.content.memory.to_dict(), **buffer.priorities.memory.to_dict()}
    return found if lane is None else {name: x[lane] for name, x in found.items()}


def places(buffer: Buffer) -> list[int]:
    return [x.data_ptr() for x in leaves_of(buffer).values()]


eager: Callable = lambda f: f  # noqa: E731
compiled_step, compiled_lanes = compile(step), compile(vmap(step))


@pytest.mark.parametrize("run", [step, compiled_step], ids=["eager", "compiled"])
@given(seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_steps_write_in_place_and_give_the_numbers_of_plain_assignment(run: Callable, seeds: list[int]) -> None:
    buffer, weight = init(), torch.zeros(3)
    there, (old, cursor, slow_weight) = places(buffer), (leaves_of(tree.map(torch.clone, buffer)), 0, weight)
    for seed in seeds:
        new, rows = inputs(random.key(seed))
        buffer, weight, errors = run(buffer, weight, new, rows)
        old, cursor, slow_weight, slow_errors = reference(old, cursor, slow_weight, new, rows)
        assert places(buffer) == there
        assert buffer.cursor == cursor
        torch.testing.assert_close((leaves_of(buffer), weight, errors), (old, slow_weight, slow_errors))


@pytest.mark.parametrize("run", [vmap(step), compiled_lanes], ids=["eager", "compiled"])
def test_lanes_write_in_place_and_equal_the_lone_run(run: Callable) -> None:
    n = 3
    buffers = vmap(lambda key: init())(random.split(random.key(0), n))
    weights, there = torch.zeros(n, 3), places(buffers)
    lone = [(leaves_of(init()), 0, torch.zeros(3), torch.zeros(0)) for _ in range(n)]
    for i in range(5):
        keys = random.split(random.key(i + 1), n)
        new, rows = (tree.stack(x) for x in zip(*[inputs(key) for key in keys], strict=True))
        buffers, weights, errors = run(buffers, weights, new, rows)
        lone = [reference(*run[:3], tree.index(new, j), rows[j]) for j, run in enumerate(lone)]
        assert places(buffers) == there
        for j, (memory, cursor, weight, slow_errors) in enumerate(lone):
            assert buffers.cursor[j] == cursor
            torch.testing.assert_close((leaves_of(buffers, j), weights[j], errors[j]), (memory, weight, slow_errors))


@pytest.mark.parametrize("wrap", [eager, vmap, compile, lambda f: compile(vmap(f))], ids=["eager", "vmap", "compile", "both"])
def test_who_has_handed_memory_on_has_it_no_longer(wrap: Callable) -> None:
    lanes = wrap not in (eager, compile)
    buffer = vmap(lambda key: init())(random.split(random.key(0), 2)) if lanes else init()
    new, _ = inputs(random.key(1))
    new = tree.stack([new, new]) if lanes else new
    same, held = tree.map(lambda x: x, buffer), buffer.content.memory["obs"]
    go_on = wrap(add)(buffer, new)
    for use in (lambda: wrap(add)(buffer, new), lambda: wrap(add)(same, new), lambda: held + 1, lambda: held.shape):
        with pytest.raises(SpentError, match="go on with that"):
            use()
    assert go_on.content.memory["obs"].sum() != 0
    assert wrap(add)(go_on, new).cursor.max() == 8


def test_memory_is_spent_by_a_program_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(tensors: list[Tensor]) -> list[Tensor]:
        tensors[0][0] = 1.0
        raise MemoryError

    monkeypatch.setattr(programs, "build", lambda *args: programs.Built(run, args[2], (0,), (12,)))
    memory = Donated(memory=TensorDict(x=torch.zeros(3)))
    held = memory.memory["x"]
    with pytest.raises(MemoryError):
        compile(lambda memory: memory)(memory)
    with pytest.raises(SpentError):
        held.sum()


def test_a_function_that_reads_spends_nothing() -> None:
    buffer = init()
    read = compile(lambda buffer, rows: buffer.content.memory["obs"][rows].sum(-1))
    rows = torch.tensor([1, 2])
    torch.testing.assert_close(read(buffer, rows), read(buffer, rows))
    assert buffer.content.memory["obs"].sum() == 0


def test_memory_that_was_written_cannot_be_read_as_it_was() -> None:
    def late(buffer: Buffer, new: dict[str, Tensor]) -> tuple[Buffer, Tensor]:
        after = add(buffer, new)
        return after, buffer.content.memory["obs"][:2] + 1

    def between(buffer: Buffer, new: dict[str, Tensor], rows: Tensor) -> tuple[Buffer, Tensor]:
        after, _, _ = learn(buffer, torch.zeros(3), rows)
        return after, buffer.priorities.memory["p"] + 1

    new, rows = inputs(random.key(0))
    with pytest.raises(SpentError):
        late(init(), new)
    for f, args in ((late, (new,)), (between, (new, rows))):
        buffer = init()
        here = r"test_donation\.py:\d+ \(return after, .*\): .* read as it was before it was written at .*test_donation\.py:\d+ \("
        with pytest.raises(TraceError, match=here):
            compile(f)(buffer, *args)
        assert buffer.content.memory["obs"].sum() == 0  # not spent


def test_two_writes_of_one_call_are_both_there() -> None:
    def twice(buffer: Buffer, new: dict[str, Tensor]) -> Buffer:
        return add(add(buffer, new), new)

    new, _ = inputs(random.key(0))
    buffer = init()
    there = places(buffer)
    buffer = compile(twice)(buffer, new)
    assert places(buffer) == there
    torch.testing.assert_close(buffer.content.memory["obs"][:8], torch.cat([new["obs"], new["obs"]]))


@pytest.mark.parametrize("lanes", [False, True])
def test_a_loop_in_a_loop_writes_in_place(lanes: bool) -> None:
    def steps(buffer: Buffer, weight: Tensor, new: dict[str, Tensor], rows: Tensor) -> tuple[Buffer, Tensor, Tensor]:
        def turn(carry: tuple[Buffer, Tensor], xs: tuple) -> tuple[tuple[Buffer, Tensor], Tensor]:
            buffer, weight, errors = step(*carry, *xs)
            return (buffer, weight), errors

        (buffer, weight), errors = scan(turn, (buffer, weight), (new, rows))
        return buffer, weight, errors

    new, rows = tree.stack([inputs(random.key(i)) for i in range(3)])
    expected = steps(init(), torch.zeros(3), new, rows)
    args = [(init(), torch.zeros(3), new, rows)]
    args = tree.stack(args * 2) if lanes else args[0]
    there = places(args[0])
    buffer, weight, errors = compile(vmap(steps) if lanes else steps)(*args)
    assert places(buffer) == there
    for lane in range(2) if lanes else [None]:
        torch.testing.assert_close(leaves_of(buffer, lane), leaves_of(expected[0]))
        torch.testing.assert_close(tree.index((weight, errors), lane) if lanes else (weight, errors), expected[1:])


@pytest.mark.parametrize("lanes", [False, True])
def test_a_loop_that_hands_memory_on_as_it_is(lanes: bool) -> None:
    def read(buffer: Buffer, rows: Tensor) -> tuple[Buffer, Tensor]:
        def turn(carry: tuple[Buffer, Tensor], i: Tensor) -> tuple[tuple[Buffer, Tensor], Tensor]:
            buffer, total = carry
            x = buffer.content.memory["reward"][i].sum()
            return (buffer, total + x), x

        (buffer, total), xs = scan(turn, (buffer, torch.zeros((), dtype=torch.float64)), rows)
        return buffer, total + xs.sum()

    buffer = init(1 << 18)
    buffer.content.memory["reward"].copy_(torch.arange(1 << 18))
    args = (buffer, torch.tensor([[3], [7], [9]]))
    args = tree.stack([args, args]) if lanes else args
    there, f = places(args[0]), compile(vmap(read) if lanes else read)
    buffer, _ = f(*args)
    with torch.profiler.profile(profile_memory=True) as profile:
        buffer, total = f(buffer, args[1])
    assert total.tolist() == ([38.0, 38.0] if lanes else 38.0)
    assert places(buffer) == there
    assert max(abs(event.cpu_memory_usage) for event in profile.events()) < 1 << 16


def test_a_loop_that_only_writes_is_run() -> None:
    new, rows = inputs(random.key(0))
    expected, _, _ = learn(add(init(), new), torch.zeros(3), rows)
    buffer = compile(lambda buffer: learn(buffer, torch.zeros(3), rows)[0])(compile(add)(init(), new))
    torch.testing.assert_close(leaves_of(buffer), leaves_of(expected))


def numbers(n: int = 6) -> Donated:
    return Donated(memory=TensorDict(a=torch.arange(float(n))))


def at(*rows: int) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("wrap", [eager, compile], ids=["eager", "compile"])
def test_copies_of_a_part_are_copies(wrap: Callable) -> None:
    """Made before a write, they keep their numbers, and so do those that go out beside the memory."""

    def shift(d: Donated) -> tuple[Donated, Tensor, Tensor]:
        first, flags = d.memory["a"][0].clone(), (d.memory["a"] > 2)[:2].clone()
        return write(d, at(1, 2, 3), d.memory["a"][:3].clone()), first, flags

    d, first, flags = wrap(shift)(numbers())
    assert flags.tolist() == [False, False]
    assert d.memory["a"].tolist() == [0, 0, 1, 2, 4, 5]
    d, beside = wrap(lambda d: (lambda c: (c, c.memory["a"][1:3].clone()))(write(d, at(0), torch.ones(1) * 9)))(d)
    assert (first, beside.tolist()) == (0, [0, 1])


def test_copies_inside_a_loop_are_copies() -> None:
    def turn(d: Donated, i: Tensor) -> tuple[Donated, Tensor]:
        before = d.memory["a"][:2].clone()
        return write(d, i, torch.ones(1) * 9), before

    run = lambda d, rows: scan(turn, d, rows)  # noqa: E731
    found, expected = compile(run)(numbers(), at(0, 1)[:, None]), run(numbers(), at(0, 1)[:, None])
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


@pytest.mark.parametrize("lanes", [False, True])
def test_loops_of_which_only_the_inner_one_writes(lanes: bool) -> None:
    def inner(d: Donated, i: Tensor) -> tuple[Donated, Tensor]:
        return write(d, i, d.memory["a"][i] + 1), i

    def nested(d: Donated, xs: Tensor) -> Donated:
        return scan(lambda d, rows: scan(inner, d, rows), d, xs)[0]

    xs = torch.arange(6).reshape(2, 3, 1)
    for n in (8, 20_000):
        args = tree.stack([(numbers(n), xs)] * 2) if lanes else (numbers(n), xs)
        found = compile(vmap(nested) if lanes else nested)(*args).memory["a"]
        torch.testing.assert_close(found, nested(numbers(n), xs).memory["a"].expand_as(found))


def test_what_is_written_must_be_given_back() -> None:
    def forgets(d: Donated) -> Donated:
        write(d, at(0), torch.ones(1))
        return d

    def gives_none(d: Donated) -> Tensor:
        return write(d, at(0), torch.ones(1)).memory["a"].sum()

    def in_a_loop(d: Donated) -> tuple[Donated, Tensor]:
        def turn(total: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
            write(d, i, torch.ones(1))
            return total + 1, total

        return d, scan(turn, torch.zeros(()), at(0, 1)[:, None])[0]

    for f in (forgets, gives_none, in_a_loop):
        for g, d in ((f, numbers()), (vmap(f), tree.stack([numbers()] * 2))):
            with pytest.raises(TraceError, match=r"py:\d+ \(.*write\(d, .*\): what purerl\.write returned is not given back"):
                compile(g)(d)


def test_new_memory_takes_the_place_of_the_old() -> None:
    d = numbers()
    there, decay = d.memory["a"].data_ptr(), compile(lambda d: Donated(memory=TensorDict(a=d.memory["a"] * 0.5)))
    d = decay(d)
    assert d.memory["a"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert d.memory["a"].data_ptr() == there


@pytest.mark.parametrize("wrap", [eager, compile], ids=["eager", "compile"])
@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        (
            at(0, 1),
            {"obs": torch.ones(2, 3), "other": torch.ones(2)},
            r"names \['obs', 'other'\], but the memory has \['obs', 'reward'\]",
        ),
        (
            at(0, 1),
            {"obs": torch.ones(2, 3), "reward": torch.ones(2)},
            r"reward is \(torch.float32, \[2\]\), but \(torch.float64, \[2\]\)",
        ),
        (at(0, 1), {"obs": torch.ones(1, 3), "reward": torch.ones(2).double()}, r"obs is .*\[1, 3\]\), but .*\[2, 3\]\) is wanted"),
        (
            at(0, 1).float(),
            {"obs": torch.ones(2, 3), "reward": torch.ones(2).double()},
            r"rows are torch.float32 \[2\], not int64 \[M\]",
        ),
        (at(0, 1), {"obs": torch.ones(2, 3), "reward": 1.0}, r"reward is float, but"),
        ([0, 1], {"obs": torch.ones(2, 3), "reward": torch.ones(2).double()}, r"rows are list, not int64 \[M\]"),
    ],
)
def test_what_is_written_has_the_memory_s_names_shapes_and_dtypes(wrap: Callable, rows: Tensor, values: dict, message: str) -> None:
    buffer = init()
    with pytest.raises(ValueError, match=message):
        wrap(lambda content: write(content, rows, values))(buffer.content)
    assert buffer.content.memory["obs"].sum() == 0  # nothing was written or spent


def test_names_decide_what_is_written_where() -> None:
    values = {"reward": torch.ones(2).double(), "obs": torch.zeros(2, 3)}  # in another order
    assert write(init().content, at(0, 1), values).memory["reward"].tolist()[:3] == [1, 1, 0]


@pytest.mark.parametrize("wrap", [vmap, lambda f, in_dims: compile(vmap(f, in_dims))], ids=["eager", "compiled"])
def test_memory_that_is_only_read_need_not_come_back_or_be_mapped(wrap: Callable) -> None:
    def f(shared: Donated, own: Donated, row: Tensor) -> Donated:
        return write(own, row, shared.memory["a"][row] * 10)

    shared, own = numbers(), tree.stack([numbers()] * 2)
    there, g = own.memory["a"].data_ptr(), wrap(f, in_dims=(None, 0, 0))
    go_on = g(shared, own, at(1, 2)[:, None])
    assert go_on.memory["a"].tolist() == [[0, 10, 2, 3, 4, 5], [0, 1, 20, 3, 4, 5]]
    assert (go_on.memory["a"].data_ptr(), shared.memory["a"].sum()) == (there, 15)
    with pytest.raises(SpentError):
        own.memory["a"].sum()
    assert wrap(lambda d: d, in_dims=0)(go_on).memory["a"].tolist() == [[0, 10, 2, 3, 4, 5], [0, 1, 20, 3, 4, 5]]
    for h in (lambda shared, own, row: (f(shared, own, row), shared), lambda shared, own, row: write(shared, row, torch.ones(1))):
        with pytest.raises(ValueError, match="not mapped"):
            wrap(h, in_dims=(None, 0, 0))(numbers(), tree.stack([numbers()] * 2), at(1, 2)[:, None])
    with pytest.raises(ValueError, match="mapped along axis 0 or, to be read only, None"):
        wrap(lambda d: d.memory["a"].sum(), in_dims=1)(Donated(memory=TensorDict(a=torch.zeros(3, 2))))


def test_memory_that_was_not_given_does_not_come_back() -> None:
    for f in (lambda d, e: (d, d, e), lambda d, e: Donated(memory=TensorDict(a=d.memory["a"] * 2))):
        with pytest.raises(ValueError, match="what it gives back must be what it was given"):
            compile(f)(numbers(), numbers())


def test_a_loop_writes_into_contiguous_memory_only() -> None:
    def f(d: Donated, rows: Tensor) -> Donated:
        return scan(lambda d, row: (write(d, row, torch.ones(1)), {}), d, rows)[0]

    with pytest.raises(ValueError, match=r"py:\d+ \(.*shape \[6\] and strides \[2\] is donated to a scan.* contiguous memory only"):
        compile(f)(Donated(memory=TensorDict(a=torch.zeros(6, 2)[:, 0])), at(1, 2)[:, None])


def test_rows_that_there_are_not() -> None:
    d, lanes = numbers(), tree.stack([numbers()] * 2)
    for f, args in ((write, (d, at(-7), torch.ones(1))), (vmap(write), (lanes, at(5, 6)[:, None], torch.ones(2, 1)))):
        with pytest.raises(IndexError, match=r"write: memory of 6 rows has those from -6 to 5, but index -?[67] is out of bounds"):
            f(*args)
    compiled = compile(write)
    with pytest.raises(RuntimeError, match="index out of bounds"):
        compiled(d, at(6), torch.ones(1))
    with pytest.raises(SpentError):  # it may be written in part
        d.memory["a"].sum()
    assert compiled(numbers(), at(-1), torch.ones(1) * 9).memory["a"].tolist() == [0, 1, 2, 3, 4, 9]


def test_what_cannot_be_compiled_spends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from purerl.compiling import inductor

    def fail(*_: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(inductor, "build", fail)
    d, f = numbers(7), compile(lambda d, x: write(d, at(3), x))
    with pytest.raises(OSError, match="no compiler"):
        f(d, torch.ones(1))
    monkeypatch.undo()
    assert f(d, torch.ones(1)).memory["a"].tolist() == [0, 1, 2, 1, 4, 5, 6]


def test_memory_of_any_dtype_and_shape() -> None:
    kinds = {"double": torch.float64, "int": torch.int64, "flag": torch.bool, "half": torch.bfloat16}
    values = {name: torch.tensor([[0.0, 7.0], [3.0, 0.0]]).to(dtype) for name, dtype in kinds.items()}
    values["nothing"] = torch.zeros(2, 2, 0)

    def f(d: Donated, total: Donated, rows: Tensor, values: dict) -> tuple[Donated, Donated]:
        def turn(carry: tuple[Donated, Donated], x: tuple) -> tuple:
            d, total = carry
            row, new = x
            grown = Donated(memory=TensorDict(a=total.memory["a"] + d.memory["int"][row].sum() + 1))
            return (write(d, row, new), grown), {}

        twice = (torch.stack([rows, rows]), {name: torch.stack([x, x]) for name, x in values.items()})
        return scan(lambda carry, xs: scan(turn, carry, xs), (d, total), twice)[0]

    memory = Donated(memory=TensorDict({name: torch.zeros(4, *x.shape[2:], dtype=x.dtype) for name, x in values.items()}))
    args = (memory, Donated(memory=TensorDict(a=torch.tensor(0))), at(0, 1, 2, 3).reshape(2, 2), values)
    found = compile(vmap(f))(*tree.stack([args, args]))
    expected = f(*args)
    assert expected[1].memory["a"] == 14
    for lane in range(2):
        torch.testing.assert_close(tree.leaves(tree.index(found, lane)), tree.leaves(expected))


def test_arguments_that_lie_in_donated_memory_are_refused() -> None:
    buffer = init()
    inside = {"obs": buffer.content.memory["obs"][:4], "reward": torch.zeros(4, dtype=torch.float64)}
    f = compile(add)
    f(init(), inside)
    with pytest.raises(ValueError, match="lies in memory that is donated"):
        f(buffer, inside)
    base, read = torch.zeros(100), compile(lambda d, x: (write(d, at(0), torch.ones(1)), x.sum()))
    read(Donated(memory=TensorDict(a=torch.zeros(20))), torch.zeros(100))
    with pytest.raises(ValueError, match="lies in memory that is donated"):  # it begins below it
        read(Donated(memory=TensorDict(a=base[10:30])), base)
    with pytest.raises(ValueError, match="specialize: what is donated cannot be given back"):
        specialize(lambda d: write(d, at(0), torch.ones(1)), numbers())


@pytest.mark.parametrize("lanes", [False, True])
def test_cost_of_a_call_does_not_depend_on_the_capacity(lanes: bool) -> None:
    """Adding, sampling in a loop and writing priorities there touch the rows alone: nothing of the memory's size is allocated."""
    buffer, capacity = init(1 << 18), 1 << 18
    new, rows = inputs(random.key(0))
    args = (buffer, torch.zeros(3), new, rows * (capacity // CAPACITY))
    args = tree.stack([args, args]) if lanes else args
    f = compile(vmap(step) if lanes else step)
    buffer, *_ = f(*args)
    with torch.profiler.profile(profile_memory=True) as profile:
        f(buffer, *args[1:])
    assert max(abs(event.cpu_memory_usage) for event in profile.events()) < 1 << 16


def test_lanes_of_lanes() -> None:
    keys = random.split(random.key(0), 6)
    args = tree.stack([(init(), torch.zeros(3), *inputs(key)) for key in keys])
    nested = tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]).clone(), args)
    nested = tree.unflatten(tree.batched(tree.structure(args), 1), tree.leaves(nested))
    expected = vmap(step)(*args)
    found = compile(vmap(vmap(step)))(*nested)
    flat = [x.flatten(0, 1) for x in tree.leaves(found)]
    torch.testing.assert_close(flat, tree.leaves(expected))


def test_a_program_from_disk_writes_in_place_too() -> None:
    new, _ = inputs(random.key(0))
    for _ in range(2):  # the second one comes from disk
        buffer = init()
        there = places(buffer)
        assert places(compile(add)(buffer, new)) == there


@pytest.mark.filterwarnings("ignore:torch .* is none of")
def test_the_fallback_keeps_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "TESTED", ("0.0",))
    buffer, weight = init(), torch.zeros(3)
    new, rows = inputs(random.key(0))
    expected = reference(leaves_of(init()), 0, weight, new, rows)
    after, weight, errors = compile(step)(buffer, weight, new, rows)
    torch.testing.assert_close((leaves_of(after), weight, errors), (expected[0], expected[2], expected[3]))
    with pytest.raises(SpentError):
        buffer.content.memory["obs"].sum()
