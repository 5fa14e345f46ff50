import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerl import compile, scan
from purerl.compiling import temporaries
from purerl.compiling.temporaries import Temporary

ENTRY = "py::gil_scoped_release_simple release;"
SIZES = ["static constexpr int64_t size[] = {2L, 3L};", "static constexpr int64_t stride[] = {40L, 1L};"]


def made(name, dtype="float32"):
    place = f"cached_torch_dtype_{dtype}, cached_torch_device_type_cpu, 0, &{name}_handle"
    return [
        f"AtenTensorHandle {name}_handle;",
        f"AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, size, stride, {place}));",
        f"RAIIAtenTensorHandle {name}({name}_handle);",
    ]


def kernel(*names):
    return f"kernel({', '.join(f'(float*)({name}.data_ptr())' for name in names)});"


def in_one_place(*lines):
    """The bytes that are taken, None if no others than before; and the lines that are left."""
    code = temporaries.in_one_place("\n".join([ENTRY, *SIZES, *lines]))
    room = re.search(r"temporaries_size\[\] = \{(\d+)L", code)
    return room and int(room[1]), code.split("\n")[-len(lines) :] if not room else code.split(f"{SIZES[1]}\n")[1].split("\n")


def at(*places):
    return f"kernel({', '.join(f'(float*)(temporaries + {place})' for place in places)});"


def test_what_only_kernels_ask_for_is_a_place():
    room, lines = in_one_place(*made("a"), *made("b", "int64"), kernel("a", "b"), "a.reset();", kernel("b"), "b.reset();")
    assert (room, lines) == (192 + 384, [at(0, 192), at(192)])  # (1 + 1 * 40 + 2 * 1) * 4 bytes, in pieces of 64


def test_a_place_is_free_behind_the_last_line_that_uses_it():
    lines = [*made("a"), *made("b"), kernel("a", "b"), "a.reset();", *made("c"), kernel("b", "c")]
    assert in_one_place(*lines) == (2 * 192, [at(0, 192), at(192, 0)])


@pytest.mark.parametrize(
    "line",
    [
        "auto b = std::move(a);  // reuse",
        "auto b = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(a, 1, size, stride, 0L)); a.reset();  // reuse",
    ],
)
def test_a_buffer_that_is_used_once_more_keeps_its_place(line):
    assert in_one_place(*made("a"), kernel("a"), line, *made("c"), kernel("b", "c")) == (2 * 192, [at(0), at(0, 192)])


@pytest.mark.parametrize(
    "line", ["output[0] = a.release();", "carry = std::move(a);", "other(a.get());", "f(a, (float*)(a.data_ptr()));"]
)
def test_what_others_ask_for_keeps_its_handle(line):
    lines = [*made("a"), kernel("a"), line]
    assert in_one_place(*lines) == (None, lines)
    assert in_one_place(*made("b", "complex64"), kernel("b"))[0] is None


def test_what_a_loop_reads_at_every_turn_is_there_until_it_ends():
    loop = ["while (1) {", kernel("a"), *made("b"), kernel("b"), "b.reset();", "}"]
    room, lines = in_one_place(*made("a"), *loop, *made("c"), kernel("c"))
    assert (room, lines) == (2 * 192, ["while (1) {", at(0), at(192), "}", at(0)])


def test_whether_a_loop_goes_on_is_read_where_it_was_left():
    asks = ["bool goes;", "AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_item_bool(kept, &goes));", "if (!goes) break;"]
    lines = [
        "RAIIAtenTensorHandle kept;",
        "while (1) {",
        *made("a", "bool"),
        kernel("a"),
        "kept.reset();",
        "kept = std::move(a);",
        *asks,
    ]
    _, left = in_one_place(*lines)
    assert [x for x in left if x] == [*lines[:2], at(0), "bool goes;", "goes = *((const bool*)(temporaries + 0));", asks[-1]]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_temporaries_that_live_at_once_lie_apart(drawn):
    found = sorted((Temporary(64 * n, ("x",), (), min(a, b), max(a, b)) for n, a, b in drawn), key=lambda x: x.first)
    places = temporaries.offsets(found)
    for i, (a, x) in enumerate(zip(found, places, strict=True)):
        for b, y in list(zip(found, places, strict=True))[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert x + a.size <= y or y + b.size <= x


def test_loops_in_loops_compute_what_they_do_eagerly():
    def inner(carry, x):
        a = torch.softmax(carry @ x, -1)
        b = (a @ x.T).cumsum(-1)
        return torch.sin(b @ a.T + a @ b), {"a": a.sum(), "b": b.amax(0)}

    def outer(carry, xs):
        carry, y = scan(inner, carry, xs)
        return carry + y["a"].sum() * torch.tanh(carry), {"last": carry, "b": y["b"]}

    start, xs = torch.linspace(-1, 1, 16).reshape(4, 4), torch.linspace(-2, 2, 96).reshape(2, 3, 4, 4)
    torch.testing.assert_close(compile(lambda c, x: scan(outer, c, x))(start, xs), scan(outer, start, xs))
