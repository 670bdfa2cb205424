"""The life of a job in the queue: submit, claim, control, finish. Each function is one transaction on the database.

A claim never deletes or hides the row; every change of state writes its numbered event in the same transaction.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from offrl.errors import Conflict, InvalidInput, Unknown, nearest, to_wire
from offrl.job import TRANSITIONS, DatasetExportSpec, ExportSpec, ImportSpec, JobState, TrainSpec
from offrl_store.errors import OffrlError
from offrld.daemon import events
from offrld.daemon.database import Connection
from offrld.daemon.records import SPEC, Job, Spec, find
from offrld.daemon.supervision import Exit, outcome

UNFINISHED = "('queued', 'running', 'paused')"
LANES = {"train": "train", "import": "light", "export": "light", "dataset_export": "light"}
_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_SIGNS = _LETTERS + "23456789"


def new_id() -> str:
    """Eight signs without look-alikes; a letter first, so that no tool takes it for a number."""
    return secrets.choice(_LETTERS) + "".join(secrets.choice(_SIGNS) for _ in range(7))


# ------------------------------------------------------------------------------------------------------------------- submit
def submit(
    db: Connection, spec: Spec, *, owner: str | None = None, priority: int = 0, after: list[str] = [], key: str | None = None,  # noqa: B006
) -> tuple[str, bool]:  # fmt: skip
    """Put a job into the queue; returns its id, and False where ``key`` named one of the owner's that was there.

    Raises `Unknown`, `Conflict`.
    """
    if key is not None and (known := by_key(db, owner, key, spec)) is not None:
        return known, False
    needs = list(dict.fromkeys(after))
    for needed in needs:
        state = find(db, needed).state
        if state in (JobState.FAILED, JobState.CANCELLED):
            raise Conflict(f"job {needed} has {_word(state)}, nothing can wait for its success", hint=f"`offrl retry {needed}` first")
    dataset = snapshot = source = None
    values = spec.model_dump(mode="json")
    if isinstance(spec, TrainSpec | DatasetExportSpec):
        dataset = spec.dataset
        snapshot, pending = _pin(db, dataset)
        needs += [job for job in pending if job not in needs]
    elif isinstance(spec, ImportSpec):
        dataset = spec.dataset
        needs += [job for job in _import_target(db, spec) if job not in needs]
    elif isinstance(spec, ExportSpec):
        origin = find(db, spec.job)
        if origin.kind != "train":
            raise InvalidInput(f"job {spec.job} is of kind {origin.kind}, only a train job has a policy")
        source, dataset = origin.id, origin.dataset
        if spec.seed is not None and spec.seed not in origin.spec["seeds"]:
            trained = ", ".join(map(str, origin.spec["seeds"][:40]))
            raise InvalidInput(f"job {spec.job} has no seed {spec.seed}", hint=f"trained seeds: {trained}")
    job = new_id()
    steps = spec.steps if isinstance(spec, TrainSpec) else 0
    db.execute(
        "INSERT INTO jobs (id, kind, lane, state, priority, owner, key, spec, after, dataset, snapshot, source, steps, created_at)"
        " VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (job, spec.kind, LANES[spec.kind], priority, owner, key, json.dumps(values), json.dumps(needs), dataset, snapshot, source, steps,
         time.time()),
    )  # fmt: skip
    db.executemany("INSERT INTO dependencies (job, needs) VALUES (?, ?)", [(job, needed) for needed in needs])
    events.add(db, find(db, job), "state", JobState.QUEUED)
    db.schedule = True
    return job, True


def by_key(db: Connection, owner: str | None, key: str, spec: Spec) -> str | None:
    """The job that its owner submitted under ``key``; `Conflict` where that was another specification.

    One of before jobs had owners may be anybody's.
    """
    row = db.execute(
        "SELECT id, spec FROM jobs WHERE key = ? AND (owner IS ? OR owner IS NULL) ORDER BY owner IS NULL", (key, owner)
    ).fetchone()
    if row is None:
        return None
    if SPEC.validate_json(row["spec"]) != spec:  # compared as specifications: an older daemon's lacks the fields that were added since
        raise Conflict(f"the key {key!r} belongs to job {row['id']}, which asked for something else", hint="take another --key")
    return str(row["id"])


def _pin(db: Connection, dataset: str) -> tuple[str | None, list[str]]:
    """The dataset's snapshot; or None and the import that will make it, which the job then waits for."""
    row = db.execute("SELECT snapshot FROM datasets WHERE name = ?", (dataset,)).fetchone()
    if row is not None:
        return row[0], []
    if pending := _imports(db, dataset):
        return None, pending[:1]
    known = [row[0] for row in db.execute("SELECT name FROM datasets")]
    raise Unknown(f"no dataset {dataset!r}", hint=nearest(dataset, known) or "add one with `offrl datasets add NAME SOURCE`")


