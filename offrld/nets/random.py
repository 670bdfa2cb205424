"""Uniform random numbers as a pure function of key, stream and position: the same on every device, under vmap and in a compiled graph.

The hash works on 32-bit words in int64 and stays within 63 bits, so no operation overflows or depends on how a compiler treats signed
overflow. Its output has 24 bits, which float32 and float64 both represent exactly, so both dtypes get the same numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offrld.nets.eager import eager

WORD = 0xFFFFFFFF
_BITS = 24
_BLOCK = 1 << 15  # words computed at a time
_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}  # dtypes that `_in_blocks` supports
# Odd multipliers below 2^31 (a word times one of them stays below 2^63), with about half of their bits set.
_FIRST, _SECOND, _THIRD = 0x7FEB352D, 0x21F0AAAD, 0x6C9E35A9


def words(key: Tensor) -> tuple[Tensor, Tensor]:
    """Mix a key (0-d int64, any value) into two words; keys that differ in one bit give unrelated words."""
    low, high = key & WORD, (key >> 32) & WORD
    first = _mix(_mix(low ^ 0x3C6EF372) ^ high)
    return first, _mix(first ^ low)


def stream(name: str, call: int) -> tuple[int, int]:
    """Return two words that identify the ``call``-th use of ``name``."""
    text = f"{name}/{call}".encode()
    return zlib.crc32(text), zlib.crc32(text, 0x5BD1E995)


def uniform(key: tuple[Tensor, Tensor], stream: tuple[int, int], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return numbers in [0, 1) of this shape, with the dtype and device of ``like``; ``key`` comes from `words`."""
    if eager(key[0]) and eager(like) and like.dtype in _FLOATS:
        return torch.from_numpy(_in_blocks(key, stream, math.prod(shape), _FLOATS[like.dtype])).reshape(tuple(shape))
    x = torch.arange(math.prod(shape), device=like.device).reshape(tuple(shape))
    x = ((x ^ (key[0] ^ stream[0])) * _FIRST) & WORD
    # The second word enters here: with only one word, keys near each other would give permutations of the same numbers.
    x = x ^ (x >> 16) ^ (key[1] ^ stream[1])
    x = (x * _SECOND) & WORD
    x = x ^ (x >> 15)
    x = ((x * _THIRD) >> (32 - _BITS)) & ((1 << _BITS) - 1)
    return x.to(like.dtype) * 2.0**-_BITS


def _in_blocks(key: tuple[Tensor, Tensor], stream: tuple[int, int], count: int, dtype: type) -> np.ndarray:
    """Compute the same numbers with NumPy, whose unsigned words wrap, in blocks that fit the cache: 10^6 in 1.2 ms instead of 9.4."""
    first, second = (np.uint32((int(word) ^ other) & WORD) for word, other in zip(key, stream, strict=True))
    out: np.ndarray = np.empty(count, dtype)
    positions, x, y = np.arange(min(count, _BLOCK), dtype=np.uint32), np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    for start in range(0, count, _BLOCK):
        part = out[start : start + _BLOCK]
        u, v = x[: len(part)], y[: len(part)]
        np.add(positions[: len(part)], np.uint32(start), out=u)
        u ^= first
        u *= np.uint32(_FIRST)
        u ^= np.right_shift(u, 16, out=v)
        u ^= second
        u *= np.uint32(_SECOND)
        u ^= np.right_shift(u, 15, out=v)
        u *= np.uint32(_THIRD)
        u >>= np.uint32(32 - _BITS)
        np.multiply(u, dtype(2.0**-_BITS), out=part, casting="unsafe", dtype=dtype)
    return out


def _mix(x: Tensor) -> Tensor:
    """Apply a bijection on 32-bit words in which every bit of the result depends on every bit of ``x``."""
    x = ((x ^ (x >> 16)) * _FIRST) & WORD
    x = ((x ^ (x >> 15)) * _SECOND) & WORD
    return x ^ (x >> 16)
