"""Submission of a job: its checks, the jobs that it waits for, and the snapshot that it pins."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence

from offrl.errors import Conflict, InvalidInput, LimitReached, Unknown, nearest
from offrl.job import (
    KINDS,
    TRAINS,
    WRITES_DATASET,
    CollectSpec,
    DatasetExportSpec,
    ExportSpec,
    ImportSpec,
    JobState,
    TrainOnlineSpec,
    TrainSpec,
)
from offrld.daemon.config import Limits
from offrld.daemon.queue import events
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import SPEC, Spec, find
from offrld.daemon.queue.moves import UNFINISHED, word

WRITERS = f"({', '.join(repr(kind) for kind in WRITES_DATASET)})"  # in SQL; one such job at a time for each dataset
_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_SIGNS = _LETTERS + "23456789"


def new_id() -> str:
    """Return a new id: eight characters without look-alikes; the first is a letter, so that no tool reads it as a number."""
    return secrets.choice(_LETTERS) + "".join(secrets.choice(_SIGNS) for _ in range(7))


# ------------------------------------------------------------------------------------------------------------------- submit
def submit(
    db: Connection,
    spec: Spec,
    *,
    owner: str | None = None,
    priority: int = 0,
    after: Sequence[str] = (),
    key: str | None = None,
    start_at: float | None = None,
    limits: Limits = Limits(),
    repeats: tuple[str, str | None] | None = None,
) -> tuple[str, bool]:
    """Queue a job; return its id and True, or the id of the owner's job with this ``key`` and False.

    Args:
        start_at: earliest start, seconds since the epoch.
        repeats: for a rerun, the job that it repeats and that job's snapshot of the dataset.

    Raises `Unknown`, `Conflict`, `LimitReached`.
    """
    if key is not None and (earlier := by_key(db, owner, key, spec)) is not None:
        return earlier, False
    check_limits(db, owner, limits)
    needs = list(dict.fromkeys(after))
    for needed in needs:
        state = find(db, needed).state
        if state in (JobState.FAILED, JobState.CANCELLED):
            raise Conflict(f"job {needed} has {word(state)}, nothing can wait for its success", hint=f"`offrl retry {needed}` first")
    dataset = snapshot = source = None
    values = spec.model_dump(mode="json")
    if isinstance(spec, TrainSpec | DatasetExportSpec):
        dataset = spec.dataset
        snapshot, pending = pin_dataset(db, dataset)
        if repeats is not None and repeats[1] is not None:
            snapshot = repeats[1]
        needs += [job for job in pending if job not in needs]
    elif isinstance(spec, ImportSpec):
        dataset = spec.dataset
        needs += [job for job in import_target(db, spec) if job not in needs]
    elif isinstance(spec, CollectSpec | TrainOnlineSpec):
        dataset = spec.dataset
        needs += [job for job in _steps_target(db, spec) if job not in needs]
    elif isinstance(spec, ExportSpec):
        origin = find(db, spec.job)
        if origin.kind not in TRAINS:
            raise InvalidInput(f"job {spec.job} is of kind {origin.kind}, only a train job has a policy")
        source, dataset = origin.id, origin.dataset
        if spec.seed is not None and spec.seed not in origin.spec["seeds"]:
            trained = ", ".join(map(str, origin.spec["seeds"][:40]))
            raise InvalidInput(f"job {spec.job} has no seed {spec.seed}", hint=f"trained seeds: {trained}")
    job = new_id()
    steps = spec.steps if isinstance(spec, TrainSpec | CollectSpec | TrainOnlineSpec) else 0
    db.execute(
        "INSERT INTO jobs (id, state, kind, lane, priority, owner, key, spec, after, dataset, snapshot, source, steps, start_at, rerun_of,"
        " created_at) VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job,
            spec.kind,
            KINDS[spec.kind].lane,
            priority,
            owner,
            key,
            json.dumps(values),
            json.dumps(needs),
            dataset,
            snapshot,
            source,
            steps,
            start_at,
            repeats[0] if repeats is not None else None,
            time.time(),
        ),
    )
    db.executemany("INSERT INTO dependencies (job, needs) VALUES (?, ?)", [(job, needed) for needed in needs])
    events.add(db, find(db, job), "state", JobState.QUEUED)
    db.schedule = True
    return job, True


def by_key(db: Connection, owner: str | None, key: str, spec: Spec) -> str | None:
    """Return the job that the owner submitted with ``key``, or None. Raises `Conflict` if its specification differs.

    A job from before jobs had owners may be anybody's.
    """
    row = db.execute(
        "SELECT id, spec FROM jobs WHERE key = ? AND (owner IS ? OR owner IS NULL) ORDER BY owner IS NULL", (key, owner)
    ).fetchone()
    if row is None:
        return None
    if SPEC.validate_json(row["spec"]) != spec:  # parsed, because the spec of an older daemon lacks newer fields
        raise Conflict(f"the key {key!r} belongs to job {row['id']}, which has another specification", hint="use another key")
    return str(row["id"])


def check_limits(db: Connection, owner: str | None, limits: Limits, *, counted: bool = False) -> None:
    """Raise `LimitReached`, naming the setting, if as many jobs as it allows have not ended. ``counted``: the new job is among them.

    A full queue still takes a job of an owner who has less than an equal share of it: nobody fills it for the others.
    """
    unfinished = f"FROM jobs WHERE state IN {UNFINISHED}"
    hint = "wait until some of them have ended"

    def own() -> int:
        """Unfinished jobs of the owner."""
        return int(db.execute(f"SELECT count(*) {unfinished} AND owner IS ?", (owner,)).fetchone()[0]) - counted

    if limits.unfinished_per_owner and (count := own()) >= limits.unfinished_per_owner:
        raise LimitReached(
            f"{owner!r} has {count} unfinished jobs, as many as limits.unfinished_per_owner = {limits.unfinished_per_owner} allows",
            hint=hint,
        )
    total = int(db.execute(f"SELECT count(*) {unfinished}").fetchone()[0]) - counted
    if 0 < limits.unfinished <= total:
        others = int(db.execute(f"SELECT count(DISTINCT owner) {unfinished} AND owner IS NOT ?", (owner,)).fetchone()[0])
        if (count := own()) >= max(1, limits.unfinished // (others + 1)):
            raise LimitReached(
                f"the queue has {total} unfinished jobs, as many as limits.unfinished = {limits.unfinished} allows, and "
                f"{owner!r} has {count} of them, its share",
                hint=hint,
            )


def pin_dataset(db: Connection, dataset: str) -> tuple[str | None, list[str]]:
    """Return the dataset's snapshot; or None and the import that creates it, for which the job then waits."""
    row = db.execute("SELECT snapshot FROM datasets WHERE name = ?", (dataset,)).fetchone()
    if row is not None:
        return row[0], []
    if pending := _writer(db, dataset):
        return None, pending
    names = [row[0] for row in db.execute("SELECT name FROM datasets")]
    raise Unknown(f"no dataset {dataset!r}", hint=nearest(dataset, names) or "add one with `offrl datasets add NAME SOURCE`")


