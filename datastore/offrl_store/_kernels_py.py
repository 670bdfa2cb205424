"""The kernels in NumPy: what `_kernels.pyx` must agree with, and the fallback where it could not be built.

Random numbers agree bit for bit (same float32 operations in the same order), so that both draw the same batches and noise.
"""

from __future__ import annotations

import zlib

import numpy as np

NAME = "numpy"
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
    """Fill ``out`` int64 with whole numbers below ``total``: draw d takes words 2(d%2) (low) and 2(d%2)+1 (high) of block d//2,
    multiplied by ``total``, the high 64 bits of the product.
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
LOG = tuple(map(np.float32, (0.333333283662796, -0.25000298023223877, 0.20001468062400818, -0.16642247140407562,
                             0.14202171564102173, -0.12972235679626465, 0.12712319195270538, -0.08101579546928406)))
SIN = tuple(map(np.float32, (1.5707963705062866, -0.6459634900093079, 0.07968021929264069, -0.004602163098752499)))
COS = tuple(map(np.float32, (1.0, -1.2337005138397217, 0.25366920232772827, -0.02086007036268711, 0.00090362987248227)))
LN2 = np.float32(0.6931471805599453)


def _polynomial(coefficients: tuple[np.float32, ...], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def normal(seed: int, step: int, stream: int, out: np.ndarray) -> None:
    """Fill ``out`` float32 [n] with standard normal numbers by Box-Muller: elements 2j and 2j+1 from words 0 and 1 (j even) or 2 and 3
    (j odd) of block j//2. The first word gives the radius (at most 6.66), the second the angle.
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
    # angle: the two high bits choose the quarter, the rest the place in it, -1/2 <= f < 1/2
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


def crc32_rows(rows: np.ndarray, width: int, out: np.ndarray) -> None:
    """CRC-32 (zlib) of the first ``width`` bytes of each row of uint8 [n, >= width]."""
    for i, row in enumerate(rows):
        out[i] = zlib.crc32(row[:width])


class Transitions:
    """Draws transitions and fills arrays from columns. One object per sampler; the arrays are filled again by every call.

    table int64 [E+1, 4]: per episode the number of its first transition, its first row, its transitions, and T if it terminated,
    else -1; the last line holds the total. guide int32: guide[u >> shift] is the episode of the first transition of that bucket.
    """

    def __init__(self, table, guide, shift, powers, reward, reward_out, terminal_out, discount_out, index_out):
        self.table, self.guide, self.shift, self.total = table, guide, shift, int(table[-1, 0])
        self.powers, self.steps = powers, len(powers) - 1  # gamma^0 .. gamma^n, float64
        self.reward = reward
        self.reward_out, self.terminal_out, self.discount_out, self.index_out = reward_out, terminal_out, discount_out, index_out
        self.operations = []

    def add_copy(self, source, out, count, at_next, repeat_first):
        """Fill ``out`` uint8 [B, count * row bytes] with the ``count`` rows of ``source`` uint8 [rows, row bytes] that end at the
        transition's row, or at its next one. Rows before the episode are zeros, or its first row.
        """
        self.operations.append((source, out, count, at_next, repeat_first, False))

    def add_int64(self, source, out, at_next):
        """Fill ``out`` int64 [B, width] from ``source`` [rows, width] of any integer dtype."""
        self.operations.append((source, out, 1, at_next, False, True))

    def sample(self, seed, step, stream):
        numbers = np.empty(len(self.index_out), np.int64)
        draw(seed, step, stream, self.total, numbers)
        self.gather(numbers)

    def gather(self, numbers):
        """Fill the arrays with these transitions, numbered from 0 over the sampler's episodes. Raises IndexError."""
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= self.total):
            raise IndexError("a transition number is out of range")
        episode = np.searchsorted(self.table[:-1, 0], numbers, side="right") - 1
        start, first, limit, terminal = self.table[episode].T
        t = numbers - start
        used = np.minimum(self.steps, limit - t)
        row, after = first + t, first + t + used
        total = np.zeros(len(numbers))
        for k in range(int(used.max(initial=0))):
            reward = self.reward[np.minimum(row + k, after - 1)].astype(np.float64)
            total += np.where(k < used, self.powers[k] * reward, 0.0)
        self.reward_out[:] = total
        self.terminal_out[:] = t + used == terminal
        self.discount_out[:] = self.powers[used]
        self.index_out[:] = row
        for source, out, count, at_next, repeat_first, whole in self.operations:
            last = after if at_next else row
            if whole:
                out[:] = source[last]
                continue
            width = source.shape[1]
            for k in range(count):
                at = last - (count - 1 - k)
                part = source[np.maximum(at, first)]
                if not repeat_first:
                    part[at < first] = 0
                out[:, k * width:(k + 1) * width] = part
