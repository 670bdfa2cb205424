"""The kernels in NumPy and zlib: checksums, and the rows of an episode checked, summed up and gathered."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np


def crc32(data: Any, value: int = 0, portable: bool = False) -> int:
    """CRC-32 (zlib) of contiguous bytes, carried on from ``value``. portable: without instructions that not every processor has."""
    return zlib.crc32(data, value)


def crc32_rows(rows: np.ndarray, width: int, out: np.ndarray) -> None:
    """CRC-32 (zlib) of the first ``width`` bytes of each row of uint8 [n, >= width]."""
    for i, row in enumerate(rows):
        out[i] = zlib.crc32(row[:width])


class RowBuffer:
    """Takes the rows of episodes, checked, on their way into the columns of a store.

    columns: per column its buffer uint8 [capacity, row bytes], its dtype, and the least and the highest number allowed (an array of two,
    of that dtype) or None where nothing is checked.
    """

    def __init__(self, columns: list[tuple[np.ndarray, np.dtype, np.ndarray | None]]) -> None:
        self.columns = columns
        self.capacity = len(columns[0][0])

    def take(self, arrays: tuple[np.ndarray, ...], rows: int, at: int, check: bool) -> int:
        """Put an episode's columns, C-contiguous arrays of at most ``rows`` rows each, into the rows at, at + 1, ... of the buffers; a
        missing last row as zeros. at = -1: into no buffer. check: refuse numbers beyond the bounds, and NaN.

        Returns the checksum over all columns, one after the other; or -1 - k where column k is refused: the buffers then hold anything
        in the rows from ``at`` on.
        """
        if len(arrays) != len(self.columns) or rows < 0 or (at >= 0 and rows > self.capacity - at):
            raise ValueError("the rows do not fit the buffers")
        value = 0
        for k, (array, (buffer, _, bounds)) in enumerate(zip(arrays, self.columns, strict=True)):
            missing = rows * buffer.shape[1] - array.nbytes
            if missing < 0 or array.nbytes % buffer.shape[1]:
                raise ValueError("an array has too many rows, or rows of another size")
            if check and bounds is not None and array.size and not (array.min() >= bounds[0] and array.max() <= bounds[1]):
                return -1 - k
            value = zlib.crc32(bytes(missing), zlib.crc32(array.data, value))
            if at >= 0:
                buffer[at : at + rows].reshape(-1)[: array.nbytes] = array.reshape(-1).view(np.uint8)
                buffer[at : at + rows].reshape(-1)[array.nbytes :] = 0
        return value
