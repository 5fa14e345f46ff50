"""Keys instead of a global generator: a counter-based generator on Threefry-2x32-20.

A key is an int32 tensor `[2]` (its 64 bits). Every function is pure: the same key gives the same numbers, eager, compiled or
vmapped, on any device. Use each key once: `split` it, or `fold_in` a number, to get new ones.

Raises: every function that takes a key raises a `ValueError` if it is given something else.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); the known-answer vectors of Random123 hold.
"""

import math

import torch
from torch import Tensor

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
# The second counter word says what a block is for, so that no two functions of one key ever read the same block.
_BITS, _SPLIT, _FOLD_IN = 0, 1, 2


def _int32(word: int) -> int:
    """The int32 with the bits of a 32-bit word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _rotate_left(x: Tensor, n: int) -> Tensor:
    return (x << n) | ((x >> (32 - n)) & ((1 << n) - 1))


def threefry2x32(key: Tensor, counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Encrypt a counter with 20 rounds of Threefry-2x32.

    Args:
        key: `[2]` int32.
        counter: two int32 tensors that broadcast together.

    Returns:
        Two int32 tensors of random words, of the counter's shape.
    """
    k0, k1 = key[0], key[1]
    ks = (k0, k1, k0 ^ k1 ^ _int32(_PARITY))
    x0, x1 = counter[0] + ks[0], counter[1] + ks[1]
    for group in range(5):
        for r in _ROTATIONS[4 * (group % 2) : 4 * (group % 2) + 4]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, r) ^ x0
        x0 = x0 + ks[(group + 1) % 3]
        x1 = x1 + ks[(group + 2) % 3] + (group + 1)
    return x0, x1


# A graph calls it as a whole, so that its 20 rounds are not traced from the bytecode again each time.
torch.compiler.allow_in_graph(threefry2x32)


def _blocks(key: Tensor, n: int, purpose: int) -> tuple[Tensor, Tensor]:
    _check(key)
    index = torch.arange(n, dtype=torch.int32, device=key.device)
    return threefry2x32(key, (index, torch.full_like(index, purpose)))


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """The key `[2]` int32 of a seed, an integer of up to 64 bits.

    Raises:
        ValueError: the seed is not an integer in `[0, 2**64)`.
    """
    if not isinstance(seed, int):
        raise ValueError(f"seed: {seed!r} is not an integer")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: {seed} is not in [0, 2**64)")
    return torch.tensor([_int32(seed & 0xFFFFFFFF), _int32(seed >> 32)], dtype=torch.int32, device=device)


def is_key(x: object) -> bool:
    """Whether `x` is one key: an int32 tensor of shape `[2]`."""
    return isinstance(x, Tensor) and x.dtype == torch.int32 and x.shape == (2,)


def _check(key: object) -> None:
    if not is_key(key):
        found = f"{key.dtype} {list(key.shape)}" if isinstance(key, Tensor) else repr(key)
        raise ValueError(f"key: {found} is not a key, int32 [2]; random.key(0) makes one, vmap maps over several")


