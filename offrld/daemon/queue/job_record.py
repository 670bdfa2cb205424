"""One row of the jobs table as an object."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from offrl.errors import Unknown, likely
from offrl.job import JobSpec, JobState, Spec
from offrld.daemon.queue.database import Connection

NEWEST = 5  # jobs that an error names
SPEC: TypeAdapter[Spec] = TypeAdapter(JobSpec)


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
    pinned: bool
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
        """Return the job of a row of the jobs table."""
        return cls.of_values(dict(zip(row.keys(), row, strict=True)))  # dict(row) takes three times as long: it looks every name up

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> Job:
        """Return the job of a row's columns, by name."""
        for name in ("spec", "after", "error", "metrics"):
            text = values[name]
            values[name] = None if text is None else [] if text == "[]" else {} if text == "{}" else json.loads(text)
        values.update(state=JobState(values["state"]), forced=bool(values["forced"]), pinned=bool(values["pinned"]))
        job = object.__new__(cls)
        job.__dict__.update(values)  # the columns are the fields: a frozen class's __init__ would take as long as all the rest
        return job


def find(db: Connection, job: str) -> Job:
    """Return the job of that id. Raises `Unknown` with the nearest known id, or the newest ones that `offrl status` lists."""
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
    if row is None:
        ids = [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1000")]
        if (close := likely(job, ids)) is not None:
            raise Unknown(f"no job {job!r}", hint=f"did you mean {close!r}?")
        newest = [row[0] for row in db.execute("SELECT id FROM jobs WHERE kind != 'import' ORDER BY seq DESC LIMIT ?", (NEWEST,))]
        raise Unknown(f"no job {job!r}", hint=f"the newest: {', '.join(newest or ids[:NEWEST])}" if ids else "there are no jobs yet")
    return Job.of(row)
