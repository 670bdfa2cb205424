"""Claiming: which job starts next, and what its start records.

Higher priority first. Within a priority the owners take turns: first the owner with the fewest running jobs in the lane, then the one whose
last start is longest ago; each owner's jobs start in the order of submission. A job started with `offrl start` comes before all others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator

from offrl.errors import InternalError, to_wire
from offrl.job import JobState
from offrl_store.errors import OffrlError
from offrld.daemon.queue import events
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job
from offrld.daemon.queue.moves import move
from offrld.daemon.queue.pausing import paused
from offrld.daemon.queue.submission import WRITERS

log = logging.getLogger("offrld.queue")

# What a queued job (q) may have to wait for, apart from a slot and its owner's turn. A retry further away than the longest wait was
# scheduled before the clock was set back.
_WAITS = """
    NOT EXISTS (SELECT 1 FROM dependencies d JOIN jobs n ON n.id = d.needs WHERE d.job = q.id AND n.state <> 'succeeded')
    AND coalesce(start_at, 0) <= :now AND (coalesce(retry_at, 0) <= :now OR retry_at > :now + :longest)
    AND (NOT :paused OR forced)
"""
_ORDER = """
WITH ready AS MATERIALIZED (SELECT seq, priority, owner, forced FROM jobs q WHERE {where}),
     owners AS MATERIALIZED (  -- otherwise SQLite would read all jobs once for each ready one
        SELECT owner, (SELECT count(*) FROM jobs r WHERE r.state = 'running' AND r.lane = :lane AND r.owner IS o.owner) AS running,
               (SELECT max(started_at) FROM jobs r WHERE r.lane = :lane AND r.owner IS o.owner) AS last
        FROM (SELECT DISTINCT owner FROM ready) o)
SELECT seq FROM ready JOIN owners ON owners.owner IS ready.owner WHERE :most = 0 OR running < :most
ORDER BY forced DESC, priority DESC, running + row_number() OVER (PARTITION BY forced, priority, ready.owner ORDER BY seq), last, seq
"""


class Full(Exception):
    """Raised by the ``fits`` of `claim`: no further job can start now."""


def order(db: Connection, lane: str, *, longest_retry_s: float = 0.0, most: int = 0) -> Iterator[int]:
    """Return the numbers (``seq``) of the queued jobs of a lane that could start now, in the order of their start.

    Args:
        longest_retry_s: the longest wait before a retry.
        most: running jobs of one owner; 0: any number.
    """
    # A store has one writer: jobs that write the same dataset run one after the other.
    where = f"""state = 'queued' AND lane = :lane AND {_WAITS} AND NOT (kind IN {WRITERS} AND EXISTS (
        SELECT 1 FROM jobs r WHERE r.kind IN {WRITERS} AND r.state = 'running' AND r.dataset = q.dataset))"""
    values = {"lane": lane, "now": time.time(), "longest": longest_retry_s, "most": most, "paused": paused(db) is not None}
    return (row[0] for row in db.execute(_ORDER.format(where=where), values).fetchall())


def claim(
    db: Connection, lane: str, fits: Callable[[Connection, Job], bool] | None = None, *, longest_retry_s: float = 0.0, most: int = 0
) -> Job | None:
    """Claim the next job of the lane that waits for nothing; None if there is none.

    ``fits``: called for one job after the other; says whether the job may start now. If it raises an `OffrlError`, the job can never start
    and fails. The claim pins the snapshot if the dataset's import had not finished at submission. The other arguments are those of `order`.
    """
    chosen = None
    for seq in order(db, lane, longest_retry_s=longest_retry_s, most=most):
        if fits is None:
            chosen = seq
            break
        job = Job.of(db.execute("SELECT * FROM jobs WHERE seq = ?", (seq,)).fetchone())
        try:
            if fits(db, job):
                chosen = seq
                break
        except Full:
            break
        except OffrlError as error:
            move(db, job, JobState.FAILED, reason=error.message, error=to_wire(error))
        except Exception as error:  # one job must not block all others
            log.exception("job %s cannot be placed", job.id)
            unplaced = InternalError(f"the job cannot be placed: {type(error).__name__}", hint="the daemon's log holds the traceback")
            move(db, job, JobState.FAILED, reason=unplaced.message, error=to_wire(unplaced))
    if chosen is None:
        return None
    row = db.execute(
        """
        UPDATE jobs SET state = 'running', attempt = attempt + 1, intent = '', reason = '', error = NULL, eta_s = NULL, started_at = ?,
               retry_at = NULL, forced = 0,
               snapshot = coalesce(snapshot, CASE WHEN kind IN ('train', 'dataset_export')
                                             THEN (SELECT snapshot FROM datasets WHERE name = jobs.dataset) END)
        WHERE seq = ? RETURNING *
        """,
        (time.time(), chosen),
    ).fetchone()
    job = Job.of(row)
    events.add(db, job, "state", JobState.RUNNING)
    return job


def next_start(db: Connection, since: float = math.inf) -> float | None:
    """Return the next scheduled start (seconds since the epoch); None if there is none.

    ``since``: an earlier reading of the clock. A start after either reading counts: somebody may have set the clock in between.
    """
    return db.execute(
        "SELECT min(max(coalesce(start_at, 0), coalesce(retry_at, 0))) FROM jobs"
        " WHERE state = 'queued' AND max(coalesce(start_at, 0), coalesce(retry_at, 0)) > ?",
        (min(since, time.time()),),
    ).fetchone()[0]


def keep_peak(db: Connection, job: str, device_bytes: int) -> None:
    """Record the peak of the job's memory use on a card, for the placement of its next attempt."""
    db.execute(
        "INSERT INTO peaks SELECT id, ?2 FROM jobs WHERE id = ?1 ON CONFLICT (job) DO UPDATE SET device_bytes = max(device_bytes, ?2)",
        (job, device_bytes),
    )


def sizes(db: Connection, job: Job) -> tuple[int, int | None]:
    """Bytes of the job's dataset, and the peak that `keep_peak` has noted."""
    dataset = db.execute("SELECT json_extract(info, '$.bytes') FROM datasets WHERE name = ?", (job.dataset,)).fetchone()
    peak = db.execute("SELECT device_bytes FROM peaks WHERE job = ?", (job.id,)).fetchone()
    return (int(dataset[0] or 0) if dataset is not None else 0), (peak[0] if peak is not None else None)


def running(db: Connection) -> list[Job]:
    """Return the jobs that are running according to the queue."""
    return [Job.of(row) for row in db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY seq")]
