"""One row of the jobs table as an object, and as the `JobInfo` that clients see."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from offrl.errors import Unknown, nearest
from offrl.job import DatasetExportSpec, ExportSpec, ImportSpec, JobSpec, JobState, TrainSpec
from offrl.wire import JobInfo
from offrld.daemon.database import Connection

SPEC: TypeAdapter[TrainSpec | ImportSpec | ExportSpec | DatasetExportSpec] = TypeAdapter(JobSpec)
Spec = TrainSpec | ImportSpec | ExportSpec | DatasetExportSpec


@dataclass(frozen=True)
class Job:
    """A job as the queue holds it. ``source`` is the train job that an export reads, ``seq`` the order of submission."""

    seq: int
    id: str
    kind: str
    lane: str
    state: JobState
    priority: int
    owner: str | None
    key: str | None
    spec: dict[str, Any]
    after: list[str]
    dataset: str | None
    snapshot: str | None
    source: str | None
    rerun_of: str | None
    attempt: int
    start_at: float | None
    retry_at: float | None
    crashes: int
    forced: bool
    kept: bool
    intent: str
    reason: str
    error: dict[str, str] | None
    step: int
    steps: int
    updates_per_second: float | None
    eta_s: float | None
    metrics: dict[str, dict[str, float]]
    events: int
    events_offset: int
    created_at: float
    started_at: float | None
    finished_at: float | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Job:
        values = dict(row)
        for name in ("spec", "after", "error", "metrics"):
            values[name] = json.loads(values[name]) if values[name] is not None else None
        values.update(state=JobState(values["state"]), forced=bool(values["forced"]), kept=bool(values["kept"]))
        return cls(**values)

    def info(self, waits_for: list[str] = [], *, spec: bool = True) -> JobInfo:  # noqa: B006  never changed
        """What clients see. ``waits_for``: jobs that have to succeed before this one starts."""
        reason = self.reason
        if self.state == JobState.QUEUED and waits_for:
            reason = f"waits for {', '.join(waits_for)}"
        elif self.state == JobState.RUNNING and self.intent in ("pause", "cancel"):
            reason = "pausing" if self.intent == "pause" else "cancelling"
        # constructed, not validated: the values are our own, and a list has a thousand of them
        return JobInfo.model_construct(
            job=self.id, kind=self.kind, state=self.state, reason=reason, error=self.error,
            algorithm=self.spec.get("algorithm"), dataset=self.dataset, steps=self.steps, step=self.step,
            updates_per_second=self.updates_per_second, eta_s=self.eta_s, metrics=self.metrics,
            seeds=list(self.spec.get("seeds", [])), priority=self.priority, after=self.after, attempt=self.attempt,
            created_at=self.created_at, started_at=self.started_at, finished_at=self.finished_at, owner=self.owner,
            spec=self.spec if spec else {},
        )  # fmt: skip


def find(db: Connection, job: str) -> Job:
    """The job of that id; `Unknown` with the nearest known one."""
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
    if row is None:
        known = [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1000")]
        raise Unknown(f"no job {job!r}", hint=nearest(job, known) or "there are no jobs yet")
    return Job.of(row)


def waits_for(db: Connection) -> dict[str, list[str]]:
    """For every queued job the jobs that it still waits for."""
    found: dict[str, list[str]] = {}
    for row in db.execute(
        "SELECT d.job, d.needs FROM jobs q JOIN dependencies d ON d.job = q.id JOIN jobs n ON n.id = d.needs"
        " WHERE q.state = 'queued' AND n.state <> 'succeeded' ORDER BY n.seq"
    ):
        found.setdefault(row[0], []).append(row[1])
    return found


def info(db: Connection, job: str) -> JobInfo:
    """What clients see of one job; `Unknown`."""
    found = find(db, job)
    return found.info(waits_for(db).get(job, []) if found.state == JobState.QUEUED and found.after else [])


def infos(db: Connection, kind: str | None, limit: int) -> tuple[list[JobInfo], int]:
    """The newest ``limit`` jobs in order of submission, without their specs, and how many more there are.

    ``kind``: one kind, "all", or None for all but imports.
    """
    where, values = {
        None: ("kind <> 'import'", ()), "all": ("1", ()),
    }.get(kind, ("kind = ?", (kind,)))  # fmt: skip
    rows = db.execute(f"SELECT * FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ?", (*values, limit)).fetchall()
    total = db.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()[0]
    waiting = waits_for(db)
    jobs = [Job.of(row) for row in reversed(rows)]
    return [job.info(waiting.get(job.id, []), spec=False) for job in jobs], total - len(jobs)
