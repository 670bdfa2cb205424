"""The kernels in NumPy: what the compiled ones (`_compiled.py` names them) must agree with, and the fallback where it could not be built.

Random numbers agree bit for bit (same float32 operations in the same order), so that both draw the same batches and noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from offrl_store._rows_py import RowBuffer, crc32, crc32_rows

NAME = "numpy"
__all__ = ["RowBuffer", "crc32", "crc32_rows"]  # beside what is defined here
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


# --- Orders without a table -----------------------------------------------------------------------------------------------------

ROUNDS = 10


def permute(seed: int, epoch: int, stream: int, total: int, first: int, out: np.ndarray) -> None:
    """Fill ``out`` int64 with elements first .. first+n-1 of a permutation of 0 .. total-1 that (seed, epoch, stream) choose.

    A Feistel network of ROUNDS rounds on the pairs (left < a, right < b), a = ceil(sqrt(total)), b = ceil(total / a), whose numbers are
    left * b + right; one beyond total goes through again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking).
    Round r adds a hash of one half to the other, modulo its size; its keys are words 2r and 2r+1 of the Philox blocks of (seed, epoch).
    """
    if total == 1:
        out[:] = 0
        return
    keys = _blocks(seed, epoch, stream, 2 * ROUNDS).reshape(-1)
    a, b = (np.uint64(side) for side in sides(total))
    numbers = np.arange(first, first + len(out), dtype=np.uint64)
    out[:] = total
    while (due := out >= total).any():
        left, right = numbers[due] // b, numbers[due] % b
        for r in range(ROUNDS):
            if r % 2:
                right = right + _reduced(left, keys[2 * r], keys[2 * r + 1], b)
                right = np.where(right >= b, right - b, right)
            else:
                left = left + _reduced(right, keys[2 * r], keys[2 * r + 1], a)
                left = np.where(left >= a, left - a, left)
        numbers[due] = left * b + right
        out[:] = numbers


def sides(total: int) -> tuple[int, int]:
    """The sizes (a, b) of the two halves of ``permute``."""
    a = math.isqrt(total - 1) + 1
    return a, -(-total // a)


def _reduced(x: np.ndarray, key: np.uint32, other: np.uint32, size: np.uint64) -> np.ndarray:
    """A hash of x below ``size``: 32 bits mixed under the two keys, multiplied by the size, the high 32 bits."""
    h = (x ^ np.uint64(key)) * np.uint64(0x9E3779B1) & MASK
    h = (h ^ (h >> np.uint64(15))) + np.uint64(other) & MASK
    h = h * np.uint64(0x85EBCA6B) & MASK
    h = (h ^ (h >> np.uint64(13))) * np.uint64(0xC2B2AE35) & MASK
    h ^= h >> np.uint64(16)
    return h * size >> SHIFT


# --- Returns --------------------------------------------------------------------------------------------------------------------


class Returns:
    """Discounted sums of the rewards from a row to its episode's end, float64, G = r + gamma G of the next row.

    spans int64 [E, 2]: first row and T of each episode. marks float64, zeros: the compiled kernel keeps G of every 16th row there, row
    16 (base + j) in marks[j], and adds up to 15 rewards to it; this one keeps every G instead.
    """

    def __init__(self, spans: np.ndarray, reward: np.ndarray, gamma: float, marks: np.ndarray, base: int) -> None:
        first, steps = spans[:, 0], spans[:, 1]
        self.start = int(first.min())
        self.sums = np.zeros(int((first + steps).max()) - self.start + 1)
        value = np.zeros(len(spans))
        for t in range(int(steps.max()) - 1, -1, -1):
            on = steps > t
            value[on] = reward[first[on] + t].astype(np.float64) + gamma * value[on]
            self.sums[first[on] + t - self.start] = value[on]

    def at(self, rows: np.ndarray) -> np.ndarray:
        return self.sums[rows - self.start]


def lambda_returns(rewards: np.ndarray, values: np.ndarray, discounts: np.ndarray, decay: float, out: np.ndarray) -> None:
    """Fill ``out`` [B, L], all float32: G_t = r_t + d_t ((1 - decay) v_t + decay G_{t+1}), v_t of the next state; after the end G = v.
    Sums are in float64.
    """
    following = values[:, -1].astype(np.float64)
    for t in range(rewards.shape[1] - 1, -1, -1):
        mixed = (1.0 - decay) * values[:, t].astype(np.float64) + decay * following
        following = rewards[:, t].astype(np.float64) + discounts[:, t].astype(np.float64) * mixed
        out[:, t] = following


# --- Samplers -------------------------------------------------------------------------------------------------------------------


class _Copy(NamedTuple):
    """A column that a batch copies: rows of ``source`` into ``out``."""

    source: np.ndarray
    out: np.ndarray
    joined: int  # rows joined into one
    at_next: bool  # ending at the transition's next row instead of its own
    repeat_first: bool
    to_int64: bool


class Gatherer(ABC):
    """Draws transitions by number and fills the arrays of a batch with what belongs to them. One object per sampler.

    table int64 [E+1, 4]: per episode the number of its first transition, its first row, its transitions, and T if it terminated,
    else -T; the last line holds the total. guide int32: guide[u >> shift] is the episode of the first transition of that bucket.
    Each way of drawing fills the samples start .. start+count-1 of the batch, by default all.
    """

    def __init__(self, table: np.ndarray, guide: np.ndarray, shift: int, size: int) -> None:
        self.table, self.guide, self.shift, self.total, self.size = table, guide, shift, int(table[-1, 0]), size
        self.operations: list[_Copy] = []

    def sample(self, seed: int, step: int, stream: int, start: int = 0, count: int = -1) -> None:
        """Draw uniformly, with repetitions."""
        numbers = np.empty(self._count(start, count), np.int64)
        draw(seed, step, stream, self.total, numbers)
        self._fill(numbers, slice(start, start + len(numbers)))

    def sample_order(self, seed: int, epoch: int, stream: int, first: int, start: int = 0, count: int = -1) -> None:
        """Take the elements first .. of the permutation of an epoch."""
        count = self._count(start, count)
        if first < 0 or first + count > self.total:
            raise ValueError("the epoch is over")
        numbers = np.empty(count, np.int64)
        permute(seed, epoch, stream, self.total, first, numbers)
        self._fill(numbers, slice(start, start + count))

    def gather(self, numbers: np.ndarray, start: int = 0) -> None:
        """Take these transitions, numbered from 0 over the sampler's episodes. Raises IndexError."""
        self._count(start, len(numbers))
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= self.total):
            raise IndexError("a transition number is out of range")
        self._fill(numbers, slice(start, start + len(numbers)))

    def _count(self, start: int, count: int) -> int:
        if start < 0 or count < -1 or start + max(count, 0) > self.size:
            raise ValueError("the batch has no such samples")
        return self.size - start if count < 0 else count

    @abstractmethod
    def _fill(self, numbers: np.ndarray, part: slice) -> None:
        """Fill the samples ``part`` of the batch with these transitions."""

    def _find(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The episode and the time step within it of each transition."""
        episode = np.searchsorted(self.table[:-1, 0], numbers, side="right") - 1
        return episode, numbers - self.table[episode, 0]


class Transitions(Gatherer):
    """Fills reward, terminal, discount float32 [B], index int64 [B] and the columns added."""

    def __init__(
        self,
        table: np.ndarray,
        guide: np.ndarray,
        shift: int,
        powers: np.ndarray,
        reward: np.ndarray,
        reward_out: np.ndarray,
        terminal_out: np.ndarray,
        discount_out: np.ndarray,
        index_out: np.ndarray,
    ) -> None:
        super().__init__(table, guide, shift, len(index_out))
        self.powers, self.steps = powers, len(powers) - 1  # gamma^0 .. gamma^n, float64
        self.reward = reward
        self.returns: tuple[Returns, np.ndarray, np.ndarray, np.ndarray, float] | None = None
        self.reward_out, self.terminal_out, self.discount_out, self.index_out = reward_out, terminal_out, discount_out, index_out

    def add_copy(self, source: np.ndarray, out: np.ndarray, count: int, at_next: bool, repeat_first: bool) -> None:
        """Fill ``out`` uint8 [B, count * row bytes] with the ``count`` rows of ``source`` uint8 [rows, row bytes] that end at the
        transition's row, or at its next one. Rows before the episode are zeros, or its first row.
        """
        self.operations.append(_Copy(source, out, count, at_next, repeat_first, False))

    def add_int64(self, source: np.ndarray, out: np.ndarray, at_next: bool) -> None:
        """Fill ``out`` int64 [B, width] from ``source`` [rows, width] of any integer dtype."""
        self.operations.append(_Copy(source, out, 1, at_next, False, True))

    def add_returns(self, returns: Returns, out: np.ndarray, remaining: np.ndarray, last: np.ndarray, failure: float) -> None:
        """Fill ``out`` float32 [B] with the returns of the transitions' rows and ``remaining`` int64 [B] with the number of rewards in
        them. last int64 [E]: time step of the last reward that counts; after it the return is ``failure``, of one reward.
        """
        self.returns = (returns, out, remaining, last, failure)

    def _fill(self, numbers: np.ndarray, part: slice) -> None:
        episode, t = self._find(numbers)
        first, limit, terminal = self.table[episode, 1:].T
        used = np.minimum(self.steps, limit - t)
        row, after = first + t, first + t + used
        total = np.zeros(len(numbers))
        for k in range(int(used.max(initial=0))):
            reward = self.reward[np.minimum(row + k, after - 1)].astype(np.float64)
            total += np.where(k < used, self.powers[k] * reward, 0.0)
        self.reward_out[part] = total
        self.terminal_out[part] = t + used == terminal
        self.discount_out[part] = self.powers[used]
        self.index_out[part] = row
        if self.returns is not None:
            returns, out, remaining, last, failure = self.returns
            failed = t > last[episode]
            out[part] = np.where(failed, failure, returns.at(row))
            remaining[part] = np.where(failed, 1, abs(terminal) - t)
        for copy in self.operations:
            end = after if copy.at_next else row
            if copy.to_int64:
                copy.out[part] = copy.source[end]
            else:
                copy.out[part] = _stack(copy.source, end, first, copy.joined, copy.repeat_first)


class Windows(Gatherer):
    """Fills the windows of L steps that end at the transitions: reward, mask, returns, terminal float32 [B, L], timesteps int64 [B, L],
    index int64 [B] (row of the last step) and the columns added. Steps before the episode are zeros.
    """

    def __init__(
        self,
        table: np.ndarray,
        guide: np.ndarray,
        shift: int,
        reward: np.ndarray,
        returns: Returns,
        reward_out: np.ndarray,
        mask_out: np.ndarray,
        returns_out: np.ndarray,
        terminal_out: np.ndarray,
        timesteps_out: np.ndarray,
        index_out: np.ndarray,
    ) -> None:
        super().__init__(table, guide, shift, len(index_out))
        self.reward, self.returns, self.length = reward, returns, reward_out.shape[1]
        self.reward_out, self.mask_out, self.returns_out, self.terminal_out = reward_out, mask_out, returns_out, terminal_out
        self.timesteps_out, self.index_out = timesteps_out, index_out

    def add_copy(self, source: np.ndarray, out: np.ndarray, count: int, repeat_first: bool) -> None:
        """Fill ``out`` uint8 [B, L * count * row bytes]: at each step the ``count`` rows that end there. Rows before the episode as in
        Transitions.
        """
        self.operations.append(_Copy(source, out, count, False, repeat_first, False))

    def add_int64(self, source: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` int64 [B, L * width] from ``source`` [rows, width] of any integer dtype."""
        self.operations.append(_Copy(source, out, 1, False, False, True))

    def _fill(self, numbers: np.ndarray, part: slice) -> None:
        episode, end = self._find(numbers)
        t = end[:, None] + np.arange(1 - self.length, 1)  # [B, L]
        first, terminal = self.table[episode, 1, None], self.table[episode, 3, None]
        real = t >= 0
        rows = first + np.maximum(t, 0)
        self.mask_out[part] = real
        self.timesteps_out[part] = np.where(real, t + 1, 0)
        self.terminal_out[part] = real & (t + 1 == terminal)
        self.reward_out[part] = np.where(real, self.reward[rows], 0)
        self.returns_out[part] = np.where(real, self.returns.at(rows), 0)
        self.index_out[part] = rows[:, -1]
        for copy in self.operations:
            if copy.to_int64:
                values = copy.source[rows]
            else:
                firsts = np.broadcast_to(first, rows.shape).reshape(-1)
                values = _stack(copy.source, rows.reshape(-1), firsts, copy.joined, copy.repeat_first)
                values = values.reshape(*rows.shape, -1)
            values[~real] = 0
            copy.out[part] = values.reshape(len(numbers), -1)


def _stack(source: np.ndarray, end: np.ndarray, first: np.ndarray, count: int, repeat_first: bool) -> np.ndarray:
    """uint8 [n, count * width]: the ``count`` rows that end at ``end``; those before ``first`` are zeros, or the row ``first``."""
    width = source.shape[1]
    out = np.empty((len(end), count * width), np.uint8)
    for k in range(count):
        at = end - (count - 1 - k)
        rows = source[np.maximum(at, first)]
        if not repeat_first:
            rows[at < first] = 0
        out[:, k * width : (k + 1) * width] = rows
    return out


# --- Priorities -----------------------------------------------------------------------------------------------------------------

WIDE = 8  # children of a node: a cache line of float64


def tree_levels(count: int) -> list[int]:
    """Lengths of the levels of the sum tree, leaves first; each is a multiple of WIDE but the root's, which is 1."""
    levels = [-(-count // WIDE) * WIDE]
    while levels[-1] > WIDE:
        levels.append(-(-(levels[-1] // WIDE) // WIDE) * WIDE)
    return [*levels, 1]


class SumTree:
    """Priorities (raised to alpha) as the leaves of a tree of sums, so that drawing and changing cost its height.

    nodes float64 [sum(tree_levels(count))], zeros: the levels one after the other, leaves first.
    """

    def __init__(self, nodes: np.ndarray, count: int) -> None:
        self.count = count
        self.levels: list[np.ndarray] = []
        for length in tree_levels(count):
            self.levels.append(nodes[:length])
            nodes = nodes[length:]

    def total(self) -> float:
        return float(self.levels[-1][0])

    def build(self) -> None:
        """Sum up the leaves after they were set from outside."""
        for below, above in zip(self.levels, self.levels[1:], strict=False):
            self._sums(below, above, np.arange(len(below) // WIDE))

    def sample(self, seed: int, step: int, stream: int, beta: float, numbers: np.ndarray, weights: np.ndarray) -> None:
        """Draw one leaf of each of n equal shares of the total (Schaul et al. 2016, "Prioritized experience replay"), the place in it from
        53 bits. Weights: (least priority drawn / priority)^beta, float32.
        """
        n = len(numbers)
        place = np.empty(n, np.int64)
        draw(seed, step, stream, 1 << 53, place)
        value = (np.arange(n) + place * 2.0**-53) * (self.levels[-1][0] / n)
        node = np.zeros(n, np.int64)
        for level in self.levels[-2::-1]:
            node = np.minimum(node, len(level) // WIDE - 1)  # rounding may lead past the last node
            before, chosen, sums = np.zeros(n), np.zeros(n, np.int64), np.zeros(n)
            for child in range(WIDE - 1):
                sums = sums + level[node * WIDE + child]
                over = value >= sums
                chosen += over
                before = np.where(over, sums, before)
            value = value - before
            node = node * WIDE + chosen
        numbers[:] = np.minimum(node, self.count - 1)
        drawn = self.levels[0][numbers]
        weights[:] = (drawn.min() / drawn) ** beta

    def update(self, numbers: np.ndarray, priorities: np.ndarray, alpha: float, eps: float) -> float:
        """Set leaves to (priority + eps)^alpha; of a number given twice the last counts. Returns the highest priority given."""
        for number, leaf in zip(numbers, (priorities + eps) ** alpha, strict=True):
            self.levels[0][number] = leaf
        nodes = numbers
        for below, above in zip(self.levels, self.levels[1:], strict=False):
            nodes = nodes // WIDE
            self._sums(below, above, nodes)
        return float(priorities.max())

    @staticmethod
    def _sums(below: np.ndarray, above: np.ndarray, nodes: np.ndarray) -> None:
        children = below.reshape(-1, WIDE)[nodes]
        sums = children[:, 0].copy()
        for child in range(1, WIDE):
            sums += children[:, child]
        above[nodes] = sums
