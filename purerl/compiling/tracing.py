"""A function as a graph of tensor operations, found by running it once on tensors without data."""

import contextlib
import itertools
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensordict
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from purerl import compiling
from purerl.compiling import graphs

_MOVES = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten._to_copy.default, torch.ops.prims.device_put.default)
_LIBRARIES = (
    *[str(Path(file).parent) for file in (torch.__file__, tensordict.__file__, __file__)],
    *[str(Path(__file__).parents[1] / name) for name in ("transforms.py", "tree.py")],
)
_WRITES_ITS_OWN = tuple(str(Path("torch", *part)) for part in (("autograd",), ("nn",), ("_decomp",), ("_refs",)))
_VALUES = ("data-dependent control flow", "calling .item()", "support dynamic shape")  # what vmap says


class TraceError(RuntimeError):
    """A function does what a compiled program cannot; the message says where, and what to write instead."""


class Graph(NamedTuple):
    """A traced function of tensors.

    Attributes:
        module: of the function's arguments and, after them, of the constants.
        constants: what the function closes over, but for a few numbers that are part of the graph.
        used: for each argument, whether any result depends on it.
        results: tensors without data.
    """

    module: torch.fx.GraphModule
    constants: list[Tensor]
    used: list[bool]
    results: list[Tensor]


def describe(graph: Graph) -> list[Any]:
    """What tells a graph from every other one."""
    parts: list[Any] = []
    for part in graph.module.modules():
        if isinstance(part, torch.fx.GraphModule):
            inputs = [node.meta["val"] for node in part.graph.find_nodes(op="placeholder")]
            literals = [getattr(part, str(node.target)) for node in part.graph.find_nodes(op="get_attr")]
            kinds = [(tuple(x.shape), x.stride(), x.dtype, x.device) for x in inputs]
            parts.append((part.code, kinds, [x for x in literals if isinstance(x, Tensor)]))
    return parts


def trace(
    f: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], written: Sequence[int] = (), donated: Sequence[int] = ()
) -> Graph:
    """Trace `f(*examples) -> tensors`, for arguments of the examples' shapes, strides, dtypes and devices.

    Args:
        written: which of the arguments `f` may write into, by `copy_` of the whole.
        donated: which of those are donated memory.

    Raises:
        TraceError: `f` asks for a number inside a tensor, or writes into a tensor.
    """
    from purerl.compiling import functional, in_place

    tracer = make_fx(_watched(f, written), select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), _use_lazy_graph_module(True), compiling.tracing_now() as written_at:
            module = tracer(*examples)
    except RuntimeError as error:
        if any(words in str(error) for words in _VALUES):
            raise TraceError(_by_value(traceback.extract_tb(error.__traceback__))) from error
        raise
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            _fold_moves(part)
            _inline_numbers(part)
    functional.rewrite(module)
    in_place.settle(module, donated, written_at)
    module.graph.eliminate_dead_code()
    used = [bool(node.users) for node in module.graph.find_nodes(op="placeholder")]
    constants = _lift_constants(module)
    module.recompile()
    results: Any = module.graph.output_node().args[0]
    return Graph(module, constants, used, [node.meta["val"] for node in results])


def _by_value(frames: Sequence[traceback.FrameSummary]) -> str:
    return (
        f"{_place(frames)}: what happens next depends on the numbers in a tensor, which a program that is compiled once cannot "
        "know; choose between two results with torch.where, repeat with purerl.scan, and keep shapes fixed"
    )


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line that is the user's."""
    frame = frames[max([i for i, frame in enumerate(frames) if not frame.filename.startswith(_LIBRARIES)], default=-1)]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"


def here() -> tuple[str, int]:
    """The innermost line that is the user's, of those that run right now."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def node(x: Tensor) -> Any:
    """The node of a tensor in the graph that is being traced."""
    mode: Any = get_proxy_mode()
    return getattr(mode.tracer.unwrap_proxy(x), "node", None)


def mark(graph: torch.fx.Graph) -> None:
    """Note with the last nodes of a graph, those that have no such note, which line of the user's they are."""
    made_at = here()
    for made in reversed(graph.nodes):
        if made.meta.setdefault("line", made_at) is not made_at:
            break


