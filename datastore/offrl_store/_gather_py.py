"""The kernels in NumPy: draw transitions or windows and gather their columns into the arrays of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from offrl_store._random_py import draw, permute
from offrl_store._returns_py import Returns


class _Copy(NamedTuple):
    """A column that a batch copies: rows of ``source`` into ``out``."""

    source: np.ndarray
    out: np.ndarray
    joined: int  # number of consecutive rows that are joined into one
    at_next: bool  # they end at the transition's next row instead of its own
    repeat_first: bool
    to_int64: bool


class Gatherer(ABC):
    """Draws transitions by number and fills the arrays of a batch with their data. One object per sampler.

    table: int64 [E+1, 4], for each episode the number of its first transition, its first row, its number of transitions, and T if it
    terminated, else -T; the last line holds the total. guide: int32, guide[u >> shift] is the episode of the first transition of that
    bucket. ``sample``, ``sample_order`` and ``gather`` fill the samples start .. start+count-1 of the batch, by default all.
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
        """Take the elements of an epoch's permutation from ``first`` on."""
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
        """Return the episode of each transition, and its time step in the episode."""
        episode = np.searchsorted(self.table[:-1, 0], numbers, side="right") - 1
        return episode, numbers - self.table[episode, 0]


class Transitions(Gatherer):
    """Fills reward, terminal, discount float32 [B], index int64 [B] and the added columns."""

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
        """Fill ``out`` uint8 [B, count * row bytes] with ``count`` rows of ``source`` uint8 [rows, row bytes].

        They end at the transition's row, or at its next one (``at_next``). Rows before the episode are zeros, or its first row
        (``repeat_first``).
        """
        self.operations.append(_Copy(source, out, count, at_next, repeat_first, False))

    def add_int64(self, source: np.ndarray, out: np.ndarray, at_next: bool) -> None:
        """Fill ``out`` int64 [B, width] from ``source`` [rows, width] of any integer dtype."""
        self.operations.append(_Copy(source, out, 1, at_next, False, True))

    def add_returns(self, returns: Returns, out: np.ndarray, remaining: np.ndarray, last: np.ndarray, failure: float) -> None:
        """Fill ``out`` float32 [B] with the returns of the transitions, and ``remaining`` int64 [B] with their numbers of rewards.

        last: int64 [E], time step of the last reward that counts; after it the return is ``failure``, of one reward.
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
    """Fills windows of L steps that end at the transitions. Steps before the episode are zeros.

    It fills reward, mask, returns, terminal float32 [B, L], timesteps int64 [B, L], index int64 [B] (row of the last step) and the added
    columns.
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
        """Fill ``out`` uint8 [B, L * count * row bytes]: at each step the ``count`` rows that end there.

        Rows before the episode are zeros, or its first row (``repeat_first``).
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
    """Return uint8 [n, count * width]: the ``count`` rows that end at ``end``. Rows before ``first`` are zeros, or the row ``first``."""
    width = source.shape[1]
    out = np.empty((len(end), count * width), np.uint8)
    for k in range(count):
        at = end - (count - 1 - k)
        rows = source[np.maximum(at, first)]
        if not repeat_first:
            rows[at < first] = 0
        out[:, k * width : (k + 1) * width] = rows
    return out
