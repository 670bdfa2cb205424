"""Progress and end of an attempt, as the queue records them; a crashed job is retried, after growing waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from offrl.job import JobState
from offrld.daemon.config import Retry
from offrld.daemon.queue import events
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find
from offrld.daemon.queue.moves import move
from offrld.daemon.queue.outcome import RETRIED, Exit, outcome


def progress(db: Connection, job: str, attempt: int, path: Path) -> bool:
    """Record what the worker of that attempt has written; return True if more is waiting."""
    record = find(db, job)
    if record.state != JobState.RUNNING or record.attempt != attempt:
        return False
    return events.take_over(db, record, path)[1]


def finish(db: Connection, job: str, attempt: int, path: Path | None, worker_exit: Exit, retry: Retry = Retry(attempts=1)) -> Job:
    """End the attempt: record the worker's last lines (in ``path``), decide the job's outcome, and return the job."""
    record = find(db, job)
    if record.state != JobState.RUNNING or record.attempt != attempt:
        return record
    end, more = events.take_over(db, record, path) if path is not None else (None, False)
    while path is not None and more:
        later, more = events.take_over(db, find(db, job), path)
        end = later or end
    if end is None and worker_exit.last_line:  # on a full disk, the end line comes through the pipe only
        end = events.take_line(db, record, worker_exit.last_line) if b'"end"' in worker_exit.last_line else None
    state, reason, error = outcome(end, worker_exit, record.intent)
    record = find(db, job)
    if state == JobState.FAILED and error is not None and error.get("code") in RETRIED:
        _crashed(db, record, reason, error, retry)
    else:
        # A worker that was only stopped leaves the count of crashes as it is.
        move(db, record, state, reason=reason, error=error, crashes=None if state == JobState.QUEUED else 0)
    return find(db, job)


def _crashed(db: Connection, job: Job, reason: str, error: dict[str, Any], retry: Retry) -> None:
    lasted = time.time() - (job.started_at or 0.0)
    crashes = 1 if lasted >= retry.reset_s else job.crashes + 1
    if crashes >= retry.attempts:
        last = f"{reason} (attempt {crashes} of {retry.attempts})" if crashes > 1 else reason
        move(db, job, JobState.FAILED, reason=last, error=error)
        return
    wait = retry.wait_s(crashes)
    attempt = f"attempt {crashes + 1} of {retry.attempts}"
    move(
        db,
        job,
        JobState.QUEUED,
        reason=f"{attempt}: {reason}",
        error=error,
        crashes=crashes,
        retry_at=time.time() + wait,
        message=f"{attempt} in {wait:g} s: {reason}",
    )
