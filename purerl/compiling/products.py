"""Products of matrices in programs for the CPU: by oneDNN's micro-kernel, which torch has beside its BLAS.

Torch's wheels come with MKL, which leaves AVX-512 alone on AMD's processors and takes long to begin with a small product. The
micro-kernel is told no more than sizes and places: of 256 x 256 matrices it makes 2.2 to 2.4 times as many, of 64 x 64 as well.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch._inductor import config
from torch._inductor.codegen import wrapper
from torch._inductor.ir import Layout

SOURCE = Path(__file__).with_suffix(".h")
PRODUCTS = {"at::mm_out": 0, "at::bmm_out": 0, "at::addmm_out": 1, "at::baddbmm_out": 1}  # how many inputs come before the factors


class Operand(NamedTuple):
    """Where a matrix of a program lies, or as many as are multiplied one by one.

    Attributes:
        place: C++ that gives the first number's.
        size: `[L, M, N]`.
        stride: of these.
    """

    place: str
    size: tuple[int, int, int]
    stride: tuple[int, int, int]


def own() -> Any:
    """Within, inductor's programs multiply matrices of float32 by the micro-kernel where the processor has AVX-512."""
    ask = wrapper.ExternKernelOutLine.codegen

    def codegen(line: Any, code: Any) -> None:
        call = _call(line.node) if _has_kernel() else None
        if call is None:
            return ask(line, code)
        _define(line.wrapper)
        line.wrapper.writeline(call)

    return mock.patch.object(wrapper.ExternKernelOutLine, "codegen", codegen)


@functools.cache
def _has_kernel() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


@functools.cache
def _source() -> str:
    return SOURCE.read_text()


def _define(program: Any) -> None:
    """Put the function that multiplies into a program, once."""
    if not getattr(program, "has_products", False):
        declaration = _source()[_source().index('extern "C"') :].split(" {")[0] + ";\n"
        program._define_kernel_helper("purerl_products", _source(), cpp_definition=declaration)
        program.has_products = True


def _call(node: Any) -> str | None:
    """The call that computes what a kernel of torch's would; None if it is no such product."""
    before = PRODUCTS.get(node.cpp_kernel_name)
    if before is None or node.output_view is not None or any(node.kwargs.get(x, 1) != 1 for x in ("alpha", "beta")):
        return None
    operands = [it for it in map(_operand, (node, *node.inputs)) if it is not None]
    if len(operands) != 1 + len(node.inputs) or any(0 in it.size for it in operands) or operands[0].stride[2] != 1:
        return None
    out, *inputs = operands
    a, b = inputs[before:]
    bias = _spread(inputs[0], out.size) if before else Operand("nullptr", out.size, (0, 0, 0))
    numbers = [*out.size, a.size[2], a.place, *a.stride, b.place, *b.stride, bias.place, *bias.stride, out.place, *out.stride[:2]]
    return f"purerl_products({', '.join(map(str, (*numbers, max(1, config.cpp.threads))))});"


def _operand(x: Any) -> Operand | None:
    """Where a buffer of inductor's, or a view of one, lies; None if that is not known, or it is not float32 on a CPU."""
    layout = x.get_layout()
    numbers = (*layout.size, *layout.stride, layout.offset) if isinstance(layout, Layout) else ("unknown",)
    if layout.dtype != torch.float32 or layout.device.type != "cpu" or not all(str(n).isdigit() for n in numbers):
        return None
    size, stride = [int(n) for n in layout.size], [int(n) for n in layout.stride]
    stride = [s if n > 1 else 0 for n, s in zip(size, stride, strict=True)]
    if len(size) > 1:  # of one row or column any stride is true: say the one of rows
        stride[-1] = stride[-1] if size[-1] > 1 else 1
        stride[-2] = stride[-2] if size[-2] > 1 else size[-1]
    missing = 3 - len(size)
    place = f"(float*)({x.get_name()}.data_ptr()) + {int(layout.offset)}"
    return Operand(place, (*[1] * missing, *size), (*[0] * missing, *stride))  # type: ignore[arg-type]


def _spread(bias: Operand, size: tuple[int, int, int]) -> Operand:
    """A bias as large as the result."""
    stride = [s if n == m else 0 for s, n, m in zip(bias.stride, bias.size, size, strict=True)]
    return Operand(bias.place, size, tuple(stride))  # type: ignore[arg-type]
