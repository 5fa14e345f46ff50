"""Parameters from a key: every tensor of a module, as one TensorDict."""

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purerl import random

Scheme = Callable[[Tensor, torch.Size, float], Tensor]


def orthogonal(key: Tensor, shape: torch.Size, gain: float) -> Tensor:
    """A random orthogonal `[out, in, ...]` times `gain`, rows or columns orthonormal (Saxe et al. 2014)."""
    rows, columns = shape[0], math.prod(shape[1:])
    tall, wide = max(rows, columns), min(rows, columns)
    q, r = torch.linalg.qr(random.normal(key, (tall, wide)))
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    return gain * (q if rows >= columns else q.transpose(-2, -1)).contiguous().reshape(shape)


def kaiming_uniform(key: Tensor, shape: torch.Size, gain: float) -> Tensor:
    """Uniform in `+-gain * sqrt(3 / fan_in)` (He et al. 2015); `gain = sqrt(2)` is theirs for ReLU."""
    bound = gain * math.sqrt(3.0 / math.prod(shape[1:]))
    return random.uniform(key, tuple(shape), -bound, bound)


def fan_in_uniform(key: Tensor, shape: torch.Size, gain: float) -> Tensor:
    """Uniform in `+-1 / sqrt(fan_in)` whatever the gain: PyTorch's own for linear and convolutional layers."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return random.uniform(key, tuple(shape), -bound, bound)


SCHEMES: dict[str, Scheme] = {"orthogonal": orthogonal, "kaiming": kaiming_uniform, "torch": fan_in_uniform}


def init(module: nn.Module, key: Tensor, scheme: Scheme = orthogonal) -> TensorDict:
    """Draw a module's parameters; the module itself, which may be on the meta device, is only read.

    Tensors of two and more axes follow `scheme` with the owning layer's `gain` attribute (sqrt(2) if it has none); of the rest, a
    normalisation layer's `weight` is one and everything else zero. A layer with a number `constant` is filled with it.

    Returns:
        A TensorDict of the module's `named_parameters`, under their dotted names.

    Raises:
        ValueError: the module has buffers (running statistics are state, which a pure function cannot keep in a module), or
            dropout, which draws from a global generator.
    """
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        raise ValueError(f"module: buffers {buffers} are hidden state; keep them in the algorithm's state instead")
    dropouts = [name for name, part in module.named_modules() if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0]
    if dropouts:
        raise ValueError(f"module: {dropouts} draw from torch's global generator, which a pure function cannot; leave dropout away")
    owners = dict(module.named_modules())
    named = list(module.named_parameters())
    keys = random.split(key, len(named))
    params = {}
    for i, (name, parameter) in enumerate(named):
        owner, _, leaf = name.rpartition(".")
        if hasattr(owners[owner], "constant"):
            params[name] = torch.full(parameter.shape, owners[owner].constant, device=key.device)
        elif parameter.ndim >= 2:
            params[name] = scheme(keys[i], parameter.shape, getattr(owners[owner], "gain", math.sqrt(2.0)))
        else:
            params[name] = torch.full(parameter.shape, float(leaf == "weight"), device=key.device)
    return TensorDict(params)


def blank(module: nn.Module) -> TensorDict:
    """Parameters of zeros, which take no memory."""
    return TensorDict({name: torch.zeros((), dtype=x.dtype).expand(x.shape) for name, x in module.named_parameters()})


def parameters(module: nn.Module) -> TensorDict:
    """An ordinary module's own parameters as `init` gives them and `apply` takes them; the same memory, and part of its graph."""
    return TensorDict(dict(module.named_parameters()))


def apply(module: nn.Module, params: TensorDict, *inputs: Any) -> Any:
    """Run a module with the given parameters (`torch.func.functional_call`)."""
    return torch.func.functional_call(module, dict(params.items()), inputs, tie_weights=False)  # type: ignore[arg-type]
