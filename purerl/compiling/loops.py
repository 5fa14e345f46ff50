"""A scan as one loop of the program, under any number of vmaps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.vmap import restore_vmap, unwrap_batched, wrap_batched
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.utils import reenter_make_fx
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, track_tensor_tree
from torch.utils import _pytree as pytree

from purerl.compiling.tracing import is_literal, mark, may_write

scan_op._cacheable = True  # the body is a submodule of the graph, hence part of the key of inductor's on-disk cache
COUNTED = 1 << 30  # turns that a loop has on paper which takes as many as a number says; `passes` knows it by that


def repeat(f: Callable[..., Sequence[Tensor]], carry: Sequence[Tensor], turns: Tensor, n_donated: int = 0) -> list[Tensor]:
    """`for _ in range(turns): *carry, *y = f(*carry, turns)` as `loop`, with the last `y`; it is zero if there are no turns.

    Args:
        turns: `[]` int64, the same for all lanes.
    """
    return loop(f, carry, [turns.expand(COUNTED)], n_donated, stacks=False)


def loop(
    f: Callable[..., Sequence[Tensor]], carry: Sequence[Tensor], xs: Sequence[Tensor], n_donated: int = 0, stacks: bool = True
) -> list[Tensor]:
    """`for x in zip(*xs): *carry, *y = f(*carry, *x)` in the graph that is being traced; what `f` closes over may be traced too.

    Args:
        n_donated: how many of the carry, at its end, are memory that each turn writes in place.
        stacks: whether each turn's `y` is wanted, or the last one's.

    Returns:
        The last carry, and each `y` stacked.

    Raises:
        ValueError: the carry that `f` returns has other shapes or dtypes; or the loop is to be differentiated through.
    """
    if peek_interpreter_stack() is None:
        return _emit(f, carry, xs, n_donated, stacks)
    interpreter = retrieve_current_functorch_interpreter()
    if interpreter.key() != TransformType.Vmap:
        raise ValueError("scan: a compiled loop cannot be differentiated through; take the gradient inside its body")
    return _batched(interpreter, f, carry, xs, n_donated, stacks)


def _batched(
    interpreter: Any, f: Callable, carry: Sequence[Tensor], xs: Sequence[Tensor], n_donated: int, stacks: bool
) -> list[Tensor]:
    """The loop below one vmap: its carry is mapped along the first axis, and so is what it stacks, behind the axis of turns."""
    level, size, n = interpreter.level(), interpreter.batch_size(), len(carry)
    (carry, xs), (carry_dims, xs_dims) = unwrap_batched((tuple(carry), tuple(xs)), level)
    carry = [x.expand(size, *x.shape) if d is None else _moved(x, d, 0) for x, d in zip(carry, carry_dims, strict=True)]
    xs = [x if d is None else _moved(x, d, 1) for x, d in zip(xs, xs_dims, strict=True)]
    in_dims = (0,) * n + tuple(None if d is None else 0 for d in xs_dims)
    y_dims: list[int | None] = []

    def lanes(*args: Tensor) -> list[Tensor]:
        results, dims = restore_vmap(f, in_dims, size, interpreter.randomness())(*args)
        y_dims[:] = [None if d is None else int(stacks) for d in dims[n:]]
        first = [x if d is None else _moved(x, d, 0) for x, d in zip(results, dims, strict=True)]
        return [x.expand(size, *x.shape) if d is None else x for x, d in zip(first[:n], dims[:n], strict=True)] + first[n:]

    with interpreter.lower():
        results = loop(lanes, carry, xs, n_donated, stacks)
    return list(wrap_batched(tuple(results), (0,) * n + tuple(y_dims), level))


def _moved(x: Tensor, axis: int, to: int) -> Tensor:
    """An axis moved; the tensor itself if it is there, which memory that is written in place must stay."""
    return x if axis == to else x.movedim(axis, to)


def _emit(f: Callable, carry: Sequence[Tensor], xs: Sequence[Tensor], n_donated: int, stacks: bool) -> list[Tensor]:
    mode: Any = get_proxy_mode()
    tracer, n, length = mode.tracer, len(carry), len(xs[0])
    in_place, n_results = range(n - n_donated, n), 0

    def turn(*args: Tensor) -> list[Tensor]:
        nonlocal n_results
        results = list(f(*args))
        n_results = len(results)
        with may_write([args[k] for k in in_place]):
            for k in in_place:
                if results[k] is not args[k]:
                    args[k].copy_(results[k])
        owned = [args[k] if k in in_place else x.clone(memory_format=torch.contiguous_format) for k, x in enumerate(results)]
        return owned if len(owned) > 1 else [*owned, args[0].new_zeros(())]  # inductor cannot lower a loop with one result

    with disable_proxy_modes_tracing():
        examples = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (*carry, *(x[0] for x in xs))]
        body = reenter_make_fx(turn)(*examples)
    body.graph.eliminate_dead_code()
    closed_over = _lift(body)
    body.recompile()
    results = [node.meta["val"] for node in body.graph.output_node().args[0]]
    for i, (before, after) in enumerate(zip(carry, results, strict=False)):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                f"scan: leaf {i} of the carry is {before.dtype} {list(before.shape)}, "
                f"but the body returns {after.dtype} {list(after.shape)} for it"
            )
    kept = len(results) if not stacks else n
    carry = [*carry, *_starts(body, n, results[n:kept])]
    name = f"loop_{sum(isinstance(part, torch.fx.GraphModule) for part in tracer.root.children())}"
    tracer.root.register_module(name, body)
    operands = (body, [_row_major(x) for x in carry], list(xs), tuple(closed_over))
    proxies = pytree.tree_map_only((Tensor, torch.fx.GraphModule), tracer.unwrap_proxy, operands)
    proxy = tracer.create_proxy("call_function", scan_op, proxies, {}, name="scan")
    proxy.node.meta["in_place"] = in_place
    mark(tracer.graph)
    with disable_proxy_modes_tracing():
        outs = [torch.empty_like(x) for x in results[:kept]] + [x.new_empty((length, *x.shape)) for x in results[kept:]]
    return list(track_tensor_tree(outs, proxy, constant=None, tracer=tracer))[:n_results]


def _row_major(x: Tensor) -> Tensor:
    """A tensor with the strides that a new one has: `contiguous` leaves those of axes with one element as slices have them."""
    x = x.contiguous()
    return x if x.stride() == torch.empty(x.shape, device="meta").stride() else x.flatten().reshape(x.shape)


def _starts(body: torch.fx.GraphModule, n: int, more: Sequence[Tensor]) -> list[Tensor]:
    """Let a body with a carry of n take more that it does not read, and give their first values, zeros."""
    if more:
        with body.graph.inserting_before(body.graph.find_nodes(op="placeholder")[n]):
            for i, x in enumerate(more):
                body.graph.placeholder(f"last_{i}").meta["val"] = x
        body.recompile()
    return [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in more]


def _fake(body: torch.fx.GraphModule, value: Tensor) -> Tensor:
    """A tensor as the body's own trace saw it."""
    return body.graph.find_nodes(op="placeholder")[0].meta["val"].fake_mode.from_tensor(value)


