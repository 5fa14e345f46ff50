"""What a function is, so that another process can tell whether it is the same one without running it."""

import dataclasses
import functools
import hashlib
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

PACKAGE = __name__.split(".")[0]
LARGE = 1 << 20  # bytes of a constant that is not worth a look at each start


class Unknown(Exception):
    """A function is made of something whose sameness only its graph tells: a user's own code, for one."""


@functools.cache
def sources() -> bytes:
    """The digest of this package's sources."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(x for x in root.rglob("*") if x.suffix in (".py", ".h")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.digest()


def of(x: Any) -> bytes:
    """The digest of a function of this package with all that it closes over, or of a value.

    Raises:
        Unknown: see there.
    """
    digest = hashlib.sha256(sources())
    _add(digest, x, [])
    return digest.digest()


def _add(digest: Any, x: Any, above: list[int]) -> None:
    if id(x) in above:  # it refers to itself
        digest.update(f"above {above.index(id(x))}".encode())
        return
    kind = type(x)
    digest.update(f"{kind.__module__}.{kind.__qualname__}\0".encode())
    above = [*above, id(x)]
    match x:
        case (
            None
            | bool()
            | int()
            | float()
            | complex()
            | str()
            | bytes()
            | torch.dtype()
            | torch.device()
            | np.dtype()
            | slice()
            | types.EllipsisType()
        ):
            digest.update(f"{x!r}\0".encode())
        case types.FunctionType():
            _is_ours(x)
            _add(digest, x.__code__, above)
            cells = [cell.cell_contents for cell in x.__closure__ or ()]
            _add(digest, (cells, x.__defaults__, x.__kwdefaults__), above)
        case types.CodeType():
            _add(digest, (x.co_code, x.co_consts, x.co_names, x.co_varnames, x.co_freevars, x.co_cellvars, x.co_flags), above)
        case types.MethodType():
            _add(digest, (x.__func__, x.__self__), above)
        case types.BuiltinFunctionType() | type():
            _is_ours(x, "torch", "tensordict", "builtins", "collections", "gymnasium", "numpy", "math")
            digest.update(f"{x.__module__}.{x.__qualname__}\0".encode())
        case functools.partial():
            _add(digest, (x.func, x.args, x.keywords), above)
        case Tensor():
            _add(digest, (x.dtype, tuple(x.shape), x.stride(), x.device), above)
            if x.device.type != "meta":
                digest.update(_bytes(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        case np.ndarray() | np.generic():
            _add(digest, (x.dtype.str, x.shape), above)
            digest.update(_bytes(np.ascontiguousarray(x)))
        case gym.Space():
            _is_ours(kind, "gymnasium")
            _add(digest, {name: value for name, value in vars(x).items() if not name.startswith("_np_random")}, above)
        case nn.Module():
            _is_ours(kind, "torch")
            _add(digest, vars(x), above)
        case dict():
            _add(digest, list(x.items()), above)
        case tuple() | list() | set() | frozenset():
            digest.update(f"{len(x)}\0".encode())
            for part in sorted(x, key=repr) if isinstance(x, set | frozenset) else x:
                _add(digest, part, above)
        case _ if dataclasses.is_dataclass(x):
            _is_ours(kind)
            _add(digest, vars(x), above)
        case _:
            raise Unknown(f"{kind.__module__}.{kind.__qualname__}")


def _is_ours(x: Any, *others: str) -> None:
    module = x.__module__ or ""
    if module.split(".")[0] not in (PACKAGE, *others):
        raise Unknown(f"{module}.{x.__qualname__}")


def _bytes(x: np.ndarray) -> bytes:
    if x.nbytes > LARGE or x.dtype.hasobject:
        raise Unknown("a large constant")
    return x.tobytes()
