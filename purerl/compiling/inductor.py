"""From a graph to a program: torch's compiler with the settings that suit many small networks."""

import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import sympy
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._higher_order_ops import utils
from torch._inductor import config
from torch._inductor import lowering as torch_lowering
from torch._inductor.codegen import cpp
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.cpu_vec_isa import VecISA
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from purerl import random
from purerl.compiling import CPP_WRAPPER, disk, handles, lowering, passes, products
from purerl.compiling.tracing import Graph

WIDE = 4  # numbers of a row, for which it is found once
FEW = 4  # programs that take as long to compile without precompiled headers as those take to make


def build(graph: Graph, threads: int) -> tuple[Callable[[list[Tensor]], list[Tensor]], Path | None]:
    """Compile a graph for the CPU threads of one call.

    Returns:
        A function of the arguments and the constants, as a list that it empties; and the library that is all of it, if one is.
    """
    inputs = [node.meta["val"] for node in graph.module.graph.find_nodes(op="placeholder")]
    mode = inputs[0].fake_mode if inputs else FakeTensorMode(allow_non_fake_inputs=True)
    on_cpu = all(x.device.type == "cpu" for x in inputs)
    lowering.register()
    with (
        torch.no_grad(),
        config.patch({**options(threads), "fx_graph_cache": not on_cpu}),  # programs for the CPU are kept by `disk`
        tracing(TracingContext(mode)),
        _without_probes(),
        _ordered(),
        _told_once(),
        _strides_found_soon(),
        _rows_found_once(),
        products.own() if CPP_WRAPPER else contextlib.nullcontext(),
        handles.few() if CPP_WRAPPER else contextlib.nullcontext(),
    ):
        program: Any = compile_fx_inner(graph.module, inputs, cpp_wrapper=CPP_WRAPPER)
    return program, _library(program) if on_cpu else None


def _library(program: Any) -> Path | None:
    """The library that is all of a program; where nothing is computed there is none."""
    entry = getattr(getattr(program, "current_callable", None), "__globals__", {}).get("inductor_entry")
    path = getattr(getattr(entry, "__self__", None), "__file__", None)
    return Path(path) if path and not program.constants and not program.inputs_to_check else None


def _without_probes() -> Any:
    """Inductor compiles test programs to learn whether the compiler knows the processor's instructions; torch lists those."""
    return mock.patch.object(VecISA, "check_build", return_value=True)


def _ordered() -> Any:
    """Inductor pairs what a loop's body writes, in the order of writing, with the loop's operands, in theirs."""
    check = utils.check_input_alias_and_mutation

    def ordered(*args: Any) -> tuple:
        *aliases, written = check(*args)
        return (*aliases, sorted(set(written)))

    return mock.patch.object(utils, "check_input_alias_and_mutation", ordered)


def _told_once() -> Any:
    """There is one object that tells dtypes; inductor fills it anew for each operation of each kernel."""
    DtypePropagationOpsHandler()
    return mock.patch.object(DtypePropagationOpsHandler, "__init__", return_value=None)


def _strides_found_soon() -> Any:
    """Inductor finds the strides of what its kernels read and write by simplifying general expressions; nearly all are sums."""
    ask = cpp.stride_at_vec_range

    @functools.cache
    def stride(index: Any, var: Any, vec_length: int | None = None) -> Any:
        slope = None if index.has(FloorDiv, ModularIndexing, sympy.Rel) else index.diff(var)
        return slope if slope is not None and slope.is_number else ask(index, var, vec_length)

    return mock.patch.object(cpp, "stride_at_vec_range", stride)


def _rows_found_once() -> Any:
    """Inductor finds which row to read anew for each number in it; where that takes reading itself, it is found once and kept."""
    lower = torch_lowering.index_impl_helper

    def index(x: Any, indices: Any, *args: Any, **options: Any) -> Any:
        if math.prod(x.get_size()[len(indices) :]) >= WIDE:
            for place in indices:
                if place is not None and place.num_reads():
                    place.realize()
        return lower(x, indices, *args, **options)

    return mock.patch.object(torch_lowering, "index_impl_helper", index)


def options(threads: int) -> dict[str, Any]:
    """Inductor's, for many small operations."""
    return {
        "cpp_wrapper": CPP_WRAPPER,  # halves the overhead of a call and of a loop's turn
        "cpp_wrapper_build_separate": True,  # two compilers side by side, and no optimization of what allocates
        "cpp_cache_precompile_headers": disk.libraries() >= FEW,
        "cpp.threads": threads,
        "cpp.enable_loop_tail_vec": False,
        "realize_opcount_threshold": 16,  # keeps the generator's rounds from being inlined into each other, exponentially
        "post_grad_custom_pre_pass": passes.Cheaper(),
        "post_grad_custom_post_pass": passes.OwnMemory(),
        "_post_fusion_custom_pass": passes.LoopBuffers(),
        "unsafe_marked_cacheable_functions": {"purerl.random.threefry2x32": get_hash_for_files((random.__file__,)).hex()},
    }
