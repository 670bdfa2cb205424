"""Migrations of the queue's database: one function and one transaction for each step to the next version, after a copy of the file.

The copy is `queue.sqlite.vN` beside the database, whole and synced before anything changes; nothing deletes it. A version without a step,
or a newer one, is refused, and nothing changes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from offrl.errors import Conflict, StoreCorrupt
from offrl_store.disk import publish, sync_file
from offrld.daemon.queue.schema import DATASET_OWNERS, INDEXES, JOBS, SCHEMA_VERSION


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Migrate the open database at ``path`` to the current version. Raises `Conflict` for a version that cannot be migrated."""
    version = _version(db, path)
    while version != SCHEMA_VERSION:
        step = STEPS.get(version)
        if step is None:
            db.close()
            back = f"a newer offrld wrote it: install that again, or go back to {path.name}.v{SCHEMA_VERSION} (docs/operations.md, Upgrade)"
            raise Conflict(
                f"{path} has version {version}, this daemon reads version {SCHEMA_VERSION}",
                hint=back if version > SCHEMA_VERSION else "run the version of offrld that wrote it, or choose another --state-dir",
            )
        keep_copy(db, path.with_name(f"{path.name}.v{version}"))
        db.execute("PRAGMA foreign_keys = OFF")  # a step replaces a table that others refer to; a transaction cannot change this
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                step(db)
                if broken := db.execute("PRAGMA foreign_key_check").fetchall():
                    raise StoreCorrupt(f"{path}: {len(broken)} rows of {broken[0][0]} refer to nothing", hint="restore a backup")
                db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(version + 1),))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        finally:
            db.execute("PRAGMA foreign_keys = ON")
        version = _version(db, path)


def keep_copy(db: sqlite3.Connection, to: Path) -> None:
    """Copy the database consistently to ``to``, whole or not at all; the copy of an interrupted migration is replaced."""
    temporary = to.with_name(f".{to.name}.tmp")
    temporary.unlink(missing_ok=True)
    with sqlite3.connect(temporary) as copy:
        db.backup(copy)
    copy.close()
    sync_file(temporary)
    publish(temporary, to)


def _version(db: sqlite3.Connection, path: Path) -> int:
    row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if row is None or not str(row[0]).isdigit():
        db.close()
        raise StoreCorrupt(
            f"{path} does not say its version", hint="replace it with a backup, or move it away to start with an empty queue"
        )
    return int(row[0])


def _statements(db: sqlite3.Connection, text: str) -> None:
    """Execute several statements within the transaction; `executescript` would commit it."""
    for statement in text.split(";"):
        if statement.strip():
            db.execute(statement)


# ---------------------------------------------------------------------------------------------------------------------- steps
def _from_1(db: sqlite3.Connection) -> None:
    """Move owners into the jobs table and make keys theirs; add start times, automatic retries, reruns and pinned jobs."""
    # Tables that version 1 gained without a new number: the first daemons did not create them.
    _statements(
        db,
        """
        CREATE TABLE IF NOT EXISTS uses (
            job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            used TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            PRIMARY KEY (job, used)) STRICT, WITHOUT ROWID;
        CREATE INDEX IF NOT EXISTS uses_used ON uses (used);
        CREATE TABLE IF NOT EXISTS peaks (
            job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
            device_bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS job_owners (
            job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
            name TEXT NOT NULL) STRICT, WITHOUT ROWID
    """,
    )
    # With AUTOINCREMENT no number is used twice, not even that of a deleted job.
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    _statements(db, _JOBS_2.format(name="jobs_2"))
    same = (
        "seq, id, kind, lane, state, priority, key, spec, after, dataset, snapshot, source, attempt, intent, reason, error, step, steps,"
        " updates_per_second, eta_s, metrics, events, events_offset, created_at, started_at, finished_at"
    )
    db.execute(f"INSERT INTO jobs_2 ({same}, owner) SELECT {same}, (SELECT name FROM job_owners WHERE job = jobs.id) FROM jobs")
    _statements(db, "DROP TABLE jobs; ALTER TABLE jobs_2 RENAME TO jobs; DROP TABLE job_owners;" + _INDEXES_2)
    if last is not None:
        db.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?)", (last[0],))


def _from_2(db: sqlite3.Connection) -> None:
    """Give datasets owners; existing ones have none, and belong to the operators."""
    _statements(db, DATASET_OWNERS)


_JOBS_2, _INDEXES_2 = JOBS, INDEXES  # when a later version changes them, keep their present text here

STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1, 2: _from_2}
