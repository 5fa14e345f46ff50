"""The package's own operations (`keeping`) in inductor's programs: calls of functions in C++."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch._inductor import ir
from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP
from torch._inductor.lowering import register_lowering
from torch._inductor.virtualized import V

from purerl.compiling import graphs, keeping

SOURCE = Path(__file__).with_name("keeping.h")


class Keep(ir.MutatingFirstArgExternKernel):
    """The call that writes over what is new; its inputs are that, what was before, and which lanes go on."""

    def codegen(self, wrapper: Any) -> None:
        inputs: Any = self.inputs
        new, old, going = inputs
        size = new.get_numel() * new.get_dtype().itemsize // going.get_numel()
        _call(wrapper, "purerl_keep", *map(_place, (new, old, going)), going.get_numel(), size)


class Sound(ir.ExternKernel):
    """The call that looks at what is new and, where it has to, at what was before."""

    def codegen(self, wrapper: Any) -> None:
        inputs: Any = self.inputs
        lanes, lead = self.get_numel(), len(self.get_size())
        places = [x for y in inputs for x in (_place(y), int(y.get_layout().stride[lead - 1]) if lead else 0)]
        _call(wrapper, "purerl_sound", *places, _place(self), lanes, inputs[0].get_numel() // lanes)

    def should_allocate(self) -> bool:
        return True


@functools.cache
def register() -> None:
    """Let inductor know them."""
    for operation, lower in ((keeping.KEEP, _keep), (keeping.SOUND, _sound)):
        register_lowering(operation.default, type_promotion_kind=None)(lower)


def _keep(going: Any, new: Any, old: Any) -> Any:
    new, old, going = map(_contiguous, (new, old, going))
    if not _is_own(new):
        new = ir.ExternKernel.copy_input(new)
    kernel = Keep(None, ir.NoneLayout(device=new.get_device()), Keep.unwrap_storage([new, old, going]))
    buffer = _buffer(new)
    for written in (new, *(buffer.inputs if isinstance(buffer, ir.ConcatKernel) else ())):
        V.graph.mark_buffer_mutated(written.get_name())
    _register(kernel)
    return new if isinstance(new, ir.TensorBox) else ir.TensorBox(new)


def _sound(new: Any, old: Any, lead: int) -> Any:
    new, old = [_contiguous_in_lanes(x, lead) for x in (new, old)]
    layout = ir.FixedLayout(new.get_device(), torch.bool, new.get_size()[:lead])
    return ir.TensorBox.create(_register(Sound(None, layout, Sound.unwrap_storage([new, old]))))


def _register(kernel: Any) -> Any:
    kernel.name = V.graph.register_buffer(kernel)
    V.graph.register_operation(kernel)
    return kernel


def _contiguous(x: Any) -> Any:
    return ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(x))


def _contiguous_in_lanes(x: Any, lead: int) -> Any:
    """As `_contiguous`, but lanes along one axis may lie apart."""
    x = ir.ExternKernel.realize_input(x)
    size, layout = x.get_size(), x.get_layout()
    fits = lead == 1 and isinstance(layout, ir.FixedLayout)
    return x if fits and list(layout.stride[1:]) == ir.FlexibleLayout.contiguous_strides(size[1:]) else _contiguous(x)


def _is_own(new: Any) -> bool:
    """Whether nobody else has the memory of what `keep` is to write over, or reads it after the call."""
    call = V.graph.current_node
    cat = graphs.joined(call.args[1])
    parts: Any = cat.args[0] if cat is not None else []
    if any(graphs.is_read_after(call, x) for x in (call.args[1], *parts)):
        return False
    buffer = _buffer(new)
    if isinstance(buffer, ir.MultiOutput) and isinstance(buffer.inputs[0], ir.WhileLoop):
        return not _is_handed_on(buffer)
    return isinstance(buffer, ir.ComputedBuffer) or (isinstance(buffer, ir.ConcatKernel) and cat is not None)


def _buffer(x: Any) -> Any:
    """The buffer of which a tensor is the whole, if it is."""
    box = x.data if isinstance(x, ir.TensorBox) else x
    return box.data if isinstance(box, ir.StorageBox) else None


def _is_handed_on(result: Any) -> bool:
    """Whether a loop's result may be what the loop was given."""
    turn = result.inputs[0].body_subgraph.graph
    return turn.graph_outputs[result.indices[-1][1]].get_name() in turn.graph_inputs


def _place(x: Any) -> str:
    """C++ that says where a buffer, or a contiguous part of one, begins."""
    return f"({DTYPE_TO_CPP[x.get_dtype()]}*)({x.get_name()}.data_ptr()) + {int(x.get_layout().offset)}"


def _call(wrapper: Any, name: str, *args: Any) -> None:
    """Write a call of a function of `keeping.h`, which comes into the program with the first one."""
    if not getattr(wrapper, "has_keeping", False):
        source = SOURCE.read_text()
        declarations = [line.removesuffix(" {") + ";" for line in source.splitlines() if line.startswith('extern "C"')]
        wrapper._define_kernel_helper("purerl_keeping", source, cpp_definition="\n".join(declarations) + "\n")
        wrapper.has_keeping = True
    wrapper.writeline(f"{name}({', '.join(map(str, args))});")
