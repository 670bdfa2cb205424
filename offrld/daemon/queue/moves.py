"""The one place where a job changes its state, with the event that reports the change."""

from __future__ import annotations

import json
import time

from offrl.errors import Conflict, to_wire
from offrl.job import TRANSITIONS, JobState
from offrld.daemon.queue import events
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find

UNFINISHED = "('queued', 'running', 'paused')"


def move(
    db: Connection,
    job: Job,
    state: JobState,
    *,
    reason: str = "",
    error: dict[str, str] | None = None,
    crashes: int | None = 0,
    retry_at: float | None = None,
    message: str = "",
) -> None:
    """Change the state and add its event. If the job did not succeed, the jobs that wait for it fail, too.

    Args:
        crashes: attempts in a row that crashed, so far; None: unchanged.
        retry_at: when a queued job may start again, seconds since the epoch.
        message: text of the event; by default the reason.
    """
    if state not in TRANSITIONS[job.state]:
        raise Conflict(f"job {job.id} is {job.state} and cannot become {state}")
    db.execute(
        "UPDATE jobs SET state = ?, intent = '', reason = ?, error = ?, eta_s = NULL, finished_at = ?, retry_at = ?, forced = 0,"
        " crashes = coalesce(?, crashes) WHERE seq = ?",
        (str(state), reason, json.dumps(error) if error else None, time.time() if state.ended else None, retry_at, crashes, job.seq),
    )
    events.add(db, job, "state", state, message=message or reason, step=job.step, steps=job.steps)
    db.schedule = True
    if state in (JobState.FAILED, JobState.CANCELLED):
        for row in db.execute(
            "SELECT q.* FROM jobs q JOIN dependencies d ON d.job = q.id WHERE d.needs = ? AND q.state = 'queued'", (job.id,)
        ).fetchall():
            _fail_waiting(db, Job.of(row))
    elif state == JobState.QUEUED and broken(db, job.id):
        _fail_waiting(db, find(db, job.id))


def broken(db: Connection, job: str) -> list[tuple[str, JobState]]:
    """Return the jobs that ``job`` waits for in vain, with their states."""
    rows = db.execute(
        "SELECT n.id, n.state FROM dependencies d JOIN jobs n ON n.id = d.needs WHERE d.job = ? AND n.state IN ('failed', 'cancelled')",
        (job,),
    )
    return [(row[0], JobState(row[1])) for row in rows]


def word(state: JobState) -> str:
    """Return the state as it reads after "has"."""
    return {JobState.CANCELLED: "been cancelled"}.get(state, str(state))


def _fail_waiting(db: Connection, job: Job) -> None:
    if failed := broken(db, job.id):
        needed, state = failed[0]
        why = Conflict(f"it waited for job {needed}, which has {word(state)}", hint=f"`offrl retry {needed}`, then `offrl retry {job.id}`")
        move(db, job, JobState.FAILED, reason=why.message, error=to_wire(why))
