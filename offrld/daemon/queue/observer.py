"""Hooks for metrics: the service calls an `Observer` for every request and every worker."""

from __future__ import annotations

from offrl.job import JobState
from offrld.daemon.queue.job_record import Job


class Observer:
    """Hooks for metrics; the base class ignores every event, so that a service without metrics pays nothing."""

    def request_answered(self, name: str, outcome: str, seconds: float) -> None:
        """Count an answered request. ``name``: its type, ``invalid`` if unreadable; ``outcome``: ``ok`` or the error's code."""

    def worker_started(self, job: Job) -> None:
        """Count a started worker process of the job's current attempt."""

    def worker_ended(self, job: Job) -> None:
        """Count an ended worker process. ``job``: the job after the attempt."""

    def close(self) -> None:
        """Release everything: the service ends."""


def exit_reason(job: Job) -> str:
    """Return why a worker ended: the job's new state, ``stopped`` if the job returned to the queue, or the error's code."""
    if job.state == JobState.FAILED or (job.state == JobState.QUEUED and job.error):
        return str((job.error or {}).get("code", "internal"))
    return "stopped" if job.state == JobState.QUEUED else str(job.state)
