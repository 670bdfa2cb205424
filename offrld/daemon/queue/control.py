"""What users do to a job: cancel, pause, resume, retry, start, pin, remove."""

from __future__ import annotations

import json

from offrl.errors import Conflict, InvalidInput
from offrl.job import PAUSABLE, PINS_DATASET, ImportSpec, JobState, unit
from offrld.daemon.config import Limits
from offrld.daemon.queue import events, fitting
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find
from offrld.daemon.queue.moves import UNFINISHED, broken, move, word
from offrld.daemon.queue.pausing import paused
from offrld.daemon.queue.submission import check_limits, import_target, pin_dataset

PART = 5000  # events deleted in one transaction
REMOVED = "removed"  # kind of a removed job whose events are not yet deleted
INTENTS = {"pause": "pausing", "cancel": "cancelling", "resume": "resuming after the pause"}


def control(
    db: Connection, job: str, action: str, steps: int | None = None, limits: Limits = Limits(), *, operator: bool = True
) -> tuple[Job, str]:
    """Apply ``action`` to the job; return the job and the intent for its running worker ("", "pause", "cancel").

    Args:
        steps: with resume, the job's new total number of updates.
        limits: an ended job that is queued again counts as a new one of its owner.
        operator: whether the user may start a job while the queue is paused.

    An action without effect, such as pausing a paused job, is not an error. Raises `Conflict` if the state does not allow the action, and
    `LimitReached`.
    """
    before = find(db, job)
    intent = ""
    if action == "start" and not operator and (pause := paused(db)) is not None:
        raise Conflict(f"the queue is paused by {pause.by!r}", hint="an operator starts the job, or `offrl queue resume`")
    if steps is not None:
        _extend(db, before, action, steps)
    else:
        intent = ACTIONS[action](db, before)
    after = find(db, job)
    if before.state.ended and not after.state.ended:
        check_limits(db, before.owner, limits, counted=True)
    return after, intent


def remove(db: Connection, job: str) -> Job:
    """Delete the row and the events of an ended job; return it. Raises `Conflict`, naming the jobs that still need it."""
    record = find(db, job)
    if not record.state.ended:
        raise Conflict(f"job {job} is {record.state}", hint=f"`offrl cancel {job}` first")
    if record.pinned:
        raise Conflict(f"job {job} is pinned", hint=f"`offrl unpin {job}` first")
    if needing := users(db, job):
        raise Conflict(f"job {job} is needed by {fitting.names(needing)}", hint="wait for them, or cancel them first")
    if record.events <= PART:
        db.execute("DELETE FROM jobs WHERE seq = ?", (record.seq,))
    else:  # deleting its events at once would block all other writes: hide the job, `purge` deletes them part by part
        for table in ("dependencies WHERE job = ?1 OR needs", "uses WHERE job = ?1 OR used", "peaks WHERE job"):
            db.execute(f"DELETE FROM {table} = ?1", (job,))
        db.execute("UPDATE jobs SET id = '.removed-' || seq, kind = ?, key = NULL WHERE seq = ?", (REMOVED, record.seq))
    db.touched.add(job)
    return record


def purge(db: Connection) -> bool:
    """Delete a part of what is left of removed jobs; return whether there is more."""
    row = db.execute("SELECT seq FROM jobs WHERE kind = ? LIMIT 1", (REMOVED,)).fetchone()
    if row is None:
        return False
    first = db.execute("SELECT min(n) FROM events WHERE seq = ?", (row[0],)).fetchone()[0]
    if first is not None:
        db.execute("DELETE FROM events WHERE seq = ? AND n < ?", (row[0], first + PART))
    else:
        db.execute("DELETE FROM jobs WHERE seq = ?", (row[0],))
    return True


def users(db: Connection, job: str) -> list[str]:
    """Return the unfinished jobs that need this one: they wait for it, inherit its checkpoint, or export it."""
    rows = db.execute(
        f"SELECT id FROM jobs WHERE state IN {UNFINISHED}"
        " AND (source = ?1 OR id IN (SELECT job FROM dependencies WHERE needs = ?1 UNION SELECT job FROM uses WHERE used = ?1))",
        (job,),
    )
    return [row[0] for row in rows]


def _cancel(db: Connection, job: Job) -> str:
    if job.state == JobState.RUNNING:
        _intend(db, job, "cancel")
        return "cancel"
    if job.state in (JobState.SUCCEEDED, JobState.FAILED):
        raise Conflict(f"job {job.id} has already {word(job.state)}", hint=f"`offrl rm {job.id}` removes it")
    if job.state != JobState.CANCELLED:
        move(db, job, JobState.CANCELLED, reason="cancelled before it ran" if job.attempt == 0 else "cancelled")
    return ""


