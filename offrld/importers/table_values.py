"""The values of a table: cells as numbers, spooled to a temporary file per field and read as columns."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from offrl_store.disk import disk_errors
from offrld.importers import arrow
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column
from offrld.importers.source import BadEpisodes
from offrld.importers.spaces import EXACT
from offrld.importers.table_map import FLAGS

TRUE, FALSE = ("1", "true", "1.0"), ("0", "false", "0.0")
FIRST_ROW = 2  # of the data: the header is row 1


@dataclass(frozen=True)
class TableColumn(Column):
    """A column of rows that come from one or several columns of a table.

    Attributes:
        names: names of the table's columns.
        order: the row of the table at each place; None if the order is that of the table.
        flaws: row of the table -> name of the column with a flaw, and what is wrong with it.
    """

    names: tuple[str, ...] = ()
    order: np.ndarray | None = None
    flaws: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    def _row(self, row: int) -> int:
        return row if self.order is None else int(self.order[row])

    def check_whole(self, start: int, stop: int) -> None:
        if not self.flaws:
            return
        for row in range(start, stop):
            if (flaw := self.flaws.get(self._row(row))) is not None:
                raise BadRow(
                    f"{self.file}: row {self.number(row)}, column {flaw[0]!r} {flaw[1]}",
                    self.number(row),
                    hint="fill the gap, or leave such episodes out with --skip-bad",
                )

    def check_finite(self, block: np.ndarray, start: int) -> None:
        self.check_whole(start, start + len(block))
        super().check_finite(block, start)

    def number(self, row: int) -> int:
        return self._row(row) + FIRST_ROW

    def where(self, row: int, index: tuple[int, ...] = ()) -> str:
        if len(self.names) > 1 or not index or self.shape == (1,):
            place = index[0] if index and len(self.names) > 1 else 0
            return f"row {self.number(row)}, column {self.names[place]!r}"
        return f"row {self.number(row)}, column {self.names[0]!r}[{', '.join(str(i) for i in index)}]"


@dataclass
class Spool:
    """The values of one field while the table is read: rows in an unnamed temporary file."""

    names: list[str]
    file: IO[bytes] = field(default_factory=lambda: tempfile.TemporaryFile(prefix="offrl-table-"))  # noqa: SIM115  closed with the object
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    whole: bool = True  # all values are written as whole numbers in the text
    wide: tuple[int, str, str] | None = None  # row, column and text of the first value that float32 does not hold as written
    flaws: dict[int, tuple[str, str]] = field(default_factory=dict)
    rows: int = 0

    def add(self, block: np.ndarray, file: str) -> None:
        if self.dtype is None:
            self.dtype, self.shape = block.dtype, block.shape[1:]
        if block.shape[1:] != self.shape:
            raise BadRow(
                f"{file}: row {self.rows + FIRST_ROW}, column {self.names[0]!r} has {block.shape[1:]} values, "
                f"the rows before it {self.shape}",
                self.rows + FIRST_ROW,
                hint="all rows need the same shape",
            )
        with disk_errors(Path(tempfile.gettempdir())):
            self.file.write(np.ascontiguousarray(block, self.dtype).data.cast("B"))
        self.rows += len(block)

    def column(self, file: str, dtype: str | None = None, order: np.ndarray | None = None) -> TableColumn:
        with disk_errors(Path(tempfile.gettempdir())):
            self.file.flush()
        shape = (self.rows, *self.shape)
        file_data: Any = self.file  # NumPy takes any file object with a descriptor
        data: Any = np.memmap(file_data, self.dtype or np.dtype(float), "r", shape=shape) if self.rows else np.empty(shape, self.dtype)
        if order is not None:
            data = Ordered(data, order)
        return TableColumn(file, self.names[0], Converted(data, np.dtype(dtype)) if dtype else data, tuple(self.names), order, self.flaws)


class Converted:
    """An array in another dtype, as the data of a column."""

    def __init__(self, data: Any, dtype: np.dtype) -> None:
        self._data, self.shape, self.dtype = data, data.shape, dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN becomes the lowest integer, which no choice can be
            return self._data[rows].astype(self.dtype)


class Ordered:
    """The rows of an array in another order, as the data of a column."""

    def __init__(self, data: Any, order: np.ndarray) -> None:
        self._data, self._order, self.shape, self.dtype = data, order, data.shape, data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._data[self._order[rows]]


def kept_values(array: Any, file: str, name: str, row: int, spool: Spool, key: str, bad: BadEpisodes) -> np.ndarray:
    """Return values of Parquet unchanged. A missing value is an error, or a flaw of its episode if bad episodes are left out."""
    flaws: dict[int, str] | None = {} if key.split(".")[0] == "next_observation" or (bad.skip and key not in FLAGS) else None
    size = spool.shape[0] if spool.dtype is not None and spool.shape and len(spool.names) == 1 else None
    try:
        values = arrow.to_numpy(array, file, name, row + FIRST_ROW, flaws, size)
    except BadRow as error:
        why = error.message.partition("] ")[2]
        raise BadRow(f"{file}: row {error.row}, column {name!r} {why}", error.row, hint=error.hint) from None
    for number, why in (flaws or {}).items():
        spool.flaws.setdefault(number - FIRST_ROW, (name, why))
    return values


def parsed_numbers(array: Any, file: str, name: str, row: int, spool: Spool, key: str, bad: BadEpisodes, decimal: str) -> np.ndarray:
    """Parse texts of CSV as numbers or flags. An invalid text is an error, or a flaw of its episode if bad episodes are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(array)
    if key in FLAGS:
        lower = np.asarray(pc.utf8_lower(texts).to_pylist(), object)
        flags, known = np.isin(lower, TRUE), np.isin(lower, TRUE + FALSE)
        if not known.all():
            _refuse(file, name, row, texts, int(np.flatnonzero(~known)[0]), "is not a flag", "flags are 0 or 1, true or false")
        return flags
    if decimal == ",":
        dots = pc.match_substring(texts, ".")
        if pc.any(dots).as_py():
            at = int(np.flatnonzero(dots.to_numpy(zero_copy_only=False))[0])
            _refuse(file, name, row, texts, at, "has a dot beside decimal commas", "write numbers without thousands separators")
        texts = pc.replace_substring(texts, ",", ".")
    if key == "action" and spool.whole:
        others = texts.filter(pc.invert(pc.match_substring_regex(texts, r"^[+-]?[0-9]+$")))
        spool.whole = not any(_number(text) is not None for text in others.to_pylist())  # text that is not a number does not count
    try:
        values = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        values = np.full(len(texts), np.nan)
        for at, text in enumerate(texts.to_pylist()):
            number = _number(text)
            if number is not None:
                values[at] = number
            elif key.split(".")[0] == "next_observation" and not text:
                spool.flaws.setdefault(row + at, (name, "is empty"))
            elif bad.skip:
                spool.flaws.setdefault(row + at, (name, f"is {text!r:.60}, which is not a number"))
            else:
                hint = "correct the table, or leave such episodes out with --skip-bad"
                if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
                    hint = "decimal commas: --option decimal=, reads them; thousands separators are not read"
                _refuse(file, name, row, texts, at, "is not a number", hint)
    _check_exact(values, texts, file, name, row, spool)
    return values


