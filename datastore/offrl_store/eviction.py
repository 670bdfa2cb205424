"""Bounded stores: decide which episodes exceed the limit, announce it to readers, and return their rows to the file system.

Order of an eviction: first the header's `first` is written and synced, then holes are punched. A reader that checks `first` after it has
copied rows therefore never keeps a row of a hole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offrl_store import disk
from offrl_store import format as layout
from offrl_store.errors import InvalidInput, SnapshotEvicted
from offrl_store.reader import Snapshot, StoreReader


def checked_limit(transitions: int | None, size: int | None) -> dict[str, int]:
    """Return the limit in the form of schema.json; {} without one. Raises InvalidInput."""
    if transitions is not None and size is not None:
        raise InvalidInput("limit_transitions and limit_bytes were both given", hint="a store has one limit")
    limit = {name: value for name, value in (("transitions", transitions), ("bytes", size)) if value is not None}
    for name, value in limit.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InvalidInput(f"limit_{name} {value!r} is not a whole number of at least 1")
        limit[name] = int(value)
    return limit


class Bound:
    """The writer's view of a bounded store: how much it holds, and the oldest episode to keep."""

    def __init__(self, store: StoreReader, keep: Sequence[Snapshot]) -> None:
        ((self._kind, self._limit),) = store.limit.items()
        self._row_bytes = store.schema.row_bytes
        self.first, self._counted, self._held = store.first, store.first, 0
        self._punched = self._punched_log = 0
        self._path = store.path
        self.keep(keep)
        self._stale = self.first > 0  # a writer may have died after it wrote the header and before it punched the holes

    def keep(self, snapshots: Sequence[Snapshot]) -> None:
        """From now on evict no episode of these snapshots. Raises SnapshotEvicted if one is already gone."""
        ceiling = min((snapshot.first for snapshot in snapshots), default=None)
        if ceiling is not None and ceiling < self.first:
            raise SnapshotEvicted(f"a snapshot to keep starts at episode {ceiling}, which {self._path} has evicted")
        self._ceiling: int | None = ceiling

    def _sizes(self, records: np.ndarray) -> np.ndarray:
        if self._kind == "transitions":
            return records["steps"] - (records["flags"] == layout.FINAL_MISSING)
        return (records["steps"] + 1) * self._row_bytes + layout.SIZE

    def due(self, store: StoreReader) -> bool:
        """Count newly committed episodes and return whether rows must be evicted. ``first`` is then the oldest episode to keep."""
        log = store._log
        self._held += int(self._sizes(log.since(self._counted)).sum())
        self._counted = log.count
        ceiling = log.count - 1 if self._ceiling is None else min(self._ceiling, log.count - 1)
        excess = self._held - self._limit
        stale, self._stale = self._stale, False
        if excess <= 0 or ceiling <= self.first:
            return stale
        before = self.first
        count = 64  # nearly always enough
        while True:
            sizes = np.cumsum(self._sizes(log.since(before)[: min(count, ceiling - before)]))
            if sizes[-1] >= excess or before + count >= ceiling:
                break
            count *= 8
        gone = min(int(np.searchsorted(sizes, excess)) + 1, len(sizes))
        self.first, self._held = before + gone, self._held - int(sizes[gone - 1])
        return True

    def punch(self, store: StoreReader, columns: Sequence[int], log: int) -> None:
        """Punch holes for the rows before ``first`` and for their records. A file system without holes keeps the bytes."""
        row, page = int(store._log.since(self.first)["first_row"][0]), layout.PAGE
        for column, descriptor in zip(store.schema.columns, columns, strict=True):
            start, end = (place * column.field.row_bytes // page * page for place in (self._punched, row))
            if end > start and not disk.punch(descriptor, start, end - start):
                return
        self._punched = row
        start, end = layout.gone(self.first)
        start = max(start, self._punched_log)
        if end > start and disk.punch(log, start, end - start):
            self._punched_log = end
