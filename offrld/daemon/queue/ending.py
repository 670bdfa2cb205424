"""A worker's news and its end, taken over into the queue; a crash is tried again, after a wait that grows."""

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
    """Take over what the worker of that attempt has written; True where more is waiting."""
    found = find(db, job)
    if found.state != JobState.RUNNING or found.attempt != attempt:
        return False
    return events.take_over(db, found, path)[1]


def finish(db: Connection, job: str, attempt: int, path: Path | None, how: Exit, retry: Retry = Retry(attempts=1)) -> Job:
    """The worker of that attempt is gone: take over its last lines (of ``path``) and decide what has become of the job."""
    found = find(db, job)
    if found.state != JobState.RUNNING or found.attempt != attempt:
        return found
    end, more = events.take_over(db, found, path) if path is not None else (None, False)
    while path is not None and more:
        later, more = events.take_over(db, find(db, job), path)
        end = later or end
    if end is None and how.last_line:  # where the run folder could not be written (a full disk), the end came by the pipe only
        end = events.take_line(db, found, how.last_line) if b'"end"' in how.last_line else None
    state, reason, error = outcome(end, how, found.intent)
    found = find(db, job)
    if state == JobState.FAILED and error is not None and error.get("code") in RETRIED:
        _crashed(db, found, reason, error, retry)
    else:
        # A worker that was only stopped says nothing about the crashes before it.
        move(db, found, state, reason=reason, error=error, crashes=None if state == JobState.QUEUED else 0)
    return find(db, job)


def _crashed(db: Connection, job: Job, reason: str, error: dict[str, Any], retry: Retry) -> None:
    lasted = time.time() - (job.started_at or 0.0)
    crashes = 1 if lasted >= retry.reset_s else job.crashes + 1
    if crashes >= retry.attempts:
        told = f"{reason} (attempt {crashes} of {retry.attempts})" if crashes > 1 else reason
        move(db, job, JobState.FAILED, reason=told, error=error)
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
        said=f"{attempt} in {wait:g} s: {reason}",
    )
