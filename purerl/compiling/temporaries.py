"""Room for what the kernels of a program leave to each other, taken once a call, in the C++ that inductor writes around them.

Inductor takes memory, and a handle for it, for each of these buffers whenever its line is reached: in a loop, at every turn. A
turn of DQN on CartPole did that 75 times, a fifth of its time. Here the buffers that only kernels ask for lie side by side in one
piece of memory, each in a place that is free from the line where it begins to the last one that uses it.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

ALIGNED = 64  # bytes
ITEM = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}

_SIZES = re.compile(r"static constexpr int64_t (?:(\w+)\[\] = \{([\dL, ]*)\}|\*(\w+)=nullptr);$")
_EMPTY = re.compile(
    r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_empty_strided\("
    r"\d+, (\w+), (\w+), cached_torch_dtype_(\w+), cached_torch_device_type_cpu, +0, &(\w+)_handle\)\);$"
)
_REUSED = re.compile(
    r"auto (\w+) = (?:std::move\((\w+)\);|"
    r"wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\((\w+), \d+, \w+, \w+, 0L\)\); \3\.reset\(\);)  // reuse$"
)
_GOES_ON = re.compile(r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_item_bool\((\w+), &(\w+)\)\);$")
_ENTRY = "py::gil_scoped_release_simple release;"


class Temporary(NamedTuple):
    """A buffer: its bytes, its names, the lines that make, rename and free it, and the first and last line of its life."""

    size: int
    names: tuple[str, ...]
    made: tuple[int, ...]
    first: int
    last: int


def in_one_place(code: str) -> str:
    """The C++ of a program, whose temporaries share one piece of memory."""
    lines = _conditions(code.split("\n"))
    uses: dict[str, list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        for word in set(re.findall(r"\w+", line)):
            uses[word].append(i)
    found = _found(lines, uses)
    entry = next((i for i, line in enumerate(lines) if line.strip() == _ENTRY), None)
    if not found or entry is None:
        return "\n".join(lines)
    places = offsets(found)
    for it, offset in zip(found, places, strict=True):
        for name in it.names:
            for k in uses[name]:
                lines[k] = re.sub(rf"\({name}\.data_ptr\(\)\)", f"(temporaries + {offset})", lines[k])
    gone = {k for it in found for k in it.made}
    total = max(offset + it.size for it, offset in zip(found, places, strict=True))
    kept = [line for i, line in enumerate(lines) if i not in gone and i > entry]
    return "\n".join([*lines[: entry + 1], *_room(total), *kept])


def _room(total: int) -> list[str]:
    """The lines that take the memory."""
    return [
        f"    static constexpr int64_t temporaries_size[] = {{{total}L, }};",
        "    static constexpr int64_t temporaries_stride[] = {1L, };",
        "    AtenTensorHandle temporaries_handle;",
        "    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, temporaries_size, temporaries_stride, "
        "aoti_torch_dtype_uint8(), aoti_torch_device_type_cpu(), 0, &temporaries_handle));",
        "    RAIIAtenTensorHandle temporaries_raii(temporaries_handle);",
        "    uint8_t* const temporaries = (uint8_t*)temporaries_raii.data_ptr();",
    ]


def _conditions(lines: list[str]) -> list[str]:
    """The lines, where whether a loop goes on is read where a kernel has left it."""
    lines = list(lines)
    for i, line in enumerate(lines):
        if not (asked := _GOES_ON.match(line.strip())):
            continue
        kept, scalar = asked.groups()
        moved = re.match(rf"{kept} = std::move\((\w+)\);$", lines[i - 2].strip())
        if moved and lines[i - 3].strip() == f"{kept}.reset();":
            lines[i - 3] = lines[i - 2] = ""
            lines[i] = f"{scalar} = *((const bool*)({moved[1]}.data_ptr()));"
    return lines


def _found(lines: list[str], uses: dict[str, list[int]]) -> list[Temporary]:
    """The temporaries that only kernels ask for, in order."""
    sizes: dict[str, tuple[int, ...]] = {}
    found = []
    ends = _ends(lines)
    for i, line in enumerate(lines):
        if said := _SIZES.match(line.strip()):
            sizes[said[1] or said[3]] = tuple(int(n) for n in re.findall(r"\d+", said[2] or ""))
        elif (made := _EMPTY.match(line.strip())) and made[3] in ITEM:
            shape, strides, dtype, name = made.groups()
            one = _temporary(lines, uses, ends, i, name, ITEM[dtype] * _extent(sizes[shape], sizes[strides]))
            found += [one] if one else []
    return found


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many items a tensor spans."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if math.prod(shape) else 0


def _temporary(
    lines: list[str], uses: dict[str, list[int]], ends: list[tuple[int, ...]], i: int, name: str, size: int
) -> Temporary | None:
    """The buffer that is made on line `i`, or None if anybody but kernels asks for it."""
    if (lines[i - 1].strip(), lines[i + 1].strip()) != (
        f"AtenTensorHandle {name}_handle;",
        f"RAIIAtenTensorHandle {name}({name}_handle);",
    ):
        return None
    names, made, last = [name], [i - 1, i, i + 1], i
    for name in names:  # which grows
        for k in uses[name]:
            says = lines[k].strip()
            reused = _REUSED.match(says)
            if k in made:
                continue
            if reused and name in (reused[2], reused[3]):
                names.append(reused[1])
                made.append(k)
            elif says == f"{name}.reset();":
                made.append(k)
            elif len(re.findall(rf"\b{name}\b", says)) != len(re.findall(rf"\*\)\({name}\.data_ptr\(\)\)", says)):
                return None
            inside = [end for end in ends[k] if end not in ends[i]]  # of loops that use it at every turn
            last = max(last, k, *inside)
    return Temporary(-(-max(size, 1) // ALIGNED) * ALIGNED, tuple(names), tuple(made), i, last)


def _ends(lines: list[str]) -> list[tuple[int, ...]]:
    """For each line, where the blocks that it lies in end."""
    opened: list[list[int]] = []
    around: list[list[list[int]]] = []
    for i, line in enumerate(lines):
        for _ in range(line.count("}") - line.count("{")):
            if opened:
                opened.pop()[0] = i
        around.append(list(opened))
        for _ in range(line.count("{") - line.count("}")):
            opened.append([len(lines)])
    return [tuple(block[0] for block in blocks) for blocks in around]


def offsets(found: list[Temporary]) -> list[int]:
    """Where each temporary lies: the first place that is free for all of its life."""
    places: list[int] = []
    for it in found:
        taken = sorted((place, place + other.size) for other, place in zip(found, places, strict=False) if other.last >= it.first)
        place = 0
        for start, end in taken:
            if place + it.size <= start:
                break
            place = max(place, end)
        places.append(place)
    return places
