"""Writer: the one process that appends to a store. An episode is durable once ``commit`` has returned.

Order of a commit: rows written and synced, then records written and synced, then the header's lower bound. So a record never stands
before its rows do, and whatever a crash leaves half done lies behind the last whole record, where the next writer cuts it off.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import format as layout
from .errors import DiskFull, InvalidInput, OffrlError, StoreCorrupt, StoreLocked
from .schema import CheckedEpisode, Episode, validate

if TYPE_CHECKING:
    from .store import EpisodeStore, Snapshot

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turns a full disk into DiskFull and a refusal of the file system into InvalidInput, naming the path."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"no space left to write {path}: {error.strerror}",
                           hint="free some space and go on: every episode that was committed is kept") from error
        if error.errno in DENIED:
            raise InvalidInput(f"cannot {verb} {path}: {error.strerror}", hint="check the owner and the mode of the folder") from error
        raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Writer:
    """Appends episodes; made by ``EpisodeStore.writer()``. Leaving the ``with`` block commits, also when an exception leaves it."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store, self._schema, self._path = store, store.schema, store.path
        self._log = -1
        self._columns: list[int] = []
        self._pending: list[tuple[int, int, float, int, int]] = []  # first row, steps, return, flags, checksum of the data
        try:
            with disk_errors(self._path):
                self._log = self._open(self._path / layout.LOG_FILE)
                try:
                    fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StoreLocked(f"another writer has {self._path} open", hint="wait until it is done, or end that process") from error
                self._columns = [self._open(layout.column_path(self._path, column.name)) for column in self._schema.columns]
                self._recover()
        except BaseException:
            self._release()
            raise
        store.refresh()

    @staticmethod
    def _open(file: Path) -> int:
        try:
            return os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error

    def _recover(self) -> None:
        """Take in whole records that a dead writer left, cut off its torn tail, and start behind the last row of the last episode."""
        log = layout.read_log(self._log, self._path / layout.LOG_FILE, self._schema)
        self._committed = len(log.table)
        self._chain = layout.record_chain(log.table, self._committed, self._schema)
        self._end = int(log.table["first_row"][-1] + log.table["steps"][-1]) + 1 if self._committed else 0
        for column, descriptor in zip(self._schema.columns, self._columns, strict=True):
            due, size = self._row * column.field.row_bytes, os.fstat(descriptor).st_size
            if size < due:
                raise StoreCorrupt(f"{layout.column_path(self._path, column.name)} is cut: {size} bytes, {due} are needed",
                                   hint="restore the file from a copy")
        if log.torn:
            os.ftruncate(self._log, layout.SIZE * (1 + self._committed))
        self._cut_columns()
        self._slot = log.slot
        if log.torn or log.committed != self._committed or not log.slots_valid:
            os.fdatasync(self._log)
            self._write_header(sync=True)

    # --- Appending ----------------------------------------------------------------------------------------------------------

    def append(self, episode: Episode) -> int:
        """Check and write one episode; it is durable after the next ``commit``. Returns its number.

        Raises InvalidEpisode (nothing was written) and DiskFull (this episode is not in the store, the ones before it are).
        """
        self._check_open()
        number = self._committed + len(self._pending)
        checked = validate(self._schema, episode, number)
        checksum = 0
        try:
            with disk_errors(self._path):
                for column, descriptor, array in zip(self._schema.columns, self._columns, checked.arrays, strict=True):
                    checksum = self._write_rows(descriptor, array, checked.steps + 1, column.field.row_bytes, checksum)
        except DiskFull:
            self._cut_columns()  # the half-written rows go back to the file system
            raise
        self._pending.append((self._row, checked.steps, _return(self._schema, checked), _flags(checked), checksum))
        return number

    @property
    def _row(self) -> int:
        """The first free row. Derived, so that an interrupt between two statements cannot leave it behind the episodes."""
        if not self._pending:
            return self._end
        first_row, steps = self._pending[-1][:2]
        return first_row + steps + 1

    def _write_rows(self, descriptor: int, array: np.ndarray, rows: int, row_bytes: int, checksum: int) -> int:
        """Write an episode's rows of one column, a missing last one as zeros; returns the checksum carried on over them."""
        parts = [memoryview(array).cast("B")]
        if len(array) < rows:
            parts.append(memoryview(bytes((rows - len(array)) * row_bytes)))
        offset = self._row * row_bytes
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        while parts:
            written = os.pwritev(descriptor, parts, offset)
            offset += written
            while parts and written >= len(parts[0]):
                written -= len(parts.pop(0))
            if parts and written:
                parts[0] = parts[0][written:]
        return checksum

    # --- Committing ---------------------------------------------------------------------------------------------------------

    def commit(self) -> Snapshot:
        """Make everything appended so far durable; returns the snapshot that ends with it. Raises DiskFull."""
        self._check_open()
        if self._pending:
            with disk_errors(self._path):
                self._sync_rows()
                self._write_records()
            self._store.refresh()
        return self._store.snapshot()

    def _sync_rows(self) -> None:
        try:
            for descriptor in self._columns:
                os.fdatasync(descriptor)
        except OSError:
            # After a failed sync the kernel forgets which pages did not reach the disk: these rows must not be trusted again.
            self._pending = []
            self._cut_columns()
            raise

    def _write_records(self) -> None:
        records, chain = [], self._chain
        for pending in self._pending:
            record, chain = layout.dump_record(*pending, chain)
            records.append(record)
        raw = memoryview(b"".join(records))
        end = layout.SIZE * (1 + self._committed)
        try:
            done = 0
            while done < len(raw):
                done += os.pwrite(self._log, raw[done:], end + done)
            os.fdatasync(self._log)
        except OSError:
            os.ftruncate(self._log, end)
            raise
        # Values first, then stores without a call between them: an interrupt comes before or after, and closing then neither repeats
        # nor forgets a record.
        count, end_row = self._committed + len(records), self._row
        self._committed, self._chain, self._end, self._pending = count, chain, end_row, []
        self._write_header(sync=False)

    def _write_header(self, sync: bool) -> None:
        """Note how many episodes are durable, in the slot that does not count now."""
        os.pwrite(self._log, layout.dump_slot(self._committed), layout.slot_offset(1 - self._slot))
        self._slot = 1 - self._slot
        self._header_dirty = not sync
        if sync:
            os.fdatasync(self._log)

    _header_dirty = False

    # --- Closing --------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Commit and give the lock back. Closing twice is fine."""
        if self._log < 0:
            return
        try:
            self.commit()
            with disk_errors(self._path):
                self._cut_columns()
                if self._header_dirty:
                    self._write_header(sync=True)
        finally:
            self._release()

    def __enter__(self) -> Writer:
        self._check_open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except (OffrlError, OSError):
            if error is None:  # else the exception that left the block says more: a full disk, say
                raise

    def _cut_columns(self) -> None:
        for column, descriptor in zip(self._schema.columns, self._columns, strict=True):
            size = self._row * column.field.row_bytes
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, size)

    def _release(self) -> None:
        for descriptor in (*self._columns, self._log):
            if descriptor >= 0:
                os.close(descriptor)
        self._columns, self._log = [], -1

    def __del__(self) -> None:
        self._release()  # without a commit: what was not committed was not promised

    def _check_open(self) -> None:
        if self._log < 0:
            raise InvalidInput("this writer is closed", hint="take a new one: store.writer()")


def _return(schema: object, checked: CheckedEpisode) -> float:
    rewards = next(array for column, array in zip(schema.columns, checked.arrays, strict=True) if column.role == "reward")
    return float(np.sum(rewards, dtype=np.float64))


def _flags(checked: CheckedEpisode) -> int:
    return layout.TERMINATED * checked.terminated | layout.FINAL_MISSING * checked.final_missing
