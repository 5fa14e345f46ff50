import pytest
import torch

from purerl import compile, scan, vmap
from purerl.compiling import handles


def operand(name, source):
    return [
        f"AtenTensorHandle {name}_handle;",
        f"AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_assign_tensors_out({source}, &{name}_handle));",
        f"RAIIAtenTensorHandle {name}({name}_handle);",
    ]


def part(name, whole, offset):
    view = f"reinterpret_tensor_wrapper({whole}, 1, sizes, strides, {offset}L)"
    return f"auto {name} = wrap_with_raii_handle_if_needed({view});  // alias"


def few(*lines):
    return handles.with_few("\n".join(lines)).split("\n")


READ = "kernel((const float*)(a.data_ptr()), (float*)(c.data_ptr()));"


def test_an_operand_is_a_reference():
    assert few(*operand("a", "b"), READ, "a.reset();") == ["auto& a = b;", READ]
    assert few(*operand("a", "b"), READ, "b.reset();", "b = std::move(a);") == ["auto& a = b;", READ]
    assert few(*operand("a", "b"), "c.reset();") == ["c.reset();"]


@pytest.mark.parametrize(
    "use", ["c = std::move(a);", "auto c = std::move(a);  // reuse", "other(a);", "kernel(a, (float*)(a.data_ptr()));"]
)
def test_an_operand_that_goes_elsewhere_has_a_handle(use):
    lines = [*operand("a", "b"), READ, use]
    assert few(*lines) == lines


@pytest.mark.parametrize("end", ["b.reset();", "b = std::move(d);"])
def test_an_operand_that_is_read_when_its_source_has_changed_has_a_handle(end):
    lines = [*operand("a", "b"), end, READ]
    assert few(*lines) == lines
    assert few(*operand("a", "b"), READ, end) == ["auto& a = b;", READ, end]


def test_a_part_is_its_place_in_the_whole():
    there = "kernel(((const float*)(b.data_ptr()) + 8), (float*)(c.data_ptr()));"
    assert few(part("a", "b", 8), READ, "a.reset();", "b.reset();") == [there, "b.reset();"]
    half = few(part("a", "b", 8), "kernel((const at::BFloat16*)(a.data_ptr()));")
    assert half == ["kernel(((const at::BFloat16*)(b.data_ptr()) + 8));"]


@pytest.mark.parametrize("end", ["b.reset();", "auto d = std::move(b);  // reuse", "b = std::move(d);"])
def test_a_part_that_outlives_the_whole_has_a_handle(end):
    lines = [part("a", "b", 8), end, READ]
    assert few(*lines) == lines
    lines = [part("a", "b", 8), READ, "c = std::move(a);"]
    assert few(*lines) == lines


def test_loops_whose_carry_changes_places():
    def turn(carry, x):
        a, b, c, rest = carry
        (inner, d), _ = scan(lambda it, y: ((it[1] * y, it[0]), {}), (a, c), torch.stack([x, x + 1]))
        return (b, a + x, torch.cat([d, inner])[1:4], rest), {"sum": a.sum() + rest.sum(), "c": c}

    def function(a, b, c, rest, xs):
        return scan(turn, (a, b, c, rest), xs)

    given = [torch.arange(float(3 * i), 3.0 * i + 3) for i in range(3)] + [torch.ones(2), torch.arange(5.0)]
    torch.testing.assert_close(compile(function)(*given), function(*given))
    lanes = [torch.stack([x, x + 1]) for x in given]
    torch.testing.assert_close(compile(vmap(function))(*lanes), vmap(function)(*lanes))
