"""The list of all jobs, kept encoded, because everybody who watches the queue requests it again and again.

One query, outside of the interpreter's lock, returns what may have changed of every job. A job that is unchanged since the last list is not
read and encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from offrl import wire
from offrl.job import JobState
from offrld.daemon.config import Limits
from offrld.daemon.queue import fitting
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job
from offrld.daemon.queue.views.job_info import Waits

MOST = wire.LIST_BYTES // 4  # bytes of one job
ROUND = 64  # lists; an entry that no list of a whole round needed is dropped
# Columns that never change; in the spec only the steps do, and they have a column.
SETTLED = {"seq", "id", "kind", "lane", "owner", "key", "spec", "after", "dataset", "source", "rerun_of", "created_at"}


@dataclass(frozen=True)
class Entry:
    """A job of a list.

    ``row``: its columns when it was encoded; ``waiting``: the job if it is queued, as its ``reason`` then depends on more than its row;
    ``packed``: its bytes.
    """

    row: str
    waiting: Job | None
    reason: str
    packed: bytes


class Listing:
    """Makes the lists of one database. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}  # by seq: the entries of this round
        self._before: dict[int, Entry] = {}  # the entries of the last round
        self._lists = 0
        self._columns = ""

    def make(self, db: Connection, kind: str | None, limit: int, limits: Limits, before: int | None = None) -> wire.Encoded:
        """Return the message of a `wire.JobList`: the newest ``limit`` jobs that fit, in the order of submission, without specs.

        Args:
            kind: one kind, "all", or None for all but imports.
            before: only jobs with a lower number (``seq``).
        """
        where, values = {
            None: ("kind NOT IN ('import', 'removed')", ()),
            "all": ("kind <> 'removed'", ()),
        }.get(kind, ("kind = ?", (kind,)))
        if before is not None:
            where, values = f"{where} AND seq < ?", (*values, before)
        if not self._columns:
            names = [row["name"] for row in db.execute("PRAGMA table_info(jobs)")]
            self._columns = ", ".join(name for name in names if name not in SETTLED)
        total, rows = db.execute(
            f"SELECT (SELECT count(*) FROM jobs WHERE {where}), group_concat(row, char(10)) FROM ("  # JSON has no line ends in it
            f" SELECT seq || ' ' || json_array({self._columns}) AS row FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ?)",
            (*values, *values, limit),
        ).fetchone()
        waits = Waits.look(db, limits)
        packed: list[bytes] = []
        size, last = 0, 0
        for row in rows.split("\n") if rows else ():
            entry = self._entry(db, waits, row)
            size += len(entry.packed)
            if size > wire.LIST_BYTES:
                break
            packed.append(entry.packed)
            last = int(row[: row.index(" ")])
        self._lists += 1
        if self._lists % ROUND == 0:
            self._before, self._entries = self._entries, {}
        packed.reverse()
        left = total - len(packed)
        return wire.encoded_list("jobs", packed, left_off=left, before=last if left and packed else None)

    def _entry(self, db: Connection, waits: Waits, row: str) -> Entry:
        """Return the entry of a row: that of an earlier list if nothing has changed."""
        seq = int(row[: row.index(" ")])
        entry = self._entries.get(seq) or self._before.get(seq)
        if entry is not None and entry.row == row and (entry.waiting is None or waits.reason(entry.waiting) == entry.reason):
            self._entries[seq] = entry
            return entry
        job = Job.of(db.execute("SELECT * FROM jobs WHERE seq = ?", (seq,)).fetchone())
        info = waits.info(job, spec=False)
        packed = wire.encoded_job(info)
        if len(packed) > MOST:
            packed = wire.encoded_job(fitting.job(info, MOST))
        waiting = replace(job, spec={}) if job.state == JobState.QUEUED else None
        entry = self._entries[seq] = Entry(row, waiting, info.reason, packed)
        return entry
