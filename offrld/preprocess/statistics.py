"""Statistics over the rows of memory-mapped columns, in passes of blocks: memory stays flat whatever the length and the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from offrl.errors import InvalidInput

Blocks = Callable[[], Iterator[np.ndarray]]  # arrays [n, ...] one after the other; called once for each pass
_ELEMENTS = 1 << 20  # of a block: 8 MB where it becomes float64


def rows(column: np.ndarray, keep: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of the rows of a column for which ``keep`` is true."""
    length = block_rows(column)
    for start in range(0, len(keep), length):
        chosen = keep[start : start + length]
        if chosen.any():
            yield np.asarray(column[start : start + length])[chosen]


def block_rows(column: np.ndarray) -> int:
    """The number of rows of a column in a block."""
    return max(1, _ELEMENTS // max(1, int(np.prod(column.shape[1:], dtype=np.int64))))


def extremes(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each element, float64. Raises `InvalidInput` without rows, or if they are not finite."""
    low = high = None
    for block in blocks():
        least, most = block.min(axis=0), block.max(axis=0)
        low, high = (least, most) if low is None or high is None else (np.minimum(low, least), np.maximum(high, most))
    if low is None or high is None:
        raise _nothing()
    return _finite(np.asarray(low, np.float64)), _finite(np.asarray(high, np.float64))


def moments(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (of the population) of each element, float64, in two passes. Raises as `extremes`."""
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
            "the data has values that are not finite, or whose squares are beyond float64: no scaler can be fitted on them",
            hint="remove those episodes, or take min_max",
        )
    return values


def _nothing() -> InvalidInput:
    return InvalidInput("no transition to fit a scaler on", hint="hold out fewer episodes, or give the statistics by hand")
