"""Columns of a source: named arrays, read in slices of rows from any container, with errors that name file, key and row."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput
from offrld.importers.bad_data import BadRow, Damaged

#: Rows are read in blocks of about this size so that memory does not grow with the file.
BLOCK_BYTES = 8 << 20

#: Largest number of rows per block. With this many small rows, Python's work per block is already negligible.
BLOCK_ROWS = 1 << 16

#: Largest row and largest episode. Both are held in memory whole, and a damaged or hostile header can declare any size.
MAX_ROW_BYTES, MAX_EPISODE_BYTES = 256 << 20, 2 << 30


@dataclass(frozen=True)
class Column:
    """Rows of one array.

    Attributes:
        file: base name of the file, for messages.
        key: name of the array in it, for messages.
        data: anything with ``shape``, ``dtype`` and slices of rows: an array, an ``h5py.Dataset``, a member of an archive.
    """

    file: str
    key: str
    data: Any

    def __post_init__(self) -> None:
        if len(self.data.shape) == 0:
            raise InvalidInput(f"{self.file}: {self.key!r} is a single value, not an array of steps", hint="pass one row per step")
        if np.dtype(self.data.dtype).kind not in "biuf":
            raise InvalidInput(
                f"{self.file}: {self.key!r} has dtype {self.data.dtype}, which holds no plain numbers",
                hint="store it as an array of floats, integers or booleans; Python objects are never read",
            )
        if self.row_bytes > MAX_ROW_BYTES:
            raise InvalidInput(
                f"{self.file}: one row of {self.key!r} has the shape {self.shape}, which takes {self.row_bytes:,} bytes",
                hint=f"a step may take {MAX_ROW_BYTES:,} bytes per array; the header may be damaged",
            )

    # Cached because every episode needs these and HDF5 would compute them each time.
    @cached_property
    def rows(self) -> int:
        return int(self.data.shape[0])

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(int(n) for n in self.data.shape[1:])

    @cached_property
    def dtype(self) -> np.dtype:
        """Dtype in native byte order. Long double becomes float64, because the store cannot hold it."""
        dtype = np.dtype(self.data.dtype).newbyteorder("=")
        return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype

    @cached_property
    def row_bytes(self) -> int:
        return max(1, self.dtype.itemsize * math.prod(self.shape))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``start:stop`` as ``[stop - start, ...]``. Raises `InvalidInput` if the file is damaged there."""
        try:
            block = np.asarray(self.data[start:stop])
        except (OSError, EOFError, RuntimeError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            kind = Damaged if "CRC" in str(error) else InvalidInput  # the checksum covers the whole stream: earlier rows may be wrong too
            raise kind(
                f"{self.file}: {self.key!r} cannot be read at rows {start} to {stop - 1}: {error}",
                hint="the file is damaged or cut short; copy or download it again",
            ) from None
        if len(block) != stop - start:
            raise InvalidInput(
                f"{self.file}: {self.key!r} ends at row {start + len(block)} of {self.rows}", hint="the file is cut short; copy it again"
            )
        converted = block.astype(self.dtype, copy=False)
        if block.dtype.kind == "f" and block.dtype.itemsize > 8:
            self._refuse_changed(block, converted, start)
        return converted

    def _refuse_changed(self, original: np.ndarray, converted: np.ndarray, start: int) -> None:
        """Raise `BadRow` for the first value that the dtype of ``converted`` cannot represent."""
        changed = (converted.astype(original.dtype) != original) & ~np.isnan(original)
        if changed.any():
            at = tuple(int(i) for i in np.argwhere(changed)[0])
            raise BadRow(
                f"{self.file}: {self.where(start + at[0], at[1:])} is {original[at]!s}, which no {converted.dtype} holds",
                self.number(start + at[0]),
                hint=f"convert the array explicitly: astype({converted.dtype.name!r})",
            )

    def read_rewards(self, block: np.ndarray, start: int) -> np.ndarray:
        """Return a block of this column as rewards ``[N]`` of `reward_dtype`.

        Raises `BadRow` for an integer that this dtype cannot represent.
        """
        rewards = block.reshape(len(block)).astype(reward_dtype(self), copy=False)
        if block.dtype.kind in "iu" and block.dtype.itemsize == 8:
            self._refuse_changed(block.reshape(len(block)), rewards, start)
        return rewards

    def read_finite(self, start: int, stop: int) -> np.ndarray:
        """Read rows as `read` does. Raises `BadRow` for a value that is not finite."""
        block = self.read(start, stop)
        self.check_finite(block, start)
        return block

    def check_finite(self, block: np.ndarray, start: int) -> None:
        """Raise `BadRow` that names the first NaN or infinite value of ``block``, whose first row is row ``start``."""
        if block.dtype.kind != "f":
            return
        with np.errstate(over="ignore", invalid="ignore"):  # a sum shows NaN and infinity at a third of the cost of testing each value
            if np.isfinite(np.add.reduce(block, None)) or np.isfinite(block).all():
                return
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(block))[0])
        raise BadRow(
            f"{self.file}: {self.where(start + first[0], first[1:])} is {float(block[first])}",
            self.number(start + first[0]),
            hint="remove or repair that episode: NaN and infinite values cannot be learned from",
        )

    def read_flags(self, start: int, stop: int) -> np.ndarray:
        """Read flags as booleans ``[stop - start]``. Raises `BadRow` for a number other than 0 and 1."""
        check_scalar_rows(self)
        block = self.read(start, stop)
        flags = block.reshape(len(block))
        if flags.dtype.kind == "b":
            return flags
        wrong = np.flatnonzero((flags != 0) & (flags != 1))
        if len(wrong):
            raise BadRow(
                f"{self.file}: {self.where(start + int(wrong[0]))} is {flags[wrong[0]]}",
                self.number(start + int(wrong[0])),
                hint=f"{self.key!r} holds flags: 0 or 1 per step",
            )
        return flags.astype(bool)

    def check_whole(self, start: int, stop: int) -> None:
        """Raise `BadRow` for the first incomplete row. Does nothing here: the rows of an array are always complete."""

    def number(self, row: int) -> int:
        """Return the number that messages give a row."""
        return row

    def where(self, row: int, index: tuple[int, ...] = ()) -> str:
        """Return the name that messages give a value: ``key[row, i, j]``."""
        return f"{self.key}[{', '.join(str(i) for i in (row, *index))}]"