def line(file: str, number: int) -> str:
    """A line of the user's, in words."""
    return f"{file}:{number} ({linecache.getline(file, number).strip()})"


def _watched(f: Callable, written: Sequence[int]) -> Callable:
    def watched(*examples: Tensor) -> Sequence[Tensor]:
        with _Watch(), may_write([examples[i] for i in written]):
            return f(*examples)

    return watched


_writable: list[int] = []


@contextlib.contextmanager
def may_write(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within, what is traced may write into these whole tensors."""
    before = len(_writable)
    _writable.extend(map(id, tensors))
    try:
        yield
    finally:
        del _writable[before:]


class _Watch(TorchDispatchMode):
    """Raises where a function asks for the numbers in a tensor, or writes into one.

    Torch itself may write into its own: autograd does, on a GPU in a thread without a stack.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _asks_for_numbers(func, args):
            raise TraceError(_by_value(traceback.extract_stack()))
        if graphs.writes(func) and not (func is torch.ops.aten.copy_.default and id(args[0]) in _writable):
            frames = traceback.extract_stack()
            inner = list(itertools.takewhile(lambda frame: frame.filename.startswith(_LIBRARIES), reversed(frames)))
            if len(inner) < len(frames) and not any(part in frame.filename for frame in inner for part in _WRITES_ITS_OWN):
                name = func._schema.name.removeprefix("aten::")
                raise TraceError(
                    f"{_place(frames)}: {name} writes into a tensor; in a pure function write the operation that returns a new "
                    f"one, such as {name.rstrip('_')}, torch.where, torch.index_put or torch.scatter"
                )
        result = func(*args, **(kwargs or {}))
        mode = get_proxy_mode()
        if mode is not None:
            mark(mode.tracer.graph)
        return result


def _asks_for_numbers(func: Any, args: Any) -> bool:
    """Whether an operation's result is a number, or has a shape that depends on numbers."""
    if torch.Tag.dynamic_output_shape in func.tags:
        return func is not torch.ops.aten.index.Tensor or any(x is not None and x.dtype == torch.bool for x in args[1])
    return torch.Tag.data_dependent_output in func.tags


def _fold_moves(part: torch.fx.GraphModule) -> None:
    """Do now what copies a constant to where it is needed: a program would do it at every call."""
    for node in list(part.graph.nodes):
        if node.op != "call_function" or node.target not in _MOVES or node.args[0].op != "get_attr":
            continue
        value = getattr(part, node.args[0].target)
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            continue
        name = f"_moved_{node.name}"
        part.register_buffer(name, node.target(value, *node.args[1:], **node.kwargs), persistent=False)
        with part.graph.inserting_before(node):
            moved = part.graph.get_attr(name)
        moved.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(moved)
        part.graph.erase_node(node)


def _inline_numbers(part: torch.fx.GraphModule) -> None:
    """Let operations make constants of a single number: inductor's own ones cannot be reshaped."""
    for node in part.graph.find_nodes(op="get_attr"):
        value = getattr(part, node.target)
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor) and not value.ndim:
            with part.graph.inserting_before(node):
                number = part.graph.call_function(
                    torch.ops.aten.full.default, ([], value.item()), {"dtype": value.dtype, "device": value.device}
                )
            number.meta = dict(node.meta)
            node.replace_all_uses_with(number)
            part.graph.erase_node(node)


def is_literal(value: Any) -> bool:
    """Whether a constant is so small that inductor writes its numbers into the code."""
    return not isinstance(value, FakeTensor) and value.ndim < 2 and value.numel() <= 8


def _lift_constants(module: torch.fx.GraphModule) -> list[Tensor]:
    """Turn the graph's constants into further inputs."""
    constants: dict[str, tuple[torch.fx.Node, Tensor]] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        value = getattr(module, node.target)
        if not isinstance(value, Tensor) or is_literal(value):
            continue
        if node.target not in constants:
            last = module.graph.find_nodes(op="placeholder")[-1:]
            with module.graph.inserting_after(last[0]) if last else module.graph.inserting_before():
                placeholder = module.graph.placeholder(f"constant_{len(constants)}")
            placeholder.meta["val"] = node.meta["val"]
            constants[node.target] = placeholder, value
        node.replace_all_uses_with(constants[node.target][0])
        module.graph.erase_node(node)
    return [value for _, value in constants.values()]