def _writer(db: Connection, dataset: str, kinds: str = WRITERS) -> list[str]:
    """The first unfinished job of these kinds that writes the dataset; empty if there is none."""
    rows = db.execute(
        f"SELECT id FROM jobs WHERE kind IN {kinds} AND dataset = ? AND state IN {UNFINISHED} ORDER BY seq LIMIT 1", (dataset,)
    )
    return [row[0] for row in rows]


def _steps_target(db: Connection, spec: CollectSpec | TrainOnlineSpec) -> list[str]:
    """Return the import that a job must wait for before it adds steps to its dataset."""
    if isinstance(spec, TrainOnlineSpec) and spec.offline is not None and pin_dataset(db, spec.offline)[0] is None:
        raise Conflict(f"dataset {spec.offline!r}, which --offline names, does not exist yet", hint="wait for its import")
    if isinstance(spec, CollectSpec) and spec.upload is not None:
        _check_upload_free(db, spec.upload)
    if spec.dataset is None:
        return []
    there = db.execute("SELECT 1 FROM datasets WHERE name = ?", (spec.dataset,)).fetchone() is not None
    if there and spec.limit is not None:
        raise Conflict(
            f"dataset {spec.dataset!r} already exists, and a limit is only for a new one", hint="leave it out, or choose another name"
        )
    return [] if there else _writer(db, spec.dataset, "('import')")


def _check_upload_free(db: Connection, upload: str) -> None:
    user = db.execute(
        f"SELECT id FROM jobs WHERE kind IN {WRITERS} AND state IN {UNFINISHED} AND json_extract(spec, '$.upload') = ?", (upload,)
    ).fetchone()
    if user is not None:
        raise Conflict(f"upload {upload} is already used by job {user[0]}")


def import_target(db: Connection, spec: ImportSpec) -> list[str]:
    """Check that the import may create its dataset, or append to it; return the job that it must wait for."""
    there = db.execute("SELECT 1 FROM datasets WHERE name = ?", (spec.dataset,)).fetchone() is not None
    pending = _writer(db, spec.dataset)
    if not spec.append:
        if there:
            raise Conflict(
                f"dataset {spec.dataset!r} exists", hint=f"choose another name, remove it, or `offrl datasets append {spec.dataset} SOURCE`"
            )
        if pending:
            raise Conflict(f"dataset {spec.dataset!r} is being created by job {pending[0]}", hint="wait for it, or cancel it")
    elif not there and not pending:
        pin_dataset(db, spec.dataset)  # raises Unknown
    if spec.upload is not None:
        _check_upload_free(db, spec.upload)
    return [] if there else pending