def _check_exact(values: np.ndarray, texts: Any, file: str, name: str, row: int, spool: Spool) -> None:
    """Raise `BadRow` for a whole number or a tiny one that no float holds; record the first value that float32 does not hold as written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    zeros = np.flatnonzero(values == 0)
    if len(zeros):
        lost = pc.match_substring_regex(texts.take(pa.array(zeros)), "^[^eE]*[1-9]")
        if pc.any(lost).as_py():
            at = int(zeros[np.flatnonzero(lost.to_numpy(zero_copy_only=False))[0]])
            _refuse(file, name, row, texts, at, "is closer to zero than any float", "write 0, or scale the column")
    large = np.flatnonzero(np.abs(values) >= EXACT)
    for at in large.tolist():
        text = texts[at].as_py()
        # A text of more digits than Python converts is infinite as a float, or begins with zeros.
        if re.fullmatch(r"[+-]?[0-9]+", text) and (np.isinf(values[at]) or int(text.lstrip("+-0")) != abs(int(values[at]))):
            _refuse(file, name, row, texts, at, "is a whole number that no float holds exactly", "keep it in Parquet, as int64")
    if spool.wide is None:
        with np.errstate(all="ignore"):
            narrow = values.astype(np.float32)
            differ = np.flatnonzero((narrow != values) & np.isfinite(values))
            some = np.abs(values[differ])
            digits = some / 10.0 ** (np.floor(np.log10(some)) - 6)  # seven digits before the point
            wide = differ[~np.isfinite(narrow[differ]) | (narrow[differ] == 0) | (np.abs(digits - np.rint(digits)) > 1e-7)]
        if len(wide):
            spool.wide = (row + int(wide[0]) + FIRST_ROW, name, texts[int(wide[0])].as_py())


def _number(text: str) -> float | None:
    if "_" in text:  # Python accepts it as a thousands separator
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _refuse(file: str, name: str, row: int, texts: Any, at: int, why: str, hint: str) -> None:
    raise BadRow(f"{file}: row {row + at + FIRST_ROW}, column {name!r}: {texts[at].as_py()!r:.60} {why}", row + at + FIRST_ROW, hint=hint)