def _pause(db: Connection, job: Job) -> str:
    if job.state.ended:
        raise Conflict(f"job {job.id} has already {word(job.state)}")
    if job.state == JobState.RUNNING:
        if job.kind not in PAUSABLE:
            raise Conflict(
                f"job {job.id} is of kind {job.kind}, which cannot be paused while it runs", hint=f"`offrl cancel {job.id}` ends it"
            )
        if job.intent == "cancel":
            raise Conflict(f"job {job.id} is being cancelled")
        _intend(db, job, "pause")
        return "pause"
    if job.state == JobState.QUEUED:
        move(db, job, JobState.PAUSED)
    return ""


def _resume(db: Connection, job: Job) -> str:
    if job.state.ended:
        succeeded = job.state == JobState.SUCCEEDED
        again = f"`offrl resume {job.id} --steps N` trains on" if succeeded else f"`offrl retry {job.id}` runs it again"
        raise Conflict(f"job {job.id} has {word(job.state)}", hint=again)
    if job.state == JobState.PAUSED:
        move(db, job, JobState.QUEUED)
    elif job.state == JobState.RUNNING and job.intent == "cancel":
        raise Conflict(f"job {job.id} is being cancelled")
    elif job.state == JobState.RUNNING and job.intent == "pause":
        _intend(db, job, "resume")  # the worker is already pausing: once it has, the job is queued at once
    return ""


def _extend(db: Connection, job: Job, action: str, steps: int) -> None:
    """Queue a succeeded or paused job with more steps than it has done."""
    if action != "resume" or job.kind not in PAUSABLE:
        raise InvalidInput(f"steps={steps} is about resuming a job that trains or collects", hint="`offrl resume JOB --steps N`")
    if job.state not in (JobState.SUCCEEDED, JobState.PAUSED):
        raise Conflict(
            f"job {job.id} is {job.state}; one that has succeeded or is paused can be given more steps",
            hint="wait for its end" if not job.state.ended else f"`offrl retry {job.id}` first",
        )
    if steps <= job.step:
        raise Conflict(f"job {job.id} has already done {job.step} {unit(job.kind)}", hint=f"pass a larger total: --steps {2 * job.step}")
    if job.dataset is not None and job.kind in PINS_DATASET:
        pin_dataset(db, job.dataset)
    values = json.dumps({**job.spec, "steps": steps})
    db.execute("UPDATE jobs SET spec = ?, steps = ? WHERE seq = ?", (values, steps, job.seq))
    move(db, find(db, job.id), JobState.QUEUED)


def _retry(db: Connection, job: Job) -> str:
    if job.state == JobState.QUEUED and job.retry_at is not None:  # a retry is scheduled: run it now, with a fresh count of attempts
        db.execute("UPDATE jobs SET retry_at = NULL, crashes = 0, reason = '' WHERE seq = ?", (job.seq,))
        events.add(db, job, "message", job.state, message="the next attempt does not wait any longer")
        db.schedule = True
        return ""
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"job {job.id} is {job.state}; only a failed or cancelled one can be retried")
    for needed, state in broken(db, job.id):
        raise Conflict(f"job {job.id} waits for {needed}, which has {word(state)}", hint=f"`offrl retry {needed}` first")
    if job.kind in PINS_DATASET and job.dataset is not None:
        pin_dataset(db, job.dataset)
    if job.kind == "import":
        import_target(db, ImportSpec.model_validate(job.spec))
    move(db, job, JobState.QUEUED)
    return ""


def _start(db: Connection, job: Job) -> str:
    """Start the job as soon as a slot is free: before all others, before its scheduled time, and even if the queue is paused."""
    if job.state not in (JobState.QUEUED, JobState.PAUSED, JobState.RUNNING):
        raise Conflict(f"job {job.id} has {word(job.state)}", hint=f"`offrl retry {job.id}` runs it again")
    if job.state == JobState.PAUSED:
        move(db, job, JobState.QUEUED)
    if job.state != JobState.RUNNING:
        db.execute("UPDATE jobs SET start_at = NULL, retry_at = NULL, forced = 1 WHERE seq = ?", (job.seq,))
        events.add(db, job, "message", JobState.QUEUED, message="start requested")
        db.schedule = True
    return ""


def _pin(db: Connection, job: Job) -> str:
    db.execute("UPDATE jobs SET pinned = 1 WHERE seq = ?", (job.seq,))
    return ""


def _unpin(db: Connection, job: Job) -> str:
    db.execute("UPDATE jobs SET pinned = 0 WHERE seq = ?", (job.seq,))
    return ""


def _intend(db: Connection, job: Job, intent: str) -> None:
    if job.intent != intent:
        db.execute("UPDATE jobs SET intent = ? WHERE seq = ?", (intent, job.seq))
        events.add(db, job, "message", job.state, message=INTENTS[intent])


ACTIONS = {
    "cancel": _cancel, "pause": _pause, "resume": _resume, "retry": _retry, "start": _start, "pin": _pin, "unpin": _unpin,
}  # fmt: skip