def _imports(db: Connection, dataset: str) -> list[str]:
    rows = db.execute(f"SELECT id FROM jobs WHERE kind = 'import' AND dataset = ? AND state IN {UNFINISHED} ORDER BY seq", (dataset,))
    return [row[0] for row in rows]


def _import_target(db: Connection, spec: ImportSpec) -> list[str]:
    """Check that the import may make, or append to, its dataset; returns what it has to wait for."""
    there = db.execute("SELECT 1 FROM datasets WHERE name = ?", (spec.dataset,)).fetchone() is not None
    pending = _imports(db, spec.dataset)
    if not spec.append:
        if there:
            raise Conflict(
                f"dataset {spec.dataset!r} exists", hint=f"take another name, remove it, or `offrl datasets append {spec.dataset} SOURCE`"
            )
        if pending:
            raise Conflict(f"dataset {spec.dataset!r} is being imported by job {pending[0]}", hint="wait for it, or cancel it")
    elif not there and not pending:
        _pin(db, spec.dataset)  # raises Unknown
    if spec.upload is not None:
        user = db.execute(
            f"SELECT id FROM jobs WHERE kind = 'import' AND state IN {UNFINISHED} AND json_extract(spec, '$.upload') = ?", (spec.upload,)
        ).fetchone()
        if user is not None:
            raise Conflict(f"upload {spec.upload} is used by job {user[0]} already")
    return [] if there else pending[:1]


# -------------------------------------------------------------------------------------------------------------------- claim
def claim(db: Connection, lane: str, fits: Callable[[Connection, Job], bool] | None = None) -> Job | None:
    """Take the next job of the lane that waits for nothing: higher priority first, then in order of submission. None: nothing to do.

    ``fits``: asked about one job after the other, whether it may start now; an `OffrlError` of it fails the job, which can never start.
    A snapshot that was not there at submission (its import ran) is pinned now. Imports into one dataset run one after the other.
    """
    waiting = db.execute(
        """
        SELECT * FROM jobs q WHERE state = 'queued' AND lane = ?
        AND NOT EXISTS (SELECT 1 FROM dependencies d JOIN jobs n ON n.id = d.needs WHERE d.job = q.id AND n.state <> 'succeeded')
        AND NOT (kind = 'import' AND EXISTS (
            SELECT 1 FROM jobs r WHERE r.kind = 'import' AND r.state = 'running' AND r.dataset = q.dataset))
        ORDER BY priority DESC, seq
        """,
        (lane,),
    )
    never: list[tuple[Job, OffrlError]] = []
    chosen = None
    for row in waiting:
        try:
            if fits is None or fits(db, Job.of(row)):
                chosen = row["seq"]
                break
        except Full:
            break
        except OffrlError as error:
            never.append((Job.of(row), error))
    waiting.close()
    for job, error in never:
        _move(db, job, JobState.FAILED, reason=str(error), error=to_wire(error))
    if chosen is None:
        return None
    row = db.execute(
        """
        UPDATE jobs SET state = 'running', attempt = attempt + 1, intent = '', reason = '', error = NULL, eta_s = NULL, started_at = ?,
               snapshot = coalesce(snapshot, CASE WHEN kind IN ('train', 'dataset_export')
                                             THEN (SELECT snapshot FROM datasets WHERE name = jobs.dataset) END)
        WHERE seq = ? RETURNING *
        """,
        (time.time(), chosen),
    ).fetchone()
    job = Job.of(row)
    events.add(db, job, "state", JobState.RUNNING)
    return job


class Full(Exception):
    """Raised by the ``fits`` of `claim`: no further job can start now."""


def keep_peak(db: Connection, job: str, device_bytes: int) -> None:
    """Note the largest use of a card's memory that the job has shown: its next attempt is placed by it."""
    db.execute(
        "INSERT INTO peaks SELECT id, ?2 FROM jobs WHERE id = ?1"
        " ON CONFLICT (job) DO UPDATE SET device_bytes = max(device_bytes, ?2)", (job, device_bytes),
    )  # fmt: skip


