"""Compare an exported graph with its network: both run on the same observations.

Some observations are rows of the data. Others are random, within the data's range and within a range `BEYOND` times as wide around the
same middle, as far as the dtype allows. Batches of several sizes show that the batch axis is really open. Differences are relative to the
size of the values (at least 1): a float32 action of 1000 N cannot agree to 1e-4 N. For actions in [-1, 1] that is the plain difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-4
BATCH_SIZES = (1, 7, 64)
WINDOW_BATCH_SIZES = (1, 9)  # for policies that remember: each of their rows is a window of steps
BEYOND = 3.0
_SEED = 20240229  # every export of a job is checked on the same inputs

Batches = Sequence[np.ndarray]  # one output, an array for each batch of the check


@dataclass(frozen=True)
class ObservationSpec:
    """One input: dtype, shape without the batch axis, the data's range per element (None: the dtype's), and rows of the data."""

    dtype: np.dtype
    shape: tuple[int, ...]
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    rows: np.ndarray | None = None

    @classmethod
    def of(cls, value: Any, samples: Any = None) -> ObservationSpec:
        """Make one from ``(dtype, shape)`` or a store `Field`; ``samples`` ``[N, ...]`` of the data, if there are any, set the range."""
        dtype, shape = value if isinstance(value, tuple) else (value.dtype, value.shape)
        low, high = (None, None) if isinstance(value, tuple) else (value.low, value.high)
        if samples is not None and len(samples):
            low, high = np.min(samples, axis=0), np.max(samples, axis=0)
        shape = tuple(int(size) for size in shape)
        if low is None or high is None or not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
            return cls(np.dtype(dtype), shape)
        rows = None if samples is None or not len(samples) else np.asarray(samples, dtype)
        return cls(np.dtype(dtype), shape, np.asarray(low), np.asarray(high), rows)

    def draw(self, rng: np.random.Generator, batch: int, width: float, picks: np.ndarray | None = None) -> np.ndarray:
        """Draw observations ``[batch, *shape]``, uniform over the range widened by ``width``; integers never leave their range.

        The first ones are the data's rows ``picks`` (modulo their number), if there are any.
        """
        drawn = self._drawn(rng, batch, width)
        if picks is not None and self.rows is not None:
            drawn[: len(picks)] = self.rows[picks % len(self.rows)]
        return drawn

    def _drawn(self, rng: np.random.Generator, batch: int, width: float) -> np.ndarray:
        shape = (batch, *self.shape)
        if self.dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        if self.dtype.kind in "iu":
            # Integers are pixels or indices: one beyond the range may not be a valid input (an index into a table).
            low, high = (0, 255 if self.dtype == np.uint8 else 1) if self.low is None else (self.low, self.high)
            bounds = (np.broadcast_to(np.asarray(bound, self.dtype), shape) for bound in (low, high))
            return np.asarray(rng.integers(*bounds, dtype=self.dtype, endpoint=True))
        if self.low is None:
            return (rng.standard_normal(shape) * width).astype(self.dtype)
        low, high = np.asarray(self.low, np.float64) / 2.0, np.asarray(self.high, np.float64) / 2.0  # halves: no sum overflows
        limit = float(np.finfo(self.dtype).max)
        with np.errstate(over="ignore"):
            drawn = (high + low) + np.maximum(high - low, 1e-3) * width * rng.uniform(-1, 1, shape)
        return np.clip(drawn, -limit, limit).astype(self.dtype)


def observations(specs: Mapping[str, ObservationSpec], batch_sizes: tuple[int, ...] = BATCH_SIZES) -> list[dict[str, np.ndarray]]:
    """Return the batches of the check: every batch size within the data's range, then every batch size beyond it."""
    rng = np.random.default_rng(_SEED)
    widths = (1.0, BEYOND) if any(spec.dtype.kind == "f" for spec in specs.values()) else (1.0,)
    batches = []
    for width in widths:
        for batch in batch_sizes:
            picks = rng.integers(0, 1 << 31, (batch + 1) // 2) if width == 1.0 else None  # the same rows of every field
            batches.append({name: spec.draw(rng, batch, width, picks) for name, spec in specs.items()})
    return batches


def rounded_difference(unrounded: Batches, exported: Batches) -> float:
    """Compare actions that are rounded to whole numbers with torch's actions before rounding.

    Rounding moves a number by at most a half, and one close to a half may go either way; only the rest counts, relative as in
    `largest_difference`. Infinity if an exported action is not a whole number.
    """
    expected, actual = _joined(unrounded), _joined(exported)
    if expected.shape != actual.shape or not np.array_equal(actual, np.rint(actual)):
        return float("inf")
    scale = np.maximum(1.0, np.abs(expected).max(axis=0))
    return float((np.maximum(np.abs(expected - actual) - 0.5, 0.0) / scale).max())


def largest_difference(actions: Batches, exported: Batches) -> float:
    """Compare continuous actions ``[B, A]``, each dimension relative to its largest action (at least 1); infinity if one is NaN."""
    return _relative_difference(actions, exported, axis=0)


def best_difference(actions: Batches, exported: Batches, candidates: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Compare the actions of policies that take the best of several ``candidates``: actions ``[K, B, A]`` and scores ``[K, B]``.

    Another choice than torch's counts by how far its score falls short of the best, relative to the largest of the row (at least 1).
    """
    plain = largest_difference(actions, exported)
    if not np.isfinite(plain):
        return plain
    scale = np.maximum(1.0, np.abs(np.concatenate(actions)).max(axis=0))
    worst = 0.0
    for action, (choices, scores) in zip(exported, candidates, strict=True):
        apart = (np.abs(choices.astype(np.float64) - action) / scale).max(axis=-1)  # [K, B]
        short = (scores.max(axis=0) - scores.astype(np.float64)) / np.maximum(1.0, np.abs(scores).max(axis=0))
        worst = max(worst, float(np.maximum(apart, short).min(axis=0).max()))
    return min(plain, worst)


def score_difference(scores: Batches, exported: Batches) -> float:
    """Compare the scores ``[B, N]`` of discrete actions, each row relative to its largest score (at least 1); infinity if one is NaN."""
    return _relative_difference(scores, exported, axis=1)


def choice_difference(actions: Batches, exported: Batches, scores: Batches | None) -> float:
    """Compare discrete actions ``[B]``: 0 if all are equal.

    Another choice counts by how far its score (torch's) falls short; without scores it counts as infinity.
    """
    expected, actual = np.concatenate(actions), np.concatenate(exported)
    if expected.shape != actual.shape or actual.dtype != np.int64:
        return float("inf")
    other = np.flatnonzero(expected != actual)
    if not len(other):
        return 0.0
    if scores is None:
        return float("inf")
    table = np.concatenate(scores).astype(np.float64)
    if actual[other].min() < 0 or actual[other].max() >= table.shape[1]:
        return float("inf")
    gap = np.abs(table[other, expected[other]] - table[other, actual[other]])
    return float((gap / np.maximum(1.0, np.abs(table[other]).max(axis=1))).max())


def context_difference(context: Batches, exported: Batches, *, up_to_last: bool) -> float:
    """Compare a tensor ``[B, L, ...]`` of the context, relative to its largest element (at least 1).

    Args:
        up_to_last: leave the newest step out.
    """
    expected, actual = np.concatenate(context), np.concatenate(exported)
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if up_to_last:
        expected, actual = expected[:, :-1], actual[:, :-1]
    if not expected.size:
        return 0.0
    scale = max(1.0, float(np.abs(expected.astype(np.float64)).max()))
    difference = float(np.abs(expected.astype(np.float64) - actual).max()) / scale
    return difference if np.isfinite(difference) else float("inf")


def _joined(batches: Batches) -> np.ndarray:
    """Return the rows of all batches as one float64 array."""
    return np.concatenate(batches).astype(np.float64)


def _relative_difference(batches: Batches, exported: Batches, axis: int) -> float:
    """Return the largest difference relative to the largest expected value along ``axis`` (at least 1); infinity if one is not finite."""
    expected, actual = _joined(batches), _joined(exported)
    if expected.shape != actual.shape or not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return float("inf")
    scale = np.maximum(1.0, np.abs(expected).max(axis=axis, keepdims=True))
    return float((np.abs(expected - actual) / scale).max())