class Rows:
    """Rows of an array from row ``first`` on (``rows`` of them, or all), as the data of a column."""

    def __init__(self, data: Any, first: int = 0, rows: int | None = None) -> None:
        self._data, self._first = data, first
        self.shape, self.dtype = (int(data.shape[0]) - first if rows is None else rows, *data.shape[1:]), data.dtype

    def __getitem__(self, rows: slice) -> Any:
        return self._data[rows.start + self._first : rows.stop + self._first]


def check_scalar_rows(column: Column) -> None:
    """Raise `InvalidInput` unless a column has one value per step, as rewards and flags do: ``[N]`` or ``[N, 1]``."""
    if column.shape not in ((), (1,)):
        raise InvalidInput(
            f"{column.file}: {column.key!r} has shape {(column.rows, *column.shape)}", hint="it must hold one value per step: [N] or [N, 1]"
        )


def same_length(first: Column, *others: Column) -> None:
    """Raise `InvalidInput` if columns differ in their number of rows; it names two of them."""
    for other in others:
        if other.rows != first.rows:
            raise InvalidInput(
                f"{first.file}: {first.key!r} has {first.rows} rows and {other.key!r} has {other.rows}",
                hint="all arrays need one row per step; the file may be cut short",
            )


def reward_dtype(column: Column) -> str:
    """Return the dtype of stored rewards: float32 and float64 stay, other dtypes become the smaller of the two that holds them exactly."""
    dtype = column.dtype
    if dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        return dtype.name
    return "float32" if dtype.itemsize <= 2 else "float64"


def block_rows(*columns: Column) -> int:
    """Return the number of rows per block for columns that are read side by side."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(column.row_bytes for column in columns)))


def blocks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive blocks."""
    for start in range(0, rows, size):
        yield start, min(rows, start + size)


class BlockReader:
    """Reads slices of one column in ascending order, of any length, from blocks that are read once each.

    finite: check every block for NaN and infinite values, and raise if a block is damaged. Otherwise only the requested rows of a damaged
    block are read, because the damage may lie beside them.
    """

    def __init__(self, column: Column, *, finite: bool = True) -> None:
        self.column, self._finite = column, finite
        self._size = block_rows(column)
        self._start = 0  # first row of the block in memory
        self._block = np.empty((0, *column.shape), column.dtype)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start:stop``, as a view if one block holds them all. Raises `InvalidInput`."""
        if (stop - start) * self.column.row_bytes > MAX_EPISODE_BYTES:
            raise BadRow(
                f"{self.column.file}: rows {self.column.number(start)} to {self.column.number(stop - 1)} of {self.column.key!r} are one "
                f"episode, of {(stop - start) * self.column.row_bytes:,} bytes",
                self.column.number(start),
                hint=f"an episode may take {MAX_EPISODE_BYTES:,} bytes per array; mark its ends, or cut it",
            )
        try:
            return self._rows(start, stop)
        except InvalidInput:
            if self._finite:
                raise
            return self.column.read(start, stop)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        if self._start <= start and stop <= self._start + len(self._block):
            return self._block[start - self._start : stop - self._start]
        rows = np.empty((stop - start, *self.column.shape), self.column.dtype)
        done = 0
        while done < len(rows):
            at = start + done
            if not self._start <= at < self._start + len(self._block):
                first = at - at % self._size
                read = self.column.read_finite if self._finite else self.column.read
                block = read(first, min(self.column.rows, first + self._size))
                self._start, self._block = first, block
            part = self._block[at - self._start :][: len(rows) - done]
            rows[done : done + len(part)] = part
            done += len(part)
        return rows