def sizes(db: Connection, job: Job) -> tuple[int, int | None]:
    """Bytes of the job's dataset, and the peak that `keep_peak` has noted."""
    dataset = db.execute("SELECT json_extract(info, '$.bytes') FROM datasets WHERE name = ?", (job.dataset,)).fetchone()
    peak = db.execute("SELECT device_bytes FROM peaks WHERE job = ?", (job.id,)).fetchone()
    return (int(dataset[0] or 0) if dataset is not None else 0), (peak[0] if peak is not None else None)


def running(db: Connection) -> list[Job]:
    """The jobs that are running as far as the queue knows."""
    return [Job.of(row) for row in db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY seq")]


def progress(db: Connection, job: str, attempt: int, path: Path) -> bool:
    """Take over what the worker of that attempt has written; True where more is waiting."""
    found = find(db, job)
    if found.state != JobState.RUNNING or found.attempt != attempt:
        return False
    return events.take_over(db, found, path)[1]


def finish(db: Connection, job: str, attempt: int, path: Path, how: Exit) -> Job:
    """The worker of that attempt is gone: take over its last lines and decide what has become of the job."""
    found = find(db, job)
    if found.state != JobState.RUNNING or found.attempt != attempt:
        return found
    end, more = events.take_over(db, found, path)
    while more:
        later, more = events.take_over(db, find(db, job), path)
        end = later or end
    if end is None and how.last_line:  # where the run folder could not be written (a full disk), the end came by the pipe only
        end = events.take_line(db, found, how.last_line) if b'"end"' in how.last_line else None
    state, reason, error = outcome(end, how, found.intent)
    _move(db, find(db, job), state, reason=reason, error=error)
    return find(db, job)


# ------------------------------------------------------------------------------------------------------------------ control
def control(db: Connection, job: str, action: str, steps: int | None = None) -> tuple[Job, str]:
    """Cancel, pause, resume or retry; returns the job and what its running worker has to be told ("", "pause", "cancel").

    steps: of resume: the job's new number of updates in all.
    Asking for what is already so is no error. Raises `Conflict` where the state does not allow it.
    """
    found = find(db, job)
    if steps is not None:
        _extend(db, found, action, steps)
        return find(db, job), ""
    tell = {"cancel": _cancel, "pause": _pause, "resume": _resume, "retry": _retry}[action](db, found)
    return find(db, job), tell


def _cancel(db: Connection, job: Job) -> str:
    if job.state == JobState.RUNNING:
        _intend(db, job, "cancel")
        return "cancel"
    if job.state in (JobState.SUCCEEDED, JobState.FAILED):
        raise Conflict(f"job {job.id} has {_word(job.state)} already", hint=f"`offrl rm {job.id}` removes it")
    if job.state != JobState.CANCELLED:
        _move(db, job, JobState.CANCELLED, reason="cancelled before it ran" if job.attempt == 0 else "cancelled")
    return ""


def _pause(db: Connection, job: Job) -> str:
    if job.state.ended:
        raise Conflict(f"job {job.id} has {_word(job.state)} already")
    if job.state == JobState.RUNNING:
        if job.kind != "train":
            raise Conflict(
                f"job {job.id} is of kind {job.kind}, which cannot be paused while it runs", hint=f"`offrl cancel {job.id}` ends it"
            )
        if job.intent == "cancel":
            raise Conflict(f"job {job.id} is being cancelled")
        _intend(db, job, "pause")
        return "pause"
    if job.state == JobState.QUEUED:
        _move(db, job, JobState.PAUSED)
    return ""


def _resume(db: Connection, job: Job) -> str:
    if job.state.ended:
        succeeded = job.state == JobState.SUCCEEDED
        again = f"`offrl resume {job.id} --steps N` trains on" if succeeded else f"`offrl retry {job.id}` runs it again"
        raise Conflict(f"job {job.id} has {_word(job.state)}", hint=again)
    if job.state == JobState.PAUSED:
        _move(db, job, JobState.QUEUED)
    elif job.state == JobState.RUNNING and job.intent == "cancel":
        raise Conflict(f"job {job.id} is being cancelled")
    elif job.state == JobState.RUNNING and job.intent == "pause":
        _intend(db, job, "resume")  # the worker was told to pause: when it has, the job is queued at once
    return ""


def _extend(db: Connection, job: Job, action: str, steps: int) -> None:
    """Queue a succeeded (or paused) train job with more updates than it has done."""
    if action != "resume" or job.kind != "train":
        raise InvalidInput(f"steps={steps} is about resuming a train job", hint="`offrl resume JOB --steps N`")
    if job.state not in (JobState.SUCCEEDED, JobState.PAUSED):
        raise Conflict(f"job {job.id} is {job.state}; one that has succeeded or is paused can be given more steps",
                       hint="wait for its end" if not job.state.ended else f"`offrl retry {job.id}` first")  # fmt: skip
    if steps <= job.step:
        raise Conflict(f"job {job.id} has done {job.step} updates already", hint=f"give more than that: --steps {2 * job.step}")
    if job.dataset is not None:
        _pin(db, job.dataset)
    values = json.dumps({**job.spec, "steps": steps})
    db.execute("UPDATE jobs SET spec = ?, steps = ? WHERE seq = ?", (values, steps, job.seq))
    _move(db, find(db, job.id), JobState.QUEUED)


def _retry(db: Connection, job: Job) -> str:
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"job {job.id} is {job.state}; only a failed or cancelled one can be retried")
    for needed, state in _broken(db, job.id):
        raise Conflict(f"job {job.id} waits for {needed}, which has {_word(state)}", hint=f"`offrl retry {needed}` first")
    if job.kind in ("train", "dataset_export") and job.dataset is not None:
        _pin(db, job.dataset)
    if job.kind == "import":
        _import_target(db, ImportSpec.model_validate(job.spec))
    _move(db, job, JobState.QUEUED)
    return ""


