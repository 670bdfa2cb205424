"""Which ended jobs retention deletes: those beyond the number kept of a kind, and those beyond the age.

It never deletes a pinned job, a job that an unfinished one needs, a dataset, or a part of a kept job.
"""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass

from offrld.daemon.queue import users
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find

DAY_S = 86400.0


@dataclass(frozen=True)
class Expired:
    """A job that retention deletes, and why."""

    job: Job
    why: str


def expired(
    db: Connection, jobs: int, days: float, limit: int, now: float | None = None, fresh: Container[str] = ()
) -> tuple[list[Expired], bool]:
    """Return the jobs to delete, at most ``limit``, those that ended first at the front; and whether there are more.

    Args:
        jobs: ended jobs of each kind and owner that are kept; 0: any number.
        days: how long an ended job is kept; 0: for ever.
        now: seconds since the epoch; None: the time of the clock.
        fresh: jobs that are younger than ``days``, even if the clock was wrong when they ended.
    """
    now = time.time() if now is None else now
    rows = db.execute(
        """
        SELECT id, place, :days > 0 AND finished_at < :now - 86400.0 * :days AS old
        FROM (SELECT *, row_number() OVER (PARTITION BY kind, owner ORDER BY finished_at DESC, seq DESC) AS place FROM jobs
              WHERE state IN ('succeeded', 'failed', 'cancelled') AND kind <> 'removed')
        WHERE NOT pinned AND (old OR (:jobs > 0 AND place > :jobs))
        ORDER BY finished_at, seq
        """,
        {"jobs": jobs, "days": days, "now": now},
    )
    candidates: list[Expired] = []
    for row in rows:
        old = row["old"] and row["id"] not in fresh
        if not old and not (jobs and row["place"] > jobs):
            continue
        if users(db, row["id"]):
            continue
        if len(candidates) == limit:
            return candidates, True
        job = find(db, row["id"])
        candidates.append(
            Expired(job, f"ended more than {days:g} days ago" if old else f"{row['place'] - 1} {job.kind} jobs ended after it")
        )
    return candidates, False
