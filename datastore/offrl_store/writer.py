"""Writer: appends to a store, one writer at a time. An episode is durable once ``commit`` has returned.

A commit first writes and syncs the rows, then writes and syncs the records, then updates the lower bound in the header. So a record is
never durable before its rows, and a crash leaves unfinished data only after the last whole record, where the next writer cuts them off.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from offrl_store import eviction, meta
from offrl_store import format as layout
from offrl_store.disk import FULL, disk_errors, open_file, write_all
from offrl_store.errors import InvalidInput, OffrlError, StoreLocked
from offrl_store.reader import Snapshot, StoreReader
from offrl_store.rows import ColumnFiles
from offrl_store.schema import Episode
from offrl_store.steps import StepWriter
from offrl_store.validate import CheckedEpisode, validate

StoreT = TypeVar("StoreT", bound=StoreReader)


class Writer(StepWriter, Generic[StoreT]):
    """Appends episodes; made by ``EpisodeStore.writer()``. The end of the ``with`` block commits, also after an exception."""

    def __init__(self, store: StoreT, keep: Sequence[Snapshot] = (), commit_s: float | None = None) -> None:
        super().__init__()
        self._store, self._schema, self._path = store, store.schema, store.path
        self._commit_s, self._commit_time = commit_s, time.monotonic()
        self._log = -1
        self._reward = [column.role for column in self._schema.columns].index("reward")
        self._pending: list[tuple[int, int, float, int, int]] = []  # first row, steps, return, flags, checksum of the data
        try:
            with disk_errors(self._path):
                self._log = open_file(self._path / layout.LOG_FILE)
                try:
                    fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StoreLocked(f"another writer has {self._path} open", hint="wait until it is done, or end that process") from error
                self._rows = ColumnFiles(self._path, self._schema)
                self._recover()
                store.refresh()
                self._bound = eviction.Bound(store, keep) if store.limit else None
                self._meta = meta.MetaWriter(self._path, self._committed)
                self._begin_steps()
                self._evict()
        except BaseException:
            self._release()
            raise

    def _recover(self) -> None:
        """Accept whole records of a writer that died, cut off its torn tail, and continue after the last row of the last episode."""
        log = layout.read_log(self._log, self._path / layout.LOG_FILE, self._schema)
        self._found, self._first, self._committed = log, log.first, log.count
        self._chain, self._end = log.chain(log.count), log.rows
        self._rows.check_sizes(self._end)
        if log.torn:
            os.ftruncate(self._log, layout.SIZE * (1 + self._committed))
        self._rows.written = self._end
        self._rows.cut(self._end)
        self._slot = log.slot
        if log.torn or log.committed != self._committed or not log.slots_valid:
            os.fdatasync(self._log)
            self._write_header(sync=True)

    @property
    def store(self) -> StoreT:
        """The store that this writes to; it sees each commit."""
        return self._store

    @property
    def pending(self) -> int:
        """Number of whole episodes that wait for the next commit."""
        return len(self._pending)

    def keep(self, snapshots: Sequence[Snapshot]) -> None:
        """From now on evict no episode of these snapshots; they replace those kept before. Raises SnapshotEvicted."""
        if self._bound is not None:
            self._bound.keep(snapshots)

    # --- Appending ----------------------------------------------------------------------------------------------------------

    def append(self, episode: Episode, metadata: Mapping[str, Any] | None = None) -> int:
        """Check and write one episode; it is durable after the next ``commit``. Returns its number.

        metadata: a JSON object to store with it. Raises InvalidEpisode (nothing was written) and DiskFull (this episode is not in the
        store, earlier ones are).
        """
        self._check_open()
        number = self._committed + len(self._pending)
        text = meta.checked(metadata)
        self._put(validate(self._schema, episode, number), f"episode {number}")
        self._meta.add(number, text)
        self._commit_if_due()
        return number

    def _put(self, checked: CheckedEpisode, where: str) -> None:
        """Take the rows of an episode after the last one. Raises InvalidEpisode for its values, DiskFull."""
        row = self._row
        try:
            checksum = self._rows.put(checked, row, where)
        except OSError as error:
            with disk_errors(self._path):
                if error.errno in FULL:
                    self._rows.cut(row)  # frees the space of partly written rows
                raise
        self._pending.append(
            (
                row,
                checked.steps,
                float(np.add.reduce(checked.arrays[self._reward], dtype=np.float64)),
                layout.TERMINATED * checked.terminated | layout.FINAL_MISSING * checked.final_missing,
                checksum,
            )
        )

    @property
    def _row(self) -> int:
        """The first free row. It is derived, so that an interrupt between two statements cannot make it inconsistent with the episodes."""
        if not self._pending:
            return self._end
        first_row, steps = self._pending[-1][:2]
        return first_row + steps + 1

    # --- Committing ---------------------------------------------------------------------------------------------------------

    def commit(self) -> Snapshot:
        """Make everything appended so far durable. Returns the snapshot that ends with it. Raises DiskFull."""
        self._check_open()
        if self._pending:
            with disk_errors(self._path):
                self._sync_rows()
                self._mark_ended()
                end = self._meta.write()
                self._write_records()
                self._meta.done(end)
                self._forget_ended()
            self._store.refresh()
            self._evict()
        self._commit_time = time.monotonic()
        return self._store.snapshot()

    def _evict(self) -> None:
        """Evict the oldest episodes of a bounded store. The header announces it to readers before any of their rows is freed."""
        if self._bound is not None and self._bound.due(self._store):
            with disk_errors(self._path):
                self._first = self._bound.first
                self._write_header(sync=True)
                self._bound.punch(self._store, self._rows.descriptors, self._log)
                self._meta.compact(self._first)
            self._store.refresh()

    _bound: eviction.Bound | None = None

    def _commit_if_due(self) -> None:
        if self._commit_s is not None and time.monotonic() - self._commit_time >= self._commit_s:
            self.commit()

    def _sync_rows(self) -> None:
        try:
            self._rows.flush(self._row)
        except OSError as error:
            if error.errno in FULL:
                self._rows.cut(self._row)  # drops a partly written piece; its rows are still in memory
            raise
        try:
            self._rows.sync(self._row)
        except OSError:
            # After a failed sync the kernel no longer knows which pages did not reach the disk, so these rows cannot be trusted.
            self._pending = []
            self._meta.drop()
            self._leave_ended()
            self._rows.cut(self._row)
            raise

    def _write_records(self) -> None:
        records, chain = [], self._chain
        for pending in self._pending:
            record, chain = layout.dump_record(*pending, chain)
            records.append(record)
        end = layout.SIZE * (1 + self._committed)
        try:
            write_all(self._log, b"".join(records), end)
            os.fdatasync(self._log)
        except OSError:
            os.ftruncate(self._log, end)
            raise
        # First compute the values, then assign them without a call in between: an interrupt comes before or after all of them, and closing
        # neither repeats nor loses a record.
        count, end_row = self._committed + len(records), self._row
        self._committed, self._chain, self._end, self._pending = count, chain, end_row, []
        self._write_header(sync=False)

    def _write_header(self, sync: bool) -> None:
        """Write the number of durable episodes to the slot that is not current."""
        os.pwrite(self._log, layout.dump_slot(self._committed, self._first), layout.slot_offset(1 - self._slot))
        self._slot = 1 - self._slot
        self._header_dirty = not sync
        if sync:
            os.fdatasync(self._log)

    _header_dirty = False

    # --- Closing --------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Commit, leave open episodes to the next writer, and release the lock. A second call does nothing."""
        if self._log < 0:
            return
        try:
            self.sync()
            with disk_errors(self._path):
                self._rows.cut(self._row)
                if self._header_dirty:
                    self._write_header(sync=True)
        finally:
            self._release()

    def abort(self) -> None:
        """Drop the episodes since the last commit and the steps since the last sync, and release the lock. `close` then does nothing."""
        if self._log < 0:
            return
        self._pending = []
        try:
            with disk_errors(self._path):
                self._rows.cut(self._row)
        finally:
            self._release()

    def __enter__(self) -> Writer[StoreT]:
        self._check_open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except (OffrlError, OSError):
            if error is None:  # otherwise the exception of the block matters more, such as a full disk
                raise

    def _release(self) -> None:
        log, self._log = self._log, -1
        if log >= 0:
            os.close(log)
        attributes = self.__dict__  # a writer that failed to open lacks some of them
        if "_rows" in attributes:
            self._rows.close()
        self._leave_steps()
        if "_meta" in attributes:
            self._meta.close()

    def __del__(self) -> None:
        self._release()  # without a commit: only a commit makes episodes durable

    def _check_open(self) -> None:
        if self._log < 0:
            raise InvalidInput("this writer is closed", hint="make a new one: store.writer()")