def _lift(body: torch.fx.GraphModule) -> list[Tensor]:
    """Make inputs of what the body closes over, which its trace took for constants; a few numbers stay."""
    found: dict[int, tuple[Tensor, torch.fx.Node]] = {}
    last = body.graph.find_nodes(op="placeholder")[-1]
    for node in list(body.graph.find_nodes(op="get_attr")):
        value = getattr(body, node.target)
        if not isinstance(value, Tensor):
            continue
        if is_literal(value):
            with unset_fake_temporarily():  # torch would look here for the same tensor when it is met outside, and not find it
                setattr(body, node.target, value.clone())
            continue
        if id(value) not in found:
            with body.graph.inserting_after(last):
                last = body.graph.placeholder(f"closed_over_{len(found)}")
            last.meta["val"] = value if isinstance(value, FakeTensor) else _fake(body, value)
            found[id(value)] = value, last
        node.replace_all_uses_with(found[id(value)][1])
        body.graph.erase_node(node)
    kept = {node.target for node in body.graph.find_nodes(op="get_attr")}
    own = [*vars(body).items(), *body.named_buffers(recurse=False)]
    for name in [name for name, x in own if isinstance(x, Tensor) and name not in kept]:
        delattr(body, name)
    return [value for value, _ in found.values()]
