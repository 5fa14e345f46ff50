"""Fewer handles in the C++ that inductor writes around a program's kernels.

A loop's turn makes a handle, which is memory of its own, for each of its operands, twice, and for each part of a buffer that
a kernel fills. Kernels only ask them where the numbers are. Here an operand is a reference to the handle that is there already,
if all that the turn does with it would do the same to that, and a part of a buffer is its place in the whole. The 128 turns of
a rollout of PPO on CartPole and the 16 of its minibatches take a sixth less time so.
"""

import re
from collections import defaultdict
from typing import Any
from unittest import mock

from torch._inductor.codecache import CppWrapperCodeCache

from purerl.compiling import temporaries

_OPERAND = re.compile(r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_assign_tensors_out\((\w+), &(\w+)_handle\)\);$")
_PART = re.compile(
    r"auto (\w+) = wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\((\w+), \d+, \w+, \w+, (\d+)L\)\);  // alias$"
)
Lines = list[str | None]  # None where one is gone
Uses = dict[str, list[int]]  # the lines with a word


def few() -> Any:
    """Within, programs are built with fewer handles."""
    build = CppWrapperCodeCache.load_pybinding

    def load_pybinding(argtypes: Any, main_code: str, *args: Any, **settings: Any) -> Any:
        return build(argtypes, temporaries.in_one_place(with_few(main_code)), *args, **settings)

    return mock.patch.object(CppWrapperCodeCache, "load_pybinding", load_pybinding)


def with_few(code: str) -> str:
    """The C++ of a program, with fewer handles."""
    lines: Lines = list(code.split("\n"))
    uses: Uses = defaultdict(list)
    for i, line in enumerate(lines):
        for word in set(re.findall(r"\w+", line or "")):
            uses[word].append(i)
    for i in range(len(lines)):
        if found := _OPERAND.match(_says(lines, i)):
            _refer(lines, uses, i, *found.groups())
        elif found := _PART.match(_says(lines, i)):
            _place(lines, uses, i, *found.groups())
    return "\n".join(line for line in lines if line is not None)


def _refer(lines: Lines, uses: Uses, i: int, source: str, name: str) -> None:
    """Make of an operand's handle, declared around line `i`, a reference to its source, or nothing if nobody uses it."""
    if (_says(lines, i - 1), _says(lines, i + 1)) != (
        f"AtenTensorHandle {name}_handle;",
        f"RAIIAtenTensorHandle {name}({name}_handle);",
    ):
        return
    used = [k for k in uses[name] if k != i + 1 and lines[k] is not None]
    gone = [k for k in used if _says(lines, k) == f"{name}.reset();"]
    for k in used:
        if _says(lines, k) == f"{source} = std::move({name});" and _says(lines, k - 1) == f"{source}.reset();":
            gone += [k - 1, k]
    reads = [k for k in used if k not in gone]
    allowed = rf"\({name}\.data_ptr\(\)\)|_item_\w+\({name}, |_assign_tensors_out\({name}, |_wrapper\({name}, "
    if any(not _only(_says(lines, k), name, allowed) for k in reads):
        return
    if not _stays(lines, [k for k in uses[source] if k not in gone], source, i, max(reads, default=i)):
        return
    for k in (i - 1, i, i + 1, *gone):
        lines[k] = None
    if reads:
        lines[i] = f"auto& {name} = {source};"
    uses[source].append(i)


def _place(lines: Lines, uses: Uses, i: int, name: str, whole: str, offset: str) -> None:
    """Take a buffer's part, declared on line `i`, where it lies in the whole, if that is there as long as the part is used."""
    used = [k for k in uses[name] if k != i and lines[k] is not None]
    gone = [k for k in used if _says(lines, k) == f"{name}.reset();"]
    reads = [k for k in used if k not in gone]
    place = rf"(\((?:const )?[\w:]+\*\))\({name}\.data_ptr\(\)\)"
    if any(not _only(_says(lines, k), name, place) for k in reads):
        return
    if not _stays(lines, uses[whole], whole, i, max(reads, default=i)):
        return
    for k in (i, *gone):
        lines[k] = None
    for k in reads:
        lines[k] = re.sub(place, rf"(\1({whole}.data_ptr()) + {offset})", _says(lines, k))
        uses[whole].append(k)


def _stays(lines: Lines, used: list[int], name: str, first: int, last: int) -> bool:
    """Whether a handle, used on these lines, holds the same memory from one line to another."""
    ends = re.compile(rf"\b{name}\.reset\(\)|move\({name}\)|\b{name} = ")
    return not any(first < k <= last and ends.search(_says(lines, k)) for k in used)


def _says(lines: Lines, i: int) -> str:
    return (lines[i] or "").strip()


def _only(line: str, name: str, allowed: str) -> bool:
    """Whether a line uses a name in one way only."""
    return len(re.findall(rf"\b{name}\b", line)) == len(re.findall(allowed, line))
