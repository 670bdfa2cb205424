"""The numbered events of a job: stored with the change that they report; lines of the worker's events.jsonl are stored exactly once."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offrl.job import JobState
from offrl.printable import counted
from offrl.wire import DatasetInfo, Event
from offrld.daemon.queue import dataset_rows
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find

PART = 1 << 20  # bytes of events.jsonl stored in one transaction
REPLY_BYTES = 1 << 19  # approximate size of the events in one reply
log = logging.getLogger("offrld.events")


def add(db: Connection, job: Job, kind: str, state: JobState, at: float | None = None, **fields: Any) -> None:
    """Append the next event of ``job``; ``fields`` are those of `wire.Event`."""
    n = db.execute("UPDATE jobs SET events = events + 1 WHERE seq = ? RETURNING events", (job.seq,)).fetchone()[0]
    body = {"time": time.time() if at is None else at, "type": kind, "state": str(state), **fields}
    db.execute("INSERT INTO events (seq, n, body) VALUES (?, ?, ?)", (job.seq, n, json.dumps(body)))
    db.touched.add(job.id)


def after(db: Connection, job: str, cursor: int, limit: int) -> tuple[list[Event], int, bool]:
    """Return the events after ``cursor``, the next cursor, and whether the job has ended and these are its last. Raises `Unknown`."""
    record = find(db, job)
    events: list[Event] = []
    size = 0
    for row in db.execute("SELECT n, body FROM events WHERE seq = ? AND n > ? ORDER BY n LIMIT ?", (record.seq, cursor, limit)):
        size += len(row["body"])
        if events and size > REPLY_BYTES:
            break
        events.append(Event(n=row["n"], job=job, **json.loads(row["body"])))
    cursor = events[-1].n if events else cursor
    return events, cursor, record.state.ended and cursor >= record.events


def take_over(db: Connection, job: Job, path: Path) -> tuple[dict[str, Any] | None, bool]:
    """Store the worker's new lines in ``path``, and how far they were read. Return its end line, if any, and whether more lines wait."""
    try:
        with path.open("rb") as file:
            file.seek(job.events_offset)
            data = file.read(PART)
            more = len(data) == PART
            if more and b"\n" not in data:  # a line longer than a part
                data += file.readline()
    except FileNotFoundError:
        return None, False
    whole, newline, _torn = data.rpartition(b"\n")
    if not newline:
        return None, False
    end = None
    for line in whole.split(b"\n"):
        end = take_line(db, job, line) or end
    db.execute("UPDATE jobs SET events_offset = ? WHERE seq = ?", (job.events_offset + len(whole) + 1, job.seq))
    return end, more


def take_line(db: Connection, job: Job, line: bytes) -> dict[str, Any] | None:
    """Store one line of a worker; return it if it is the end line. An unknown line is logged and skipped."""
    try:
        message = parse(line)
    except ValueError as error:
        if line.strip(b"\0\n "):
            log.warning("job %s: skipped an event line: %s: %r", job.id, error, line[:200])
        return None
    kind = message["type"]
    at = message["time"]
    if kind == "progress":
        _progress(db, job, message, at)
    elif kind == "message":
        add(db, job, "message", JobState.RUNNING, at, message=message["message"])
    elif kind == "dataset":
        info: DatasetInfo = message["dataset"]
        if dataset_rows.keep(db, info, job.id, job.owner, at):
            counts = f"{counted(info.episodes, 'episode')}, {counted(info.transitions, 'transition')}"
            add(db, job, "message", JobState.RUNNING, at, message=f"dataset {info.name}: {counts}")
    return message if kind == "end" else None


def _progress(db: Connection, job: Job, message: dict[str, Any], at: float) -> None:
    fields = {name: message[name] for name in ("step", "steps", "updates_per_second", "eta_s", "metrics")}
    metrics = json.loads(db.execute("SELECT metrics FROM jobs WHERE seq = ?", (job.seq,)).fetchone()[0])
    for name, values in fields["metrics"].items():
        metrics[name] = {**metrics.get(name, {}), **values}
    db.execute(
        "UPDATE jobs SET step = ?, steps = ?, updates_per_second = coalesce(?, updates_per_second), eta_s = ?, metrics = ? WHERE seq = ?",
        (fields["step"], fields["steps"], fields["updates_per_second"], fields["eta_s"], json.dumps(metrics), job.seq),
    )
    add(db, job, "progress", JobState.RUNNING, at, **fields)


def parse(line: bytes) -> dict[str, Any]:
    """Parse and check one line of a worker. Raises `ValueError`."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    kind = message.get("type")
    result: dict[str, Any] = {"type": kind, "time": _number(message, "time") or time.time()}
    if kind == "progress":
        result["step"], result["steps"] = int(_number(message, "step") or 0), int(_number(message, "steps") or 0)
        result["updates_per_second"], result["eta_s"] = _number(message, "updates_per_second"), _number(message, "eta_s")
        result["metrics"] = _metrics(message.get("metrics") or {})
    elif kind == "message":
        result["message"] = str(message.get("message", ""))[:10_000]
    elif kind == "dataset":
        try:
            result["dataset"] = DatasetInfo.model_validate(message.get("dataset"))
        except ValidationError as error:
            raise ValueError(str(error)) from None
    elif kind == "end":
        result["state"] = JobState(message.get("state", ""))
        result["reason"] = " ".join(str(message.get("reason") or "").split())[:2000]
        failure = message.get("error")
        result["error"] = None
        if isinstance(failure, dict):
            result["error"] = {name: " ".join(str(failure.get(name) or "").split())[:2000] for name in ("code", "message", "hint")}
    else:
        raise ValueError(f"unknown type {kind!r}")
    return result


def _number(message: dict[str, Any], name: str) -> float | None:
    value = message.get(name)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _metrics(metrics: Any) -> dict[str, dict[str, float]]:
    """Return ``{name: {seed: value}}`` with the numeric values only. A NaN stays (Python's JSON allows it): it shows a diverged run."""
    if not isinstance(metrics, dict):
        raise ValueError("metrics is not an object")
    return {
        str(name): {str(seed): float(value) for seed, value in values.items() if isinstance(value, int | float)}
        for name, values in metrics.items()
        if isinstance(values, dict)
    }
