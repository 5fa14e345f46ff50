"""Graph passes for inductor. They change how a compiled function runs, not what it computes."""

from typing import Any

import torch
from torch import Tensor
from torch._inductor import custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.graph import SubgraphLowering
from torch._inductor.ir import WhileLoop
from torch._inductor.pattern_matcher import (
    MULTIPLE,
    Arg,
    CallFunction,
    CallFunctionVarArgs,
    Match,
    PatternMatcherPass,
    register_graph_pattern,
)
from torch._inductor.virtualized import V

from purerl.compiling import graphs, joining, keeping
from purerl.compiling.loops import COUNTED

aten = torch.ops.aten
LARGE = 1 << 16  # bytes of memory that a loop is not handed a copy of
SHORT = 32  # numbers, of which a running sum is made in a kernel
_SchedulerPass: Any = getattr(custom_graph_pass, "CustomSchedulerPass", CustomGraphPass)  # torch 2.11 has one kind of pass

# Eigen's rational approximation of tanh, as XLA uses it: odd numerator, even denominator, accurate to a few ulp in float32.
_LIMIT = 7.90531110763549805
_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + c
    return value


def rational_tanh(x: Tensor) -> Tensor:
    """tanh of float32 in arithmetic that vectorises, three times as fast as the library's on a CPU."""
    x = torch.clamp(x, -_LIMIT, _LIMIT)
    return x * _polynomial(_NUMERATOR, x * x) / _polynomial(_DENOMINATOR, x * x)


_rewrites = PatternMatcherPass()


def _on_cpu(match: Match) -> bool:
    x = match.args[0].meta["val"]
    return x.device.type == "cpu" and x.dtype == torch.float32


@register_graph_pattern(CallFunction(aten.tanh.default, Arg()), extra_check=_on_cpu, pass_dict=_rewrites)
def _(match: Match, x: torch.fx.Node) -> None:
    match.replace_by_example(rational_tanh, [x])


def _running_sum(x: Tensor) -> Tensor:
    """`cumsum` along the last axis, of integers, in arithmetic that is quadratic and part of a kernel."""
    n = x.shape[-1]
    before = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    return (before * x[..., None, :].long()).sum(-1)


def _is_short(match: Match) -> bool:
    x, axis = match.args[0].meta["val"], match.args[1]
    is_integer = not (x.dtype.is_floating_point or x.dtype.is_complex)
    return is_integer and x.ndim > 0 and axis % x.ndim == x.ndim - 1 and x.shape[-1] <= SHORT


@register_graph_pattern(CallFunction(aten.cumsum.default, Arg(), Arg()), extra_check=_is_short, pass_dict=_rewrites)
def _(match: Match, x: torch.fx.Node, axis: int) -> None:
    match.replace_by_example(_running_sum, [x])


def _is_undone(match: Match) -> bool:
    once, twice = match.args[1:]
    return [once[i] for i in twice] == list(range(len(once)))


@register_graph_pattern(
    CallFunction(aten.permute.default, CallFunction(aten.permute.default, Arg(), Arg(), _users=MULTIPLE), Arg()),
    extra_check=_is_undone,
    pass_dict=_rewrites,
)
def _(match: Match, x: torch.fx.Node, once: list[int], twice: list[int]) -> None:
    match.output_node().replace_all_uses_with(x)
    match.erase_nodes()