def split(key: Tensor, n: int = 2) -> Tensor:
    """`n` new keys, `[n, 2]` int32."""
    return torch.stack(_blocks(key, n, _SPLIT), -1)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key `[2]` from a key and an integer (a 0-d tensor, or an int of 32 bits)."""
    _check(key)
    word = torch.as_tensor(data, dtype=torch.int32, device=key.device)
    return torch.stack(threefry2x32(key, (word, torch.full_like(word, _FOLD_IN))), -1)


def bits(key: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Random words, int32 of the given shape, uniform over all 32 bits."""
    n = math.prod(shape)
    return torch.cat(_blocks(key, (n + 1) // 2, _BITS))[:n].reshape(shape)


def _unit(words: Tensor) -> Tensor:
    """Words to float32 at the centres of 2**23 equal cells of (0, 1): neither 0 nor 1 comes up."""
    return ((words >> 9) & 0x7FFFFF).float() * 2.0**-23 + 2.0**-24


def uniform(key: Tensor, shape: tuple[int, ...] = (), low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
    """float32 uniform over the open interval `(low, high)`."""
    return low + (high - low) * _unit(bits(key, shape))


def normal(key: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """float32 standard normal (Box and Muller 1958)."""
    n = math.prod(shape)
    u = _unit(bits(key, (2, (n + 1) // 2)))
    radius, angle = torch.sqrt(-2.0 * torch.log(u[0])), (2.0 * math.pi) * u[1]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:n].reshape(shape)


def randint(key: Tensor, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """int64 uniform over `low, ..., high - 1`; the bias is at most `(high - low) / 2**32`.

    Raises:
        ValueError: the range is empty or wider than 32 bits.
    """
    if not 0 < high - low <= 1 << 32:
        raise ValueError(f"randint: [{low}, {high}) must hold between 1 and 2**32 integers")
    words = bits(key, shape).long() & 0xFFFFFFFF
    return low + ((words * (high - low)) >> 32)


def bernoulli(key: Tensor, p: float | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """bool, True with probability `p` (broadcast with `shape`)."""
    return uniform(key, shape) < p


def gumbel(key: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """float32 standard Gumbel."""
    return -torch.log(-torch.log(uniform(key, shape)))


def categorical(key: Tensor, logits: Tensor) -> Tensor:
    """Indices `[...]` int64 drawn from unnormalised log-probabilities `[..., n]` by the Gumbel-max trick."""
    return torch.argmax(logits + gumbel(key, tuple(logits.shape)), -1)


_FEISTEL_ROUNDS = 8


def permutation(key: Tensor, n: int) -> Tensor:
    """A random order of `0, ..., n - 1`, int64 `[n]`, without a sort.

    A Feistel network on the index is a bijection of `[0, 2**k)` (Luby and Rackoff 1988); the values below `n`, taken in their
    order, are a permutation of `n`.

    Raises:
        ValueError: `n` is not in `[1, 2**30]`.
    """
    if not 1 <= n <= 1 << 30:
        raise ValueError(f"permutation: n = {n} is not in [1, 2**30]")
    # Feistel permutations of fewer than 2**6 points are visibly not uniform, and a few points more cost nothing.
    k = max((n - 1).bit_length(), 6)
    low_bits, high_bits = k // 2, k - k // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << high_bits) - 1
    round_keys = bits(key, (_FEISTEL_ROUNDS, 2)).long() & 0xFFFFFFFF
    index = torch.arange(1 << k, device=key.device)
    low, high = index & low_mask, index >> low_bits
    for r in range(_FEISTEL_ROUNDS):
        if r % 2:
            low = low ^ (_mix(high, round_keys[r]) & low_mask)
        else:
            high = high ^ (_mix(low, round_keys[r]) & high_mask)
    image = (high << low_bits) | low
    if n == 1 << k:
        return image
    inside = image < n
    place = torch.where(inside, inside.long().cumsum(0) - 1, n)
    return torch.zeros(n + 1, dtype=torch.int64, device=key.device).scatter(0, place, image)[:n]


def _mix(x: Tensor, key: Tensor) -> Tensor:
    """A keyed hash of small integers: multiply-shift on 32-bit words, int64 carries them (Dietzfelbinger 1996)."""
    return ((x * (key[0] | 1) + key[1]) & 0xFFFFFFFF) >> 16


def choice(key: Tensor, n: int, shape: tuple[int, ...] = (), p: Tensor | None = None, replace: bool = True) -> Tensor:
    """Indices below `n`, int64 of the given shape, uniform or with probabilities `p` `[n]`.

    Raises:
        ValueError: more draws than `n` without replacement.
    """
    count = math.prod(shape)
    if not replace and count > n:
        raise ValueError(f"choice: {count} draws without replacement from n = {n}")
    if p is None:
        flat = randint(key, (count,), 0, n) if replace else permutation(key, n)[:count]
    elif replace:
        flat = torch.searchsorted(p.cumsum(-1) / p.sum(-1, keepdim=True), uniform(key, (count,)), right=True).clamp(max=n - 1)
    else:
        flat = torch.topk(torch.log(p) + gumbel(key, (n,)), count).indices
    return flat.reshape(shape)
