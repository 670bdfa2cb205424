"""Migrations of the queue's database: an older version keeps all its content, or stays as it was."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from offrl.errors import Conflict, StoreCorrupt
from offrl.job import TrainSpec
from offrld.daemon import queue
from offrld.daemon.queue import events, job_record, migrations
from offrld.daemon.queue.database import connect, transaction
from offrld.daemon.queue.schema import SCHEMA_VERSION
from offrld.daemon.queue.views import job_info

VERSION_1 = (Path(__file__).parent / "samples" / "queue-v1.sql").read_text()
SPEC = json.dumps(TrainSpec(algorithm="bc", dataset="data").model_dump(mode="json"))


def make(path: Path, *, early: bool = False) -> Path:
    """Make a database of version 1 with two jobs, an event and a dependency; ``early``: without the tables that came later."""
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_1.partition("-- Added")[0] if early else VERSION_1)
        db.execute("INSERT INTO meta VALUES ('schema', '1')")
        for seq, job, key in ((3, "first", "k"), (5, "second", None), (9, "deleted", "gone")):
            db.execute(
                "INSERT INTO jobs (seq, id, kind, lane, state, priority, key, spec, after, dataset, snapshot, attempt, metrics, events,"
                " created_at) VALUES (?, ?, 'train', 'train', 'queued', 4, ?, ?, '[]', 'data', '0:1:ab', 2, ?, 1, 7.5)",
                (seq, job, key, SPEC, '{"loss":{"0":1.5}}'),
            )
        db.execute("DELETE FROM jobs WHERE id = 'deleted'")
        db.execute("INSERT INTO events VALUES (3, 1, ?)", (json.dumps({"time": 8.0, "type": "state", "state": "queued"}),))
        db.execute("INSERT INTO dependencies VALUES ('second', 'first')")
        db.execute("INSERT INTO datasets VALUES ('data', '{}', '0:1:ab', 'old', 6.0)")
        if not early:
            db.execute("INSERT INTO job_owners VALUES ('first', 'arm1')")
            db.execute("INSERT INTO uses VALUES ('second', 'first')")
            db.execute("INSERT INTO peaks VALUES ('first', 123)")
    db.close()
    return path


@pytest.mark.parametrize("early", [False, True])
def test_a_queue_of_version_1_keeps_its_jobs(tmp_path: Path, early: bool) -> None:
    path = make(tmp_path / "queue.sqlite", early=early)
    db = connect(path)
    assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0] == str(SCHEMA_VERSION)
    first, second = job_record.find(db, "first"), job_record.find(db, "second")
    assert (first.seq, first.priority, first.key, first.attempt, first.created_at, first.snapshot) == (3, 4, "k", 2, 7.5, "0:1:ab")
    assert first.metrics == {"loss": {"0": 1.5}}
    assert (first.owner, second.owner) == (None if early else "arm1", None)
    assert (first.start_at, first.retry_at, first.crashes, first.rerun_of) == (None, None, 0, None)
    assert not first.forced and not first.pinned
    assert [event.n for event in events.after(db, "first", 0, 10)[0]] == [1]
    assert job_info.waits_for(db) == {"second": ["first"]}
    if not early:
        assert transaction(db, "BEGIN", queue.sizes, first)[1] == 123

    # Rows that refer to a job still go with it, and no number is given twice.
    transaction(db, "BEGIN IMMEDIATE", queue.control, "second", "cancel")
    transaction(db, "BEGIN IMMEDIATE", queue.control, "first", "cancel")
    transaction(db, "BEGIN IMMEDIATE", queue.remove, "first")
    assert db.execute("SELECT count(*) FROM events WHERE seq = 3").fetchone()[0] == 0
    assert db.execute("SELECT count(*) FROM dependencies").fetchone()[0] == 0
    new, _ = transaction(db, "BEGIN IMMEDIATE", queue.submit, TrainSpec(algorithm="bc", dataset="data"), owner="arm1", key="k")
    assert job_record.find(db, new).seq == 10
    db.close()


def test_a_migration_leaves_a_copy_of_the_old_database(tmp_path: Path) -> None:
    path = make(tmp_path / "queue.sqlite")
    (tmp_path / ".queue.sqlite.v1.tmp").write_bytes(b"half a copy of an attempt that was killed")
    connect(path).close()
    with sqlite3.connect(tmp_path / "queue.sqlite.v1") as db:
        assert db.execute("SELECT value FROM meta").fetchone()[0] == "1"
        assert [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY seq")] == ["first", "second"]
        assert db.execute("SELECT name FROM job_owners").fetchone()[0] == "arm1"
    db.close()
    assert not (tmp_path / ".queue.sqlite.v1.tmp").exists()
    copied = (tmp_path / "queue.sqlite.v1").stat().st_mtime_ns
    connect(path).close()
    assert (tmp_path / "queue.sqlite.v1").stat().st_mtime_ns == copied


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "queue.sqlite")

    def half(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE events")
        db.execute("DELETE FROM jobs WHERE id = 'first'")  # others still refer to it

    monkeypatch.setitem(migrations.STEPS, 1, half)
    with pytest.raises(StoreCorrupt, match="refer to nothing"):
        connect(path)
    with sqlite3.connect(path) as db:
        assert [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY seq")] == ["first", "second"]
        assert db.execute("SELECT count(*) FROM events").fetchone()[0] == 1
        assert db.execute("SELECT value FROM meta").fetchone()[0] == "1"
    db.close()


@pytest.mark.parametrize("version", ["0", "99"])
def test_a_version_without_a_migration_is_refused_and_kept(tmp_path: Path, version: str) -> None:
    path = make(tmp_path / "queue.sqlite")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = ?", (version,))
    db.close()
    with pytest.raises(Conflict, match=f"has version {version}, this daemon reads version {SCHEMA_VERSION}"):
        connect(path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM job_owners").fetchone()[0] == 1
    db.close()


def test_a_new_queue_and_a_migrated_one_have_the_same_tables(tmp_path: Path) -> None:
    def tables(path: Path) -> list[tuple[str, str]]:
        db = connect(path)
        found = [(row[0], " ".join(str(row[1]).replace('"', "").split())) for row in db.execute("SELECT name, sql FROM sqlite_master")]
        db.close()
        return sorted((name, sql.replace("( ", "(").replace(" )", ")")) for name, sql in found)

    assert tables(make(tmp_path / "old.sqlite")) == tables(tmp_path / "new.sqlite")