INTENTS = {"pause": "pausing", "cancel": "cancelling", "resume": "resuming after the pause"}


def _intend(db: Connection, job: Job, intent: str) -> None:
    if job.intent != intent:
        db.execute("UPDATE jobs SET intent = ? WHERE seq = ?", (intent, job.seq))
        events.add(db, job, "message", job.state, message=INTENTS[intent])


def remove(db: Connection, job: str) -> Job:
    """Delete the row and the events of an ended job. `Conflict` naming the jobs that still need it."""
    found = find(db, job)
    if not found.state.ended:
        raise Conflict(f"job {job} is {found.state}", hint=f"`offrl cancel {job}` first")
    users = [
        row[0] for row in db.execute(
            f"SELECT id FROM jobs WHERE state IN {UNFINISHED}"
            " AND (source = ?1 OR id IN (SELECT job FROM dependencies WHERE needs = ?1 UNION SELECT job FROM uses WHERE used = ?1))",
            (job,),
        )
    ]  # fmt: skip
    if users:
        raise Conflict(f"job {job} is needed by {', '.join(users)}", hint="wait for them, or cancel them first")
    db.execute("DELETE FROM jobs WHERE seq = ?", (found.seq,))
    db.touched.add(job)
    return found


# -------------------------------------------------------------------------------------------------------------------- parts
def _move(db: Connection, job: Job, state: JobState, *, reason: str = "", error: dict[str, str] | None = None) -> None:
    """Change the state with its event; those who wait for a job that did not succeed fail with it."""
    if state not in TRANSITIONS[job.state]:
        raise Conflict(f"job {job.id} is {job.state} and cannot become {state}")
    db.execute(
        "UPDATE jobs SET state = ?, intent = '', reason = ?, error = ?, eta_s = NULL, finished_at = ? WHERE seq = ?",
        (str(state), reason, json.dumps(error) if error else None, time.time() if state.ended else None, job.seq),
    )
    events.add(db, job, "state", state, message=reason, step=job.step, steps=job.steps)
    db.schedule = True
    if state in (JobState.FAILED, JobState.CANCELLED):
        for row in db.execute(
            "SELECT q.* FROM jobs q JOIN dependencies d ON d.job = q.id WHERE d.needs = ? AND q.state = 'queued'", (job.id,)
        ).fetchall():
            _fail_waiting(db, Job.of(row))
    elif state == JobState.QUEUED and _broken(db, job.id):
        _fail_waiting(db, find(db, job.id))


def _fail_waiting(db: Connection, job: Job) -> None:
    if broken := _broken(db, job.id):
        needed, state = broken[0]
        why = Conflict(f"it waited for job {needed}, which has {_word(state)}", hint=f"`offrl retry {needed}`, then `offrl retry {job.id}`")
        _move(db, job, JobState.FAILED, reason=str(why), error=to_wire(why))


def _broken(db: Connection, job: str) -> list[tuple[str, JobState]]:
    """The jobs that ``job`` waits for in vain."""
    rows = db.execute(
        "SELECT n.id, n.state FROM dependencies d JOIN jobs n ON n.id = d.needs"
        " WHERE d.job = ? AND n.state IN ('failed', 'cancelled')", (job,),
    )  # fmt: skip
    return [(row[0], JobState(row[1])) for row in rows]


def _word(state: JobState) -> str:
    return {JobState.CANCELLED: "been cancelled"}.get(state, str(state))


