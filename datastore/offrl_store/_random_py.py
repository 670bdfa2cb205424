"""The kernels in NumPy: counter-based random numbers, and orders of a whole epoch without a table."""

from __future__ import annotations

import math

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


def philox4x32(seed: int, step: int, stream: int, first: int, out: np.ndarray) -> None:
    """Fill ``out`` uint32 [n, 4] with the Philox4x32-10 blocks first .. first+n-1 (Salmon et al. 2011, "Parallel random numbers").

    Key: the seed's low and high word. Counter: (block, step low, step high, stream).
    """
    n = len(out)
    c0 = np.arange(first, first + n, dtype=np.uint64) & MASK
    c1, c2, c3 = (np.full(n, word, np.uint64) for word in (step & 0xFFFFFFFF, step >> 32, stream))
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = (product1 >> SHIFT) ^ c1 ^ np.uint64(key0), (product0 >> SHIFT) ^ c3 ^ np.uint64(key1)
        c1, c3 = product1 & MASK, product0 & MASK
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    for i, word in enumerate((c0, c1, c2, c3)):
        out[:, i] = word


def _blocks(seed: int, step: int, stream: int, n: int) -> np.ndarray:
    out = np.empty((n, 4), np.uint32)
    philox4x32(seed, step, stream, 0, out)
    return out


def draw(seed: int, step: int, stream: int, total: int, out: np.ndarray) -> None:
    """Fill ``out`` int64 with whole numbers below ``total``.

    Draw d is the high 64 bits of the product of ``total`` and the words 2(d%2) (low) and 2(d%2)+1 (high) of block d//2.
    """
    words = _blocks(seed, step, stream, (len(out) + 1) // 2).astype(np.uint64).reshape(-1, 2)[: len(out)]
    total_low, total_high = np.uint64(total & 0xFFFFFFFF), np.uint64(total >> 32)
    low_low, low_high = words[:, 0] * total_low, words[:, 0] * total_high
    high_low, high_high = words[:, 1] * total_low, words[:, 1] * total_high
    middle = (low_low >> SHIFT) + (low_high & MASK) + (high_low & MASK)
    out[:] = high_high + (low_high >> SHIFT) + (high_low >> SHIFT) + (middle >> SHIFT)


def uniform(seed: int, step: int, stream: int, out: np.ndarray) -> None:
    """Fill ``out`` float32 [n] with multiples of 2^-24 in [0, 1): element i from word i%4 of block i//4."""
    words = _blocks(seed, step, stream, (len(out) + 3) // 4).reshape(-1)[: len(out)]
    np.multiply((words >> np.uint32(8)).astype(np.float32), np.float32(2.0**-24), out=out)


# Least-squares fits at Chebyshev nodes: (ln(1+t) - t + t^2/2) / t^3 for sqrt(1/2) <= 1+t < sqrt(2); sin(f)/f and cos(f), in f^2, of
# f quarter turns, |f| <= 1/2.
LOG = tuple(
    map(
        np.float32,
        (
            0.333333283662796,
            -0.25000298023223877,
            0.20001468062400818,
            -0.16642247140407562,
            0.14202171564102173,
            -0.12972235679626465,
            0.12712319195270538,
            -0.08101579546928406,
        ),
    )
)
SIN = tuple(map(np.float32, (1.5707963705062866, -0.6459634900093079, 0.07968021929264069, -0.004602163098752499)))
COS = tuple(map(np.float32, (1.0, -1.2337005138397217, 0.25366920232772827, -0.02086007036268711, 0.00090362987248227)))
LN2 = np.float32(0.6931471805599453)


def _polynomial(coefficients: tuple[np.float32, ...], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def normal(seed: int, step: int, stream: int, out: np.ndarray) -> None:
    """Fill ``out`` float32 [n] with standard normal numbers by Box-Muller.

    Elements 2j and 2j+1 come from words 0 and 1 (j even) or 2 and 3 (j odd) of block j//2. The first word gives the radius (at most 6.66),
    the second the angle.
    """
    words = _blocks(seed, step, stream, (len(out) + 3) // 4).reshape(-1, 2)
    # radius: u = (word // 2 + 1/2) / 2^31 in (0, 1], ln u by exponent and polynomial
    u = (words[:, 0] >> np.uint32(1)).astype(np.float32) + np.float32(0.5)
    bits = u.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    t = (bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
    tail = t * t * (t * _polynomial(LOG, t) - np.float32(0.5)) + t
    log = (exponent - np.int32(31)).astype(np.float32) * LN2 + tail
    radius = np.sqrt(np.maximum(log * np.float32(-2), np.float32(0)))
    # angle: the two high bits choose the quarter, the other bits the position f in it, -1/2 <= f < 1/2
    f = (words[:, 1] << np.uint32(2)).view(np.int32).astype(np.float32) * np.float32(2.0**-32)
    quarter = words[:, 1] >> np.uint32(30)
    square = f * f
    sine, cosine = f * _polynomial(SIN, square), _polynomial(COS, square)
    odd = (quarter & 1).astype(bool)
    x, y = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    pairs = np.empty((len(words), 2), np.float32)
    pairs[:, 0] = np.where((quarter + 1) & 2, -x, x) * radius
    pairs[:, 1] = np.where(quarter & 2, -y, y) * radius
    out[:] = pairs.reshape(-1)[: len(out)]


# --- Orders without a table -----------------------------------------------------------------------------------------------------

ROUNDS = 10


def permute(seed: int, epoch: int, stream: int, total: int, first: int, out: np.ndarray) -> None:
    """Fill ``out`` int64 with elements first .. first+n-1 of a permutation of 0 .. total-1 that (seed, epoch, stream) choose.

    A Feistel network of ROUNDS rounds on the pairs (left < a, right < b), a = ceil(sqrt(total)), b = ceil(total / a), whose numbers are
    left * b + right. A number beyond total passes again (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    Round r adds a hash of one half to the other, modulo its size; its keys are words 2r and 2r+1 of the Philox blocks of (seed, epoch).
    """
    if total == 1:
        out[:] = 0
        return
    keys = _blocks(seed, epoch, stream, 2 * ROUNDS).reshape(-1)
    a, b = (np.uint64(side) for side in sides(total))
    numbers = np.arange(first, first + len(out), dtype=np.uint64)
    out[:] = total
    while (again := out >= total).any():
        left, right = numbers[again] // b, numbers[again] % b
        for r in range(ROUNDS):
            if r % 2:
                right = right + _reduced(left, keys[2 * r], keys[2 * r + 1], b)
                right = np.where(right >= b, right - b, right)
            else:
                left = left + _reduced(right, keys[2 * r], keys[2 * r + 1], a)
                left = np.where(left >= a, left - a, left)
        numbers[again] = left * b + right
        out[:] = numbers


def sides(total: int) -> tuple[int, int]:
    """Return the sizes (a, b) of the two halves of ``permute``."""
    a = math.isqrt(total - 1) + 1
    return a, -(-total // a)


def _reduced(x: np.ndarray, key: np.uint32, other: np.uint32, size: np.uint64) -> np.ndarray:
    """Hash x to a number below ``size``: mix 32 bits under the two keys, multiply by the size, take the high 32 bits."""
    h = (x ^ np.uint64(key)) * np.uint64(0x9E3779B1) & MASK
    h = (h ^ (h >> np.uint64(15))) + np.uint64(other) & MASK
    h = h * np.uint64(0x85EBCA6B) & MASK
    h = (h ^ (h >> np.uint64(13))) * np.uint64(0xC2B2AE35) & MASK
    h ^= h >> np.uint64(16)
    return h * size >> SHIFT