def _transpose_factors(graph: torch.fx.Graph, product: torch.fx.Node) -> None:
    """Where only the transpose of a product of `[L, M, K]` and `[L, K, N]` is used, multiply the factors' transposes."""
    chain = [product]
    while len(chain[-1].users) == 1 and (user := next(iter(chain[-1].users))).target in (aten.reshape.default, aten.view.default):
        if user.meta["val"].shape[-2:] != product.meta["val"].shape[-2:]:
            return
        chain.append(user)
    uses, ndim = list(chain[-1].users), chain[-1].meta["val"].ndim
    swapped = [*range(ndim - 2), ndim - 1, ndim - 2]
    if not uses or any((x.target, list(x.args[1:])) != (aten.permute.default, [swapped]) for x in uses):
        return
    with graph.inserting_before(product):
        factors = [graph.call_function(aten.permute.default, (x, [0, 2, 1])) for x in reversed(product.args)]
        transposed = graph.call_function(aten.bmm.default, tuple(factors))
        shaped = graph.call_function(aten.reshape.default, (transposed, list(uses[0].meta["val"].shape)))
    for x in (*factors, transposed, shaped):
        x.meta["val"] = x.target(*[y.meta["val"] if isinstance(y, torch.fx.Node) else y for y in x.args])  # type: ignore[operator]
    for x in uses:
        x.replace_all_uses_with(shaped)
    for x in (*uses, *reversed(chain)):
        graph.erase_node(x)


_counted = PatternMatcherPass()


def _is_counted(loop: Any) -> bool:
    """Whether a loop has as many turns as a number says (`loops.repeat`)."""
    return loop.args[2][0].meta["val"].shape[:1] == (COUNTED,)


@register_graph_pattern(
    CallFunctionVarArgs(torch.ops.higher_order.scan), extra_check=lambda match: _is_counted(match.nodes[0]), pass_dict=_counted
)
def _(match: Match, body: Any, carry: list, xs: list, closed_over: tuple) -> None:
    """Inductor makes a loop of a scan that ends with its `xs`; this one ends with a count. Its turn, which would take seconds to
    be traced once more, is given the number of turns, and counts on."""
    graph: Any = match.graph
    scan: Any = match.nodes[0]
    module, turns = graph.owning_module, xs[0].args[0]
    turn = getattr(module, body.target)
    inputs, output = turn.graph.find_nodes(op="placeholder"), turn.graph.output_node()
    none = turns.meta["val"].new_zeros((), dtype=torch.int64)
    with turn.graph.inserting_before(inputs[0]):
        i = turn.graph.placeholder("i")
    with turn.graph.inserting_before(output):
        next_i = turn.graph.call_function(aten.add.Tensor, (i, 1))
    i.meta["val"], next_i.meta["val"] = none, none + 1
    output.args = ((next_i, *output.args[0]),)

    goes_on = torch.fx.Graph()
    own = [goes_on.node_copy(x) for x in (i, *inputs)]
    is_less = goes_on.call_function(aten.lt.Tensor, (own[0], own[1 + len(carry)]))
    is_less.meta["val"] = none < turns.meta["val"]
    goes_on.output(is_less)

    parts: dict[str, Any] = {f"{body.target}_goes_on": ({}, goes_on), f"{body.target}_counted": (turn, turn.graph)}
    for name, part in parts.items():
        setattr(module, name, torch.fx.GraphModule(*part))
    with graph.inserting_before(scan):
        start = graph.call_function(aten.full.default, ([], 0), {"dtype": torch.int64, "device": none.device})
        operands = (*map(graph.get_attr, parts), (start, *carry), (turns, *closed_over))
        loop = graph.call_function(torch.ops.higher_order.while_loop, operands)
    start.meta["val"], loop.meta["val"] = none, (none, *scan.meta["val"])
    for result in list(scan.users):
        result.args = (loop, result.args[1] + 1)
    graph.erase_node(scan)
    graph.erase_node(body)
    delattr(module, body.target)


