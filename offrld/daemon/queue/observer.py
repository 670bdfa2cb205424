"""What the service tells of what it does, for those who count it: nobody by default, the metrics where they are asked for."""

from __future__ import annotations

from offrl.job import JobState
from offrld.daemon.queue.job_record import Job


class Observer:
    """Is told of every request and every worker. This one takes no notice, so that what is not asked for costs nothing."""

    def request_answered(self, name: str, outcome: str, seconds: float) -> None:
        """A request of that type (``invalid`` where it could not be read) was answered: ``ok`` or the code of an error."""

    def worker_started(self, job: Job) -> None:
        """A worker process of that job's present attempt runs."""

    def worker_ended(self, job: Job) -> None:
        """The worker of an attempt is gone; ``job`` is what has become of the job."""

    def close(self) -> None:
        """The service ends."""


def exit_reason(job: Job) -> str:
    """Why a worker is gone: the state that its job came to, ``stopped`` where it went back to the queue, or the error's code."""
    if job.state == JobState.FAILED or (job.state == JobState.QUEUED and job.error):
        return str((job.error or {}).get("code", "internal"))
    return "stopped" if job.state == JobState.QUEUED else str(job.state)
