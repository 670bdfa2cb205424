"""StoreReader: the memory-mapped columns of a store and its log of episodes, as one reader sees them. `Snapshot` identifies such a view."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store.errors import InvalidInput, SnapshotEvicted, StoreCorrupt, StoreNotFound
from offrl_store.eviction_guard import Guard
from offrl_store.meta import MetaReader
from offrl_store.schema import Column, Episode, Schema


@dataclass(frozen=True)
class Snapshot:
    """A state of a store: its first episode, its number of episodes, and the hash chain over their records.

    ``parse`` inverts ``str``.
    """

    first: int
    count: int
    chain: str

    def __str__(self) -> str:
        return f"{self.first}:{self.count}:{self.chain}"

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Parse FIRST:COUNT:CHAINHEX. Raises InvalidInput for any other text."""
        parts = str(text).split(":")
        try:
            first, count, chain = int(parts[0]), int(parts[1]), bytes.fromhex(parts[2]).hex()
            if len(parts) != 3 or len(chain) != 32 or first < 0 or count < 0:
                raise ValueError
        except (ValueError, IndexError) as error:
            raise InvalidInput(f"{text!r} is not a snapshot", hint="a snapshot reads FIRST:COUNT:CHAINHEX") from error
        return cls(first, count, chain)


class StoreReader:
    """The part of a store that samplers, lists and the writer use: path, schema, log, columns and episodes. `EpisodeStore` adds the rest.

    The cost of opening grows with the episodes, not with the rows. A reader sees the episodes of its last ``refresh``.
    """

    def __init__(self, path: Path, schema: Schema, pinned: Snapshot | None, limit: Mapping[str, int] | None = None) -> None:
        """Use ``EpisodeStore.create`` or ``EpisodeStore.open``."""
        self.path, self.schema, self.limit = path, schema, dict(limit or {})
        self._pinned = pinned
        self._first = 0
        self._columns: dict[str, np.ndarray] = {}
        self._log = self._read(None)

    # --- Reading the log --------------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read the newly committed episodes. Returns their number (0 for a store that was opened at a snapshot).

        A bounded store may also have evicted its oldest episodes; ``first`` is their number. Raises StoreCorrupt, and SnapshotEvicted if
        episodes of the snapshot are gone.
        """
        if self._pinned is not None:
            self.check_alive()
            return 0
        before = self._log
        self._log = self._read(before)
        return self._log.count - before.count

    def _read(self, known: layout.Log | None) -> layout.Log:
        """Read the log, continuing from ``known``, and map the columns to fit it."""
        file = self.path / layout.LOG_FILE
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                log = layout.read_log(descriptor, file, self.schema, known)
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            if not self.path.is_dir():
                raise StoreNotFound(f"there is no episode store at {self.path}") from error
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error
        first = log.first
        if self._pinned is not None:
            pin, first = self._pinned, self._pinned.first
            checkable = pin.count == 0 or log.base < pin.count <= log.count
            if pin.count > log.count or first > pin.count or (checkable and log.chain(pin.count).hex() != pin.chain):
                raise StoreCorrupt(
                    f"snapshot {pin} does not belong to the store at {self.path}, which holds {log.count} episodes",
                    hint="the dataset was replaced since; submit the job again to use the new one",
                )
            if first < log.first:
                raise self._evicted(first, log.first)
            log = replace(log, table=log.table[: pin.count - log.base])
        if known is None or log.count != known.count:
            self._columns = {column.name: self._map(column, log.rows) for column in self.schema.columns}
        else:
            for column in self.schema.columns:
                self._check_size(layout.column_path(self.path, column.name), column, log.rows)
        log.table.setflags(write=False)
        self._first = first
        return log

    # --- Bounded stores ---------------------------------------------------------------------------------------------------------

    @property
    def first(self) -> int:
        """Number of episodes before the oldest one that this reader sees; 0 except in a bounded store."""
        return self._first

    def check_alive(self, first: int | None = None) -> None:
        """Raise SnapshotEvicted if episode ``first``, counted from the store's beginning, is gone (default: the oldest this reader sees).

        Call it after reading rows: if it returns, the rows were valid. It costs nothing in a store without a limit, otherwise one read of
        64 bytes. A sampler passes the ``first`` of the time when it was made.
        """
        if self.limit:
            if self._guard is None:
                self._guard = Guard(self.path / layout.LOG_FILE)
            kept, first = self._guard.first(), self._first if first is None else first
            if kept > first:
                raise self._evicted(first, kept)

    _guard: Guard | None = None

    def _evicted(self, first: int, kept: int) -> SnapshotEvicted:
        return SnapshotEvicted(
            f"episodes {first} to {kept - 1} of {self.path} were evicted to keep its limit",
            hint="refresh and sample again, or have the writer keep the snapshot: store.writer(keep=[snapshot])",
        )

    def _check_size(self, file: Path, column: Column, rows: int) -> None:
        try:
            size = os.stat(file).st_size
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error
        if size < rows * column.field.row_bytes:
            raise StoreCorrupt(
                f"{file} is cut: {size} bytes, {rows * column.field.row_bytes} are needed for {rows} rows",
                hint="restore the file from a copy",
            )

    def _map(self, column: Column, rows: int) -> np.ndarray:
        """Return the first ``rows`` rows of a column as a read-only array over a memory map."""
        file, field = layout.column_path(self.path, column.name), column.field
        self._check_size(file, column, rows)
        if rows == 0:
            array = np.empty((0, *field.shape), field.dtype)
            array.setflags(write=False)
            return array
        with open(file, "rb") as handle:
            memory = mmap.mmap(handle.fileno(), rows * field.row_bytes, prot=mmap.PROT_READ)
        return np.frombuffer(memory, field.dtype).reshape(rows, *field.shape)

    # --- What is inside -------------------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.schema.metadata)

    @property
    def episode_table(self) -> np.ndarray:
        """One record per episode: first_row, steps, return, flags (``offrl_store.format`` names the bits) and checksums. Read-only."""
        return self._log.since(self._first)

    def column(self, name: str) -> np.ndarray:
        """Return all rows of a column, read-only: "observation", "observation.camera", "action", "reward", "extra.NAME". Raises
        InvalidInput.

        An episode has the rows first_row .. first_row + steps. The last one holds the final observation, and zeros in other columns.
        """
        try:
            return self._columns[name]
        except KeyError as error:
            raise InvalidInput(f"there is no column {name!r}", hint="the store has " + ", ".join(self._columns)) from error

    def __len__(self) -> int:
        """Number of episodes."""
        return self._log.count - self._first

    @property
    def step_count(self) -> int:
        """Sum of T over the episodes."""
        return int(self.episode_table["steps"].sum())

    @property
    def transition_count(self) -> int:
        """Number of transitions that can be sampled: all steps except the last of a truncated episode without its final observation."""
        return self.step_count - int(np.count_nonzero(self.episode_table["flags"] == layout.FINAL_MISSING))

    @property
    def nbytes(self) -> int:
        """Bytes of the episodes' rows and records on disk."""
        rows = self.step_count + len(self)
        return rows * self.schema.row_bytes + (len(self) + 1) * layout.SIZE

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64."""
        return np.ascontiguousarray(self.episode_table["return"])

    def snapshot(self) -> Snapshot:
        """Return what this reader sees now, for ``open(path, snapshot)``."""
        return Snapshot(self._first, self._log.count, self._log.chain(self._log.count).hex())

    def episode_metadata(self, number: int) -> dict[str, Any]:
        """Return the metadata of episode ``number`` (from 0, as in ``episodes``); {} if it was written without any.

        Raises SnapshotEvicted, and StoreCorrupt if its line may be damaged.
        """
        if not 0 <= number < len(self):
            raise InvalidInput(f"episode {number} is not in the store, which has {len(self)}")
        if self._meta is None:
            self._meta = MetaReader(self.path)
        metadata = self._meta.get(self._first + number, self._log.count)
        self.check_alive(self._first + number)  # if the episode was evicted, its line may be gone too
        return metadata

    _meta: MetaReader | None = None

    def read_episode(self, number: int) -> Episode:
        """Return episode ``number`` (from 0) as read-only views of the maps (copies in a bounded store). Raises SnapshotEvicted."""
        record = self.episode_table[number]
        first, steps, flags = int(record["first_row"]), int(record["steps"]), int(record["flags"])
        rows = {"observation": steps if flags & layout.FINAL_MISSING else steps + 1}

        def part(role: str) -> Any:
            values = {c.key: self._columns[c.name][first : first + rows.get(role, steps)] for c in self.schema.columns if c.role == role}
            if self.limit:  # the rows may be evicted while the caller uses them
                values = {key: array.copy() for key, array in values.items()}
            return values.get(None, values)

        episode = Episode(part("observation"), part("action"), part("reward"), bool(flags & layout.TERMINATED), part("extra"))
        self.check_alive(self._first + number if number >= 0 else self._log.count + number)
        return episode
