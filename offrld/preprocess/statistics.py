"""Statistics over the rows of memory-mapped columns, computed block by block, so that memory use does not grow with the column."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from offrl.errors import InvalidInput

Blocks = Callable[[], Iterator[np.ndarray]]  # called once per pass; yields arrays [n, ...]
_ELEMENTS = 1 << 20  # per block: 8 MB as float64


def rows(column: np.ndarray, keep: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, in blocks, the rows of a column for which ``keep`` is true."""
    length = block_rows(column)
    for start in range(0, len(keep), length):
        chosen = keep[start : start + length]
        if chosen.any():
            yield np.asarray(column[start : start + length])[chosen]


def block_rows(column: np.ndarray) -> int:
    """Return the number of a column's rows in one block."""
    return max(1, _ELEMENTS // max(1, int(np.prod(column.shape[1:], dtype=np.int64))))


def extremes(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest value of each element, float64. Raise `InvalidInput` without rows, or for values not finite."""
    low = high = None
    for block in blocks():
        least, most = block.min(axis=0), block.max(axis=0)
        low, high = (least, most) if low is None or high is None else (np.minimum(low, least), np.maximum(high, most))
    if low is None or high is None:
        raise _nothing()
    return _finite(np.asarray(low, np.float64)), _finite(np.asarray(high, np.float64))


def moments(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and population standard deviation of each element, float64, in two passes. Raise as `extremes` does."""
    count, total = 0, np.zeros(())
    for block in blocks():
        count, total = count + len(block), total + block.sum(axis=0, dtype=np.float64)
    if count == 0:
        raise _nothing()
    mean = _finite(total / count)
    square = sum((np.square(block - mean)).sum(axis=0) for block in blocks())
    return mean, _finite(np.sqrt(square / count))


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InvalidInput(
            "the data has values that are not finite, or whose squares overflow float64: no scaler can be fitted",
            hint="remove those episodes, or use min_max",
        )
    return values


def _nothing() -> InvalidInput:
    return InvalidInput("no transition to fit a scaler on", hint="hold out fewer episodes, or set the statistics yourself")
