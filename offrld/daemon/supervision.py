"""What has become of a job whose worker is gone: decided from its end line, its exit status and what the user wanted of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from offrl.job import JobState

STOPPED = 75  # exit status of a worker that was told to terminate, or found another worker in its run folder: nothing is wrong with the job


@dataclass(frozen=True)
class Exit:
    """How a worker ended. ``status``: its return code, negative for a signal, None where a former daemon's worker was found gone.

    ``lost``: the daemon stopped it (or had itself been gone), so that its end says nothing about the job.
    ``last_line``: the last line on stdout; ``log_line``: the last line of its log.
    """

    status: int | None = None
    lost: bool = False
    last_line: bytes = b""
    log_line: str = ""

    @property
    def words(self) -> str:
        if self.status is None:
            return "is gone"
        if self.status < 0:
            try:
                return f"was killed by {signal.Signals(-self.status).name}"
            except ValueError:
                return f"was killed by signal {-self.status}"
        return f"ended with exit status {self.status} without a result"


def outcome(end: dict[str, Any] | None, how: Exit, intent: str) -> tuple[JobState, str, dict[str, str] | None]:
    """The job's next state, the reason, and the error of a failed one.

    ``end``: the worker's end line or None; ``intent``: "", "pause", "cancel" or "resume" (a pause that was taken back).
    """
    if end is not None:
        state = end["state"]
        if state == JobState.SUCCEEDED:
            return state, end.get("reason", ""), None
        if state == JobState.FAILED:
            error = end["error"] or {"code": "internal", "message": "the worker gave no reason", "hint": how.log_line}
            return state, error["message"], error
        if state == JobState.CANCELLED:
            return state, "cancelled", None
        if state != JobState.PAUSED:
            return _crashed(how)
        if intent == "pause":
            return JobState.PAUSED, "", None
    if intent == "cancel":
        answered = end is not None or how.lost or how.status == STOPPED
        return JobState.CANCELLED, "cancelled" if answered else "cancelled: the worker did not answer and was killed", None
    # It stopped although nobody wants that (any more): the daemon stopped, or somebody ended the worker.
    if end is not None or how.lost or how.status == STOPPED:
        if intent == "pause":
            return JobState.PAUSED, "", None
        return JobState.QUEUED, "", None
    if intent == "pause":
        return JobState.PAUSED, "the worker did not answer and was killed: it goes on from the checkpoint before", None
    if intent == "resume":
        return JobState.QUEUED, "", None
    return _crashed(how)


def _crashed(how: Exit) -> tuple[JobState, str, dict[str, str] | None]:
    message = f"the worker {how.words}"
    reason = f"{message}: {how.log_line}" if how.log_line else message
    return JobState.FAILED, reason, {"code": "worker_crashed", "message": message, "hint": how.log_line}
