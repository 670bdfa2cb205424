"""Which job starts next, and what its start writes down.

Higher priority first. Among jobs of one priority the owners take turns: the one with the fewest running jobs in the lane, then the one
whose last start is longest ago; each owner's jobs in the order of submission. A job that somebody told to start goes before all.
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

# What a queued job (q) may have to wait for beside a place and its owner's turn. A retry that is further away than the longest wait is
# of before the clock was set back.
_WAITS = """
    NOT EXISTS (SELECT 1 FROM dependencies d JOIN jobs n ON n.id = d.needs WHERE d.job = q.id AND n.state <> 'succeeded')
    AND coalesce(start_at, 0) <= :now AND (coalesce(retry_at, 0) <= :now OR retry_at > :now + :longest)
    AND (NOT :paused OR forced)
"""
_ORDER = """
WITH ready AS MATERIALIZED (SELECT seq, priority, owner, forced FROM jobs q WHERE {where}),
     owners AS MATERIALIZED (  -- else SQLite would look at all jobs once for each that is ready
        SELECT owner, (SELECT count(*) FROM jobs r WHERE r.state = 'running' AND r.lane = :lane AND r.owner IS o.owner) AS running,
               (SELECT max(started_at) FROM jobs r WHERE r.lane = :lane AND r.owner IS o.owner) AS last
        FROM (SELECT DISTINCT owner FROM ready) o)
SELECT seq FROM ready JOIN owners ON owners.owner IS ready.owner WHERE :most = 0 OR running < :most
ORDER BY forced DESC, priority DESC, running + row_number() OVER (PARTITION BY forced, priority, ready.owner ORDER BY seq), last, seq
"""


class Full(Exception):
    """Raised by the ``fits`` of `claim`: no further job can start now."""


def order(db: Connection, lane: str, *, longest_retry_s: float = 0.0, most: int = 0) -> Iterator[int]:
    """The numbers (``seq``) of the queued jobs of a lane that could start now, in the order in which they will.

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
    """Take the next job of the lane that waits for nothing. None: nothing to do.

    ``fits``: asked about one job after the other, whether it may start now; an `OffrlError` of it fails the job, which can never start.
    A snapshot that was not there at submission (its import ran) is pinned now. The others are those of `order`.
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
        except Exception as error:  # one job must not keep all others from starting
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
    """The next time (seconds since the epoch) at which a job that waits for one may start; None where none does.

    since: an earlier look at the clock, which may have been set in the meantime: a job that waited by either of the two counts.
    """
    return db.execute(
        "SELECT min(max(coalesce(start_at, 0), coalesce(retry_at, 0))) FROM jobs"
        " WHERE state = 'queued' AND max(coalesce(start_at, 0), coalesce(retry_at, 0)) > ?",
        (min(since, time.time()),),
    ).fetchone()[0]


def keep_peak(db: Connection, job: str, device_bytes: int) -> None:
    """Note the largest use of a card's memory that the job has shown: its next attempt is placed by it."""
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
    """The jobs that are running as far as the queue knows."""
    return [Job.of(row) for row in db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY seq")]
