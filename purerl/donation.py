"""Memory that is too large to copy: it is handed on and written in place, and who handed it on has it no longer.

The rule is one of type. What lies in a `Donated` is donated: a function that gives such memory back writes into it in place, and
the memory that it was given is spent from then on, so that whoever still holds it gets a `SpentError` rather than numbers that
have changed. What a function does not give back it has only read, and not spent. All else is copied, as everywhere.
"""

from collections.abc import Sequence
from typing import Any

from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import compiling

SPENT = (
    "this memory is spent: it was donated to a function that wrote into it, and what the function returned has taken its place; "
    "go on with that (purerl.donation)"
)


class Donated(TensorClass):
    """Large memory, such as a replay's, that functions write in place.

    Attributes:
        memory: tensors, of any shapes and dtypes; they share no memory with each other or with anything else.
    """

    memory: TensorDict

    def __post_init__(self) -> None:
        if isinstance(self.memory, dict):
            self.memory = TensorDict(self.memory)


class SpentError(RuntimeError):
    """Donated memory is used by who has handed it on."""


class _Spent(Tensor):
    """What becomes of a tensor that was donated."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise SpentError(SPENT)


def hand_on(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same memory under new names; the old ones are spent."""
    new = [renamed(x) for x in tensors]
    for x in tensors:
        x.__class__ = _Spent
    return new


def is_spent(x: Any) -> bool:
    """Whether a tensor was handed on, to a function that returned or failed."""
    return isinstance(x, _Spent)


def renamed(x: Tensor) -> Tensor:
    """The same memory as another tensor: no view where that can be, because a view remembers whose it is."""
    return x.view_as(x) if compiling.is_mapping() else x.data


def check_apart(tensors: Sequence[Tensor], donated: Sequence[int], extents: Sequence[int]) -> None:
    """Raise a `ValueError` if arguments lie in donated ones: they would change while the function computes.

    Args:
        donated: which of the tensors are.
        extents: bytes that each tensor spans (`extent`); they are the same at every call, and this is done at every call.
    """
    starts = [x.data_ptr() for x in tensors]
    for i in donated:
        start, end = starts[i], starts[i] + extents[i]
        for j, other in enumerate(starts):
            if other < end and start < other + extents[j] and j != i and extents[j]:
                raise ValueError(
                    f"compile: a tensor of shape {list(tensors[j].shape)} lies in memory that is donated along with it, and would "
                    "change under the function; hand over a copy of it"
                )


def extent(x: Tensor) -> int:
    """Bytes from a tensor's first number to behind its last one."""
    if not x.numel():
        return 0
    return (1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))) * x.itemsize
