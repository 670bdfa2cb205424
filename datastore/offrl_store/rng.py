"""Random numbers as a pure function of (seed, step, stream): Philox4x32-10, the same on every machine and in both kernels.

A stream is a uint32 that separates the uses of one seed (batches, each kind of noise): ``stream_id("target_noise")``.
"""

from __future__ import annotations

import zlib

import numpy as np

from offrl_store.errors import InvalidInput
from offrl_store.kernels import kernels


def stream_id(name: str) -> int:
    """Return the stream of a name: its CRC-32."""
    return zlib.crc32(name.encode())


def philox4x32(seed: int, step: int, stream: int, blocks: int, first: int = 0) -> np.ndarray:
    """Return blocks first .. first+blocks-1 of the stream at a step: uint32 [blocks, 4]. Seed and step are below 2^64."""
    out = np.empty((blocks, 4), np.uint32)
    kernels().philox4x32(_word(seed, "seed"), _word(step, "step"), _word(stream, "stream", 32), _word(first, "first", 32), out)
    return out


def uniform(seed: int, step: int, stream: int, out: np.ndarray) -> np.ndarray:
    """Fill ``out`` (float32, contiguous, any shape) with numbers in [0, 1). Returns it."""
    kernels().uniform(_word(seed, "seed"), _word(step, "step"), _word(stream, "stream", 32), _flat(out))
    return out


def normal(seed: int, step: int, stream: int, out: np.ndarray) -> np.ndarray:
    """Fill ``out`` (float32, contiguous, any shape) with standard normal numbers. Returns it."""
    kernels().normal(_word(seed, "seed"), _word(step, "step"), _word(stream, "stream", 32), _flat(out))
    return out


def integers(seed: int, step: int, stream: int, total: int, count: int) -> np.ndarray:
    """Return ``count`` whole numbers below ``total``, int64 [count], drawn as a sampler draws transitions."""
    out = np.empty(count, np.int64)
    kernels().draw(_word(seed, "seed"), _word(step, "step"), _word(stream, "stream", 32), _word(total, "total", 63), out)
    return out


def permutation(seed: int, step: int, stream: int, total: int, count: int, first: int = 0) -> np.ndarray:
    """Return elements first .. first+count-1 of the permutation of 0 .. total-1 that (seed, step, stream) choose, int64 [count]."""
    if not 1 <= total < 1 << 62 or not 0 <= first <= first + count <= total:
        raise InvalidInput(f"elements {first} to {first + count - 1} of {total} do not exist", hint="total is from 1 to 2^62 - 1")
    out = np.empty(count, np.int64)
    kernels().permute(_word(seed, "seed"), _word(step, "step"), _word(stream, "stream", 32), total, first, out)
    return out


def _word(value: int, name: str, bits: int = 64) -> int:
    if not 0 <= value < 1 << bits:
        raise InvalidInput(f"{name} {value} is not between 0 and 2^{bits} - 1")
    return int(value)


def _flat(out: np.ndarray) -> np.ndarray:
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidInput("out must be a writable, contiguous float32 array", hint="np.empty(shape, np.float32)")
    return out.reshape(-1)
