"""The kernels in NumPy and zlib: checksums, and a buffer that checks, checksums and gathers the rows of episodes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np


def crc32(data: Any, value: int = 0, portable: bool = False) -> int:
    """Return the CRC-32 (zlib) of contiguous bytes, continued from ``value``. portable: use no processor-specific instructions."""
    return zlib.crc32(data, value)


def crc32_rows(rows: np.ndarray, width: int, out: np.ndarray) -> None:
    """Fill ``out`` uint32 [n] with the CRC-32 (zlib) of the first ``width`` bytes of each row of uint8 [n, >= width]."""
    for i, row in enumerate(rows):
        out[i] = zlib.crc32(row[:width])


class RowBuffer:
    """Checks the rows of episodes and gathers them for the columns of a store.

    columns: for each column its buffer uint8 [capacity, row bytes], its dtype, and the lowest and highest allowed number (an array of two
    of that dtype), or None to check nothing.
    """

    def __init__(self, columns: list[tuple[np.ndarray, np.dtype, np.ndarray | None]]) -> None:
        self.columns = columns
        self.capacity = len(columns[0][0])

    def take(self, arrays: tuple[np.ndarray, ...], rows: int, at: int, check: bool) -> int:
        """Copy an episode's columns (C-contiguous arrays of at most ``rows`` rows each) to the rows from ``at`` on of the buffers.

        A missing last row becomes zeros. at = -1: copy nothing. check: refuse numbers beyond the bounds, and NaN.

        Returns the checksum over all columns, one after the other; or -1 - k if column k is refused. The buffers' rows from ``at`` on are
        then undefined.
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
