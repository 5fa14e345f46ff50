"""What a lane keeps that stands still, and whether it has to, as operations of their own.

Written with torch's, both read all numbers of a state before and after, and choose one by one; that costs as much as a gradient
step of Adam. But hardly ever does a lane stand still: in programs for the CPU the new numbers are looked at once, stay where they
are, and only those of a lane that stands still are written over.
"""

import torch
from torch import Tensor

from purerl import compiling, tree


def keep(going: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` `[*lead, ...]`, of any dtype, where `going` `[*lead]`, and `old` `[*lead, ...]` elsewhere; what `tree.where` gives."""
    return (KEEP if _is_for_cpp(new) else tree.where)(going, new, old)


def sound(new: Tensor, old: Tensor) -> Tensor:
    """`[]` bool, whether all numbers of `new` `[...]`, which are floats, are finite or the same as in `old` `[...]`."""
    own = _is_for_cpp(new) and new.dtype == torch.float32
    return (SOUND if own else _sound)(new, old, 0)


def _is_for_cpp(x: Tensor) -> bool:
    """Whether a program in C++ is being made, for the CPU."""
    return compiling.is_tracing() and compiling.CPP_WRAPPER and x.device.type == "cpu"


def _sound(new: Tensor, old: Tensor, lead: int) -> Tensor:
    unsound = torch.where(torch.isfinite(new) | (new == old), 0.0, 1.0)
    return unsound.flatten(lead).amax(-1) == 0  # which vectorises, other than `all`


@torch.library.custom_op("purerl::keep", mutates_args=())
def _keep_in_lanes(going: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return tree.where(going, new, old)


@torch.library.custom_op("purerl::sound", mutates_args=())
def _sound_in_lanes(new: Tensor, old: Tensor, lead: int) -> Tensor:
    return _sound(new, old, lead)


def _in_front(info: object, axes: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """What is mapped along some axes, or not at all, with its lanes along the first."""
    lanes, pairs = info.batch_size, zip(tensors, axes, strict=False)  # type: ignore[attr-defined]
    return [x.expand(lanes, *x.shape) if axis is None else x.movedim(axis, 0) if axis else x for x, axis in pairs]


def _map_keep(info: object, axes: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
    return KEEP(*_in_front(info, axes, tensors)), 0


def _map_sound(info: object, axes: tuple[int | None, ...], new: Tensor, old: Tensor, lead: int) -> tuple[Tensor, int]:
    return SOUND(*_in_front(info, axes, (new, old)), lead + 1), 0


for _operation, _plain, _mapped in ((_keep_in_lanes, tree.where, _map_keep), (_sound_in_lanes, _sound, _map_sound)):
    _operation.register_fake(_plain)
    _operation.register_vmap(_mapped)

KEEP, SOUND = torch.ops.purerl.keep, torch.ops.purerl.sound