class Cheaper(CustomGraphPass):
    """Replace float32 `tanh` on the CPU by `rational_tanh`, short running sums of integers by kernels, the transpose of a
    product by the product of the transposes, and what is put together of neighbours by what they were cut from.

    The gradient of an ensemble's weights comes as such a transpose, which would be copied number by number.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        _rewrites.apply(graph)
        for product in graph.find_nodes(op="call_function", target=aten.bmm.default):
            _transpose_factors(graph, product)
        joining.join(graph)

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__, joining.__file__))


class OwnMemory(CustomGraphPass):
    """Copies that inductor would leave out, although they are needed.

    What a scan reads from outside: the C++ wrapper of torch 2.13 frees a view twice that a loop is handed. But large memory that is
    no view is read where it is, and written there if the loop writes it. And results that share memory: inductor drops the copy of
    a contiguous view. And a part that is read after `keep` has written over the whole, which would have to be copied in its place.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        for loop in graph.find_nodes(op="call_function", target=torch.ops.higher_order.scan):
            body, carry, xs, closed_over = loop.args
            in_place = _stays(getattr(graph.owning_module, body.target))
            with graph.inserting_before(loop):
                carry = [x if i in in_place else _copy(graph, x) for i, x in enumerate(carry)]
                closed_over = [x if _is_large_memory(x) else _copy(graph, x) for x in closed_over]
                loop.args = (body, carry, xs if _is_counted(loop) else [_copy(graph, x) for x in xs], closed_over)
        _counted.apply(graph)
        _own_parts(graph)
        _own_results(graph)
        module = graph.owning_module
        assert module is not None
        for loop_body in _bodies(module):
            _own_parts(loop_body.graph)
            _own_results(loop_body.graph)
            loop_body.recompile()

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


class LoopBuffers(_SchedulerPass):
    """Corrections of how torch 2.13 plans the memory of loops.

    The allocations of all bodies are planned with the outer graph, which does not know what a body's kernels removed: a third
    of a body's buffers would be allocated at each turn and never used. The others need no allocation at each turn either. And
    what a loop writes in place is declared by the loop; planned as reusable, it would be declared twice.
    """

    def __call__(self, nodes: list) -> list:
        if isinstance(V.graph, SubgraphLowering):
            V.graph.removed_buffers = V.graph.parent.removed_buffers
        for loop in (node.node for node in nodes if isinstance(node.node, WhileLoop)):
            V.graph.never_reuse_buffers.update(written.get_name() for written in loop.mutation_outputs)
        return nodes

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


def _bodies(module: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    """What the loops of a graph do at each turn, loops in loops too."""
    return [part for part in module.modules() if isinstance(part, torch.fx.GraphModule) and part is not module]


def _own_results(graph: torch.fx.Graph) -> None:
    """Copy a result that shares the memory of one before it."""
    output = graph.output_node()
    results: Any = output.args[0]
    taken: set[int | None] = set()
    owned: list[Any] = []
    with graph.inserting_before(output):
        for x in results if isinstance(results, tuple | list) else ():
            owned.append(_copy(graph, x) if graphs.storage(x) in taken else x)
            taken |= {graphs.storage(x)} - {None}
    if owned:
        output.args = (tuple(owned),)


def _own_parts(graph: torch.fx.Graph) -> None:
    """Copy what is a part of what `keep` writes over, and is read later."""
    for call in graph.find_nodes(op="call_function", target=keeping.KEEP.default):
        cat = graphs.joined(call.args[1])
        parts: Any = cat.args[0] if cat is not None else ()
        for x in {x for x in parts if graphs.is_read_after(call, x)}:
            assert cat is not None
            with graph.inserting_before(cat):
                cat.replace_input_with(x, _copy(graph, x))


def _copy(graph: torch.fx.Graph, x: Any) -> Any:
    return graphs.copy(graph, x) if isinstance(x, torch.fx.Node) else x


def _stays(body: torch.fx.GraphModule) -> set[int]:
    """Which of its inputs a loop's body writes into, or hands on as they are."""
    inputs = body.graph.find_nodes(op="placeholder")
    writes = [x for x in body.graph.nodes if graphs.writes(x.target)]
    results: Any = body.graph.output_node().args[0]
    handed_on = {i for i, x in enumerate(inputs[: len(results)]) if results[i] is x and x.meta["val"].nbytes >= LARGE}
    return {inputs.index(x.args[0]) for x in writes if x.args[0] in inputs} | handed_on


def _is_large_memory(x: torch.fx.Node) -> bool:
    return (x.op == "placeholder" or x.target is aten.index_put.default) and x.meta["val"].nbytes >= LARGE
