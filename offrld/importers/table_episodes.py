"""The episodes of a table by their ids: their ends, and the order of their steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column
from offrld.importers.table_values import FIRST_ROW, TableColumn


def _same_number(value: Any) -> Any:
    """Return the id of a text: ``0.0`` is the episode ``0``, because a column with gaps is often written as floats in part of a table."""
    return re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", value) if isinstance(value, str) else value


class EpisodeIds:
    """Collects the ids of episodes; finds where they change and the order of their rows."""

    def __init__(self, file: str, names: list[str] | None, source: Mapping[str, str]) -> None:
        self._file, self._name = file, names[0] if names else None
        self._source = source
        self._numbers: dict[Any, int] = {}  # id -> its number, in order of first appearance
        self._codes: list[np.ndarray] = []
        self._row = 0
        self._all = np.empty(0, np.int32)

    def add(self, batch: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._name is None or not batch.num_rows:
            return
        array = batch.column(self._source[self._name])
        if pa.types.is_nested(array.type):
            hint = "an id is a number or text"
            raise InvalidInput(f"{self._file}: column {self._name!r} holds {array.type}, not ids of episodes", hint=hint)
        if pa.types.is_string(array.type):
            array = pc.utf8_trim_whitespace(array)
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        values = [_same_number(value) for value in array.dictionary.to_pylist()]
        empty = [value is None or value != value or (isinstance(value, str) and value.casefold() in ("", "nan")) for value in values]
        codes = np.asarray(array.indices.fill_null(len(values)))
        wrong = np.flatnonzero(np.array([*empty, True])[codes])
        if len(wrong):
            number = self._row + int(wrong[0]) + FIRST_ROW
            raise BadRow(
                f"{self._file}: row {number}, column {self._name!r} is empty", number, hint="every step needs the id of its episode"
            )
        used, first = np.unique(codes, return_index=True)
        numbers = np.zeros(len(values), np.int32)
        for code in used[np.argsort(first)].tolist():
            numbers[code] = self._numbers.setdefault(values[code], len(self._numbers))
        self._codes.append(numbers[codes])
        self._row += batch.num_rows

    def order(self, step: TableColumn | None, messages: list[str]) -> np.ndarray | None:
        """Return the order of rows in which episodes are contiguous and their steps increase; None if the table has that order.

        Raises `BadRow` if the rows of an id are not contiguous and there are no steps to sort them by, or if a step repeats.
        """
        self._all = np.concatenate(self._codes) if self._codes else self._all
        self._codes = []
        codes = self._all
        steps: np.ndarray | None = None
        if step is not None:
            steps = np.asarray(step.read(0, step.rows)).reshape(step.rows, -1)
            step.check_finite(steps, 0)
            if steps.shape[1] != 1:
                raise InvalidInput(f"{self._file}: column {step.names[0]!r} holds lists, not steps", hint="a step is one number")
            steps = steps[:, 0]
        if self._name is None:
            return None
        same = codes[1:] == codes[:-1]
        starts = np.flatnonzero(np.append(True, ~same))
        apart = len(starts) > len(self._numbers)
        back = None if steps is None else np.flatnonzero(same & (steps[1:] <= steps[:-1]))
        if not apart and (back is None or not len(back)):
            return None
        if step is None or steps is None:
            _, first_start = np.unique(codes[starts], return_index=True)
            at = int(np.delete(starts, first_start)[0])
            named = list(self._numbers)[int(codes[at])]
            raise BadRow(
                f"{self._file}: row {at + FIRST_ROW}, column {self._name!r}: the episode {named!r} appears again",
                at + FIRST_ROW,
                hint="sort the table by episode and step, or map the column that counts the steps: --map step=COLUMN",
            )
        order = np.lexsort((steps, codes))
        twice = np.flatnonzero((codes[order][1:] == codes[order][:-1]) & (steps[order][1:] == steps[order][:-1]))
        if len(twice):
            first, second = sorted(int(row) for row in order[twice[0] : twice[0] + 2])
            named = list(self._numbers)[int(codes[first])]
            both = f"rows {first + FIRST_ROW} and {second + FIRST_ROW}"
            raise BadRow(
                f"{self._file}: {both} are both step {steps[first]} of the episode {named!r}",
                second + FIRST_ROW,
                hint="give each episode an id of its own, and each of its steps a number",
            )
        why = "episodes are interleaved" if apart else "steps do not increase"
        messages.append(f"{why}: rows are sorted by {self._name!r} and {step.names[0]!r}")
        self._all = codes[order]
        return order

    def timeouts(self, flags: list[TableColumn], rows: int, order: np.ndarray | None) -> Column | None:
        """Join the flags of the table and the changes of the id to one column; None if there are neither."""
        if self._name is None and len(flags) <= 1:
            return flags[0] if flags else None
        joined = np.zeros(rows, bool)
        for column in flags:
            joined |= column.read_flags(0, rows)
        if self._name is not None:
            joined[np.flatnonzero(self._all[1:] != self._all[:-1])] = True
            joined[-1] = True
        return Column(self._file, self._name or flags[0].key, joined)
