"""Jobs as clients see them: the row, and for a waiting job why it waits now."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from offrl.job import JobState
from offrl.wire import JobInfo, Pause
from offrld.daemon.config import Limits
from offrld.daemon.queue import paused
from offrld.daemon.queue.database import Connection
from offrld.daemon.queue.job_record import Job, find


@dataclass(frozen=True)
class Waits:
    """What queued jobs wait for.

    ``needs``: job -> the jobs that must succeed first; ``busy``: owner -> running train jobs, for the owners at the limit ``most``.
    """

    now: float
    needs: Mapping[str, list[str]] = field(default_factory=dict)
    pause: Pause | None = None
    busy: Mapping[str | None, int] = field(default_factory=dict)
    most: int = 0

    @classmethod
    def look(cls, db: Connection, limits: Limits) -> Waits:
        """Read what queued jobs wait for now."""
        most, busy = limits.running_per_owner, {}
        if most:
            rows = db.execute("SELECT owner, count(*) AS n FROM jobs WHERE state = 'running' AND lane = 'train' GROUP BY owner")
            busy = {row[0]: row[1] for row in rows if row[1] >= most}
        return cls(time.time(), waits_for(db), paused(db), busy, most)

    def reason(self, job: Job) -> str:
        """Say why a queued job does not run; "" if it waits for a free slot only."""
        reasons = []
        if needs := self.needs.get(job.id):
            reasons.append(f"waits for {', '.join(needs)}")
        if job.start_at is not None and job.start_at > self.now:
            reasons.append(f"starts at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(job.start_at))} UTC")
        if job.retry_at is not None:
            attempt, _, why = job.reason.partition(": ")
            left = math.ceil(job.retry_at - self.now)
            reasons.append(f"{attempt} in {left} s: {why}" if left > 0 else job.reason)
        if self.pause is not None and not job.forced:
            reasons.append(f"the queue is paused by {self.pause.by}" + (f": {self.pause.reason}" if self.pause.reason else ""))
        if job.lane == "train" and job.owner in self.busy:
            reasons.append(f"{job.owner!r} has {self.busy[job.owner]} running, as many as limits.running_per_owner = {self.most} allows")
        return "; ".join(reasons)

    def info(self, job: Job, *, spec: bool = True) -> JobInfo:
        """Describe the job for clients, with its specification or without."""
        reason = job.reason
        if job.state == JobState.QUEUED:
            reason = self.reason(job)
        elif job.state == JobState.RUNNING and job.intent in ("pause", "cancel"):
            reason = "pausing" if job.intent == "pause" else "cancelling"
        # From a dict: takes a third of the time of keywords or `model_construct`, and a list has a thousand jobs.
        return JobInfo.model_validate(
            {
                "job": job.id,
                "kind": job.kind,
                "state": job.state,
                "reason": reason,
                "error": job.error,
                "algorithm": job.spec.get("algorithm"),
                "dataset": job.dataset,
                "snapshot": job.snapshot,
                "steps": job.steps,
                "step": job.step,
                "updates_per_second": job.updates_per_second,
                "eta_s": job.eta_s,
                "metrics": job.metrics,
                "seeds": list(job.spec.get("seeds", [])),
                "priority": job.priority,
                "after": job.after,
                "attempt": job.attempt,
                "start_at": job.start_at,
                "retry_at": job.retry_at,
                "created_at": job.created_at,
                "started_at": job.started_at,
                "finished_at": job.finished_at,
                "owner": job.owner,
                "pinned": job.pinned,
                "rerun_of": job.rerun_of,
                "spec": job.spec if spec else {},
            }
        )


def waits_for(db: Connection) -> dict[str, list[str]]:
    """Return the jobs that each queued job still waits for."""
    needs: dict[str, list[str]] = {}
    for row in db.execute(
        "SELECT d.job, d.needs FROM jobs q JOIN dependencies d ON d.job = q.id JOIN jobs n ON n.id = d.needs"
        " WHERE q.state = 'queued' AND n.state <> 'succeeded' ORDER BY n.seq"
    ):
        needs.setdefault(row[0], []).append(row[1])
    return needs


def info(db: Connection, job: str, limits: Limits = Limits()) -> JobInfo:
    """Describe one job for clients. Raises `Unknown`."""
    record = find(db, job)
    waits = Waits.look(db, limits) if record.state == JobState.QUEUED else Waits(time.time())
    return waits.info(record)
