"""Overviews of the queue for the operation of the service: one transaction for `offrl top`, one for a scrape of the metrics."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from offrl.job import JobState, main_metric
from offrl.wire import History, JobInfo, Pause
from offrld.daemon import queue
from offrld.daemon.config import Settings
from offrld.daemon.queue import UNFINISHED
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job
from offrld.daemon.queue.views.job_info import Waits

ENDED = 8  # jobs that have ended, at the end of the list
ENDED_AMONG = 2000  # newest jobs among which they are looked for, so that a long history costs nothing
CURVES = 16  # running jobs whose curve is shown
EVENTS = 600  # last events of a job that are searched for its curve
STATES = ("running", "queued", "paused")
PLAIN = re.compile(r"[A-Za-z0-9_./@ -]{1,100}")  # names that can stand in a JSON path


@dataclass(frozen=True)
class Totals:
    """What a scrape reports of the queue. ``oldest``: when the longest-waiting job was submitted."""

    paused: bool
    jobs: dict[tuple[str, str], int]
    running: list[Job]
    oldest: float | None
    datasets: int
    dataset_bytes: int


@dataclass(frozen=True)
class Look:
    """What `offrl top` shows of the queue."""

    counts: dict[str, int]
    jobs: list[JobInfo]
    left_off: int
    history: dict[str, History]
    pause: Pause | None


def totals(db: Connection) -> Totals:
    """Read the numbers of jobs by state and kind, the running jobs, the longest wait, and the datasets."""
    rows = db.execute("SELECT state, kind, count(*) FROM jobs WHERE kind <> 'removed' GROUP BY state, kind")
    jobs = {(row[0], row[1]): row[2] for row in rows}
    running = [Job.of(row) for row in db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY seq")]
    oldest = db.execute("SELECT min(created_at) FROM jobs WHERE state = 'queued'").fetchone()[0]
    count, size = db.execute("SELECT count(*), total(json_extract(info, '$.bytes')) FROM datasets").fetchone()
    return Totals(queue.paused(db) is not None, jobs, running, oldest, count, int(size))


def look(db: Connection, limit: int, metric: str | None, points: int, settings: Settings) -> Look:
    """Read the running jobs, the queued ones in the order of their start, the paused ones, and the last that ended: at most ``limit``.

    ``metric``: the metric of the curves, by default each job's most telling one; ``points``: most points of a curve.
    """
    counts = {row[0]: row[1] for row in db.execute("SELECT state, count(*) FROM jobs WHERE kind <> 'removed' GROUP BY state")}
    waits = Waits.look(db, settings.limits)
    places = {seq: place for place, seq in enumerate(_ready(db, settings))}
    unfinished = db.execute(f"SELECT seq, state, priority FROM jobs WHERE state IN {UNFINISHED} ORDER BY seq").fetchall()
    last = len(places)
    first = sorted(unfinished, key=lambda row: (STATES.index(row["state"]), places.get(row["seq"], last), -row["priority"]))[:limit]
    rows = [db.execute("SELECT * FROM jobs WHERE seq = ?", (row["seq"],)).fetchone() for row in first]
    rows += db.execute(
        """SELECT * FROM jobs WHERE seq > (SELECT max(seq) FROM jobs) - ? AND state IN ('succeeded', 'failed', 'cancelled')
           AND kind <> 'removed'
           ORDER BY finished_at DESC LIMIT ?""",
        (ENDED_AMONG, min(ENDED, limit - len(rows))),
    ).fetchall()
    jobs = [Job.of(row) for row in rows]
    history = {}
    for job in [job for job in jobs if job.state == JobState.RUNNING][:CURVES]:
        name = metric or main_metric(job.metrics)
        if name is not None and PLAIN.fullmatch(name):
            steps, values = _curve(db, job, name, points)
            if values:
                history[job.id] = History(metric=name, steps=steps, values=values)
    return Look(
        counts,
        [waits.info(job, spec=False) for job in jobs],
        len(unfinished) - len(first),
        history,
        waits.pause,
    )


def _ready(db: Connection, settings: Settings) -> list[int]:
    """Return the numbers of the queued jobs that wait for a slot only, in the order of their start."""
    longest = settings.retry.max_s
    return [*queue.order(db, "light", longest_retry_s=longest), *queue.order(db, "train", longest_retry_s=longest)]


def _curve(db: Connection, job: Job, metric: str, points: int) -> tuple[list[int], list[float]]:
    """Return steps and last values of a metric (each the mean over the seeds), oldest first."""
    path = "$.updates_per_second" if metric == "updates_per_second" else f'$.metrics."{metric}"'
    rows = db.execute(
        """SELECT json_extract(body, '$.step'), json_extract(body, ?1)
           FROM (SELECT n, body FROM events WHERE seq = ?2 ORDER BY n DESC LIMIT ?3)
           WHERE json_extract(body, '$.type') = 'progress' AND json_extract(body, ?1) IS NOT NULL LIMIT ?4""",
        (path, job.seq, EVENTS, points),
    ).fetchall()
    curve = [(int(step or 0), mean) for step, value in reversed(rows) if (mean := _mean(value)) is not None]
    return [step for step, _ in curve], [mean for _, mean in curve]


def _mean(value: str | float) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    numbers = [number for number in json.loads(value).values() if isinstance(number, int | float)]
    return sum(numbers) / len(numbers) if numbers else None
