"""What stands between a pure function and its compiled program: the one room that touches private names of torch.

`tracing` runs a function once on tensors without data and writes down its operations (as jax.jit does), `functional` rewrites those
of torch's own that write into a tensor, `in_place` lets donated memory be written where it is, `loops` makes one loop of the
program out of a `scan`, `inductor` hands the graph to torch's compiler with `passes`, `products` of matrices, few `handles`,
`temporaries` in one place and the `lowering` of the package's own operations (`keeping`), `programs` looks on `disk` first
(`identity` says what a function is), `cuda` records kernels, and `fallback` is plain `torch.compile` for versions of torch that
this room was not tried with.

| private name of torch | what for | the test that notices its loss |
| --- | --- | --- |
| `fx.experimental.proxy_tensor`: `make_fx`, proxy modes | tracing | tests/compiling/test_tracing.py |
| `_functorch`: the interpreter stack, `restore_vmap`, ... | a scan inside vmap | test_scan_compiled_vmapped_equals_eager_singles |
| `_higher_order_ops`: `scan_op`, `reenter_make_fx` | the loop in the graph | test_scan_takes_a_gradient_inside |
| `_inductor.compile_fx_inner`, `_guards` | from the graph to a program | every test of `compile` |
| `_inductor`: settings, passes, the ISA probe | speed, corrections | test_compiled_tanh_uses_it, test_what_a_turn_leaves_... |
| `_inductor.codegen.cpp.stride_at_vec_range`, `_inductor.dtype_propagation` | compiling sooner | every test of `compile` |
| `_inductor`: `ExternKernelOutLine`; `cpublas::brgemm` in C++ | products of matrices | tests/compiling/test_products.py |
| `_inductor.lowering.index_impl_helper` | rows that are found once | tests/compiling/test_inductor.py |
| `_inductor.ir`: `ExternKernel`, ...; `_inductor.lowering` | operations of our own | tests/compiling/test_keeping.py |
| `_inductor.codecache.CppWrapperCodeCache` | fewer handles, less memory to take in a turn | test_handles.py, test_temporaries.py |
| `fx._lazy_graph_module` | graphs whose code nobody runs get none | every test of `compile` |
| `_C._aoti`, `_C._dynamo.guards` | a program from disk | test_other_processes_load_what_one_has_compiled |
| `_subclasses`: `unset_fake_temporarily` | a loop's own copy of a constant | test_what_an_inner_and_an_outer_loop_both_... |
| `_cdata` of a storage, `_ops.OpOverload` | who shares memory, who writes | test_memory_that_was_written_cannot_be_... |
| `_higher_order_ops.utils` | the order of what a loop writes | test_steps_write_in_place_and_give_the_numbers_of_... |
| `higher_order.while_loop` | a loop of as many turns as a number says | test_repeat_takes_as_many_turns_as_a_number_says |
| `_higher_order_ops.scan.scan` | a scan under one's own `torch.compile` | test_torch_compile_takes_the_fused_step_as_it_is |
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator

import torch

one_at_a_time = threading.RLock()  # torch traces in one thread only
TESTED = ("2.11", "2.13", "2.14")
CPP_WRAPPER = torch.__version__ >= "2.13"  # earlier ones cannot express a loop in C++


_here = threading.local()


def is_tracing() -> bool:
    """Whether a function is being traced, in this thread, right now."""
    return getattr(_here, "writes", None) is not None


def is_mapping() -> bool:
    """Whether a function of torch.func (vmap, grad) is at work right now."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def note_write() -> None:
    """A tensor of donated memory was written by the function that is being traced."""
    from purerl.compiling import tracing

    _here.writes.append(tracing.here())


@contextlib.contextmanager
def tracing_now() -> Iterator[list[tuple[str, int]]]:
    """Within, a function is being traced; gets a list of the lines that write donated memory, one for each tensor."""
    before = getattr(_here, "writes", None)
    _here.writes = []
    try:
        yield _here.writes
    finally:
        _here.writes = before


def is_tested() -> bool:
    """Whether this version of torch is one that the room was tried with; warns, once, if not."""
    tested = torch.__version__.startswith(tuple(f"{version}." for version in TESTED))
    if not tested:
        _warn(f"torch {torch.__version__} is none of {TESTED}, which purerl was tried with: torch.compile takes over, slower")
    return tested


@functools.cache
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
