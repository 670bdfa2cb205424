"""The SQLite file of the queue: transactions, and the threads that keep them off the event loop.

Every change is one transaction that is on disk before `Database.write` returns (WAL with ``synchronous=FULL``), so the reply stays true
after a power cut. Reads have connections of their own and never wait for a sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from offrl.errors import DiskFull, InternalError, OffrlError, StoreCorrupt
from offrld.daemon.queue import migrations
from offrld.daemon.queue.schema import SCHEMA, SCHEMA_VERSION
from offrld.state.folder import FOLDER_HINT

BACK_UP_HINT = "replace it with a backup, or move it away to start with an empty queue"
P = ParamSpec("P")
T = TypeVar("T")


class Connection(sqlite3.Connection):
    """A connection that records what a transaction changed, for those who wait for it."""

    touched: set[str]  # jobs with new events
    schedule: bool  # a job may be startable now


def connect(path: Path) -> Connection:
    """Open the database, and create or migrate it. Raises `Conflict` for an unknown version, `StoreCorrupt` for a damaged file."""
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Connection, timeout=10.0)
        db.row_factory = sqlite3.Row
        db.touched, db.schedule = set(), False
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} INSERT INTO meta VALUES ('schema', '{SCHEMA_VERSION}'); COMMIT;")
        migrations.migrate(db, path)
    except sqlite3.DatabaseError as error:
        raise translate(error, path) from None
    return db


def check(path: Path) -> None:
    """Check the file before anything opens it for writing: a damaged file stays as it is.

    Raises `StoreCorrupt` for a file that SQLite finds damaged (its quick check reads all of it), and for an empty one beside the folders of
    jobs, which a file system may leave after a power cut.
    """
    if not path.exists():
        return
    if path.stat().st_size == 0 and not path.with_name(f"{path.name}-wal").exists():
        if any(path.parent.glob("jobs/*")):
            raise StoreCorrupt(f"{path} is empty, but there are jobs in {path.parent / 'jobs'}", hint=BACK_UP_HINT)
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as error:
        raise translate(error, path) from None
    if problems != ["ok"]:
        raise StoreCorrupt(f"{path} is damaged: {' '.join(problems[0].split())}", hint=BACK_UP_HINT)


def translate(error: sqlite3.DatabaseError, path: Path | str) -> OffrlError:
    """Turn an error of SQLite into one of ours."""
    text = str(error)
    if "full" in text:
        return DiskFull(f"{path}: {text}", hint="free some space; nothing that was acknowledged is lost")
    if type(error) is sqlite3.DatabaseError or "malformed" in text:
        return StoreCorrupt(f"{path}: {text}", hint=BACK_UP_HINT)
    if any(words in text for words in ("readonly", "unable to open", "disk I/O")):
        return InternalError(f"{path}: {text}", hint=FOLDER_HINT)
    return InternalError(f"{path}: {text}", hint="the daemon's log holds more")


def transaction(db: Connection, begin: str, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function(db, ...)`` in one transaction: committed when it returns, rolled back when it raises."""
    db.touched, db.schedule = set(), False
    db.execute(begin)
    try:
        result = function(db, *args, **kwargs)
        db.execute("COMMIT")
    except BaseException:
        db.touched, db.schedule = set(), False
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
            db.execute("ROLLBACK")
        raise
    return result


class Database:
    """The database for the event loop: ``await write(function, ...)`` and ``await read(function, ...)`` run ``function(db, ...)``."""

    def __init__(self, path: Path, changed: Callable[[set[str], bool], None] = lambda touched, schedule: None) -> None:
        self._path = path
        self._changed = changed
        check(path)
        self._writer = connect(path)
        self._reader, self._long_reader = connect(path), connect(path)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="queue-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="queue-read")
        self._long_thread = ThreadPoolExecutor(1, thread_name_prefix="queue-survey")

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of ``function`` once its changes are durable. Raises what it raises, SQLite's errors as ours."""

        def work() -> tuple[T, set[str], bool]:
            try:
                result = transaction(self._writer, "BEGIN IMMEDIATE", function, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                raise translate(error, self._path) from error
            return result, self._writer.touched, self._writer.schedule

        # Shielded: if the caller gives up, the write still completes and wakes those who wait for it.
        return await asyncio.shield(asyncio.ensure_future(self._written(work)))

    async def _written(self, work: Callable[[], tuple[T, set[str], bool]]) -> T:
        run = contextvars.copy_context().run
        result, touched, schedule = await asyncio.get_running_loop().run_in_executor(self._write_thread, run, work)
        if touched or schedule:
            self._changed(touched, schedule)
        return result

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of ``function`` on one consistent view. Reads run one after the other, in the order of their calls."""
        return await self._read(self._reader, self._read_thread, function, *args, **kwargs)

    async def survey(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `read`, for queries of many rows: the status of one job does not wait behind a list of all."""
        return await self._read(self._long_reader, self._long_thread, function, *args, **kwargs)

    async def _read(
        self,
        db: Connection,
        thread: ThreadPoolExecutor,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        def work() -> T:
            try:
                return transaction(db, "BEGIN", function, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                raise translate(error, self._path) from error

        return await asyncio.get_running_loop().run_in_executor(thread, contextvars.copy_context().run, work)

    def close(self) -> None:
        """Finish the running transactions and fold the log into the file."""
        self._write_thread.shutdown()
        self._read_thread.shutdown()
        self._long_thread.shutdown()
        self._reader.close()
        self._long_reader.close()
        with contextlib.suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._writer.close()
