"""The outcome of an attempt whose worker is gone, from the worker's end line, its exit, and the user's intent.

The error's code names the cause; `cause` groups the codes into the classes that decide about a retry.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from offrl.job import JobState

STOPPED = 75  # exit status of a worker that was asked to terminate, or found another worker in its run folder: the job is fine
TAIL_LINES, TAIL_BYTES = 20, 4000  # of the log, kept with the error
CRASHED, OUT_OF_MEMORY, KILLED, HUNG = "worker_crashed", "out_of_memory", "worker_killed", "worker_hung"
RETRIED = (CRASHED, OUT_OF_MEMORY, KILLED, HUNG)  # automatically: the next attempt may well succeed
HINTS = {
    CRASHED: "`offrl logs JOB` shows its whole log; `offrl retry JOB` continues from the last checkpoint",
    OUT_OF_MEMORY: "use a smaller batch_size, fewer seeds or fewer jobs at once, or a machine with more memory",
    KILLED: "somebody ended the process; `offrl retry JOB` continues from the last checkpoint",
    HUNG: "its log shows where it hung; grace.hang_s sets the allowed silence; `offrl retry JOB` continues from the last checkpoint",
}
IN_ENVIRONMENT = "in the environment's own code"
CRASHED_IN_ENVIRONMENT = (
    "the environment or one of its libraries ended the process: step it alone to see why; "
    "`offrl retry JOB` continues from the last checkpoint"
)
# A line of the interpreter's stack, and the functions that call into an environment, by file.
_FRAME = re.compile(r'^\s+File "(.+)", line (\d+) in (\S+)$')
_INTO_ENVIRONMENT = {
    "offrl/environments/calls.py": ("step", "reset", "close", "made_by", "spaces_of"),
    "offrl/rollout.py": ("make_env",),
}
# What libraries write before they end the process for lack of memory.
_NO_MEMORY = re.compile(r"std::bad_alloc|^MemoryError|out of memory|Cannot allocate memory|can't allocate memory", re.MULTILINE)


class Cause(StrEnum):
    """Why a job failed, as far as a retry depends on it."""

    CRASH = "crash"  # the process ended by itself, or with an unforeseen error
    OOM = "oom"  # the machine or the card was out of memory
    KILLED = "killed"  # SIGKILL or SIGTERM from outside
    HANG = "hang"  # no sign of life
    DISK_FULL = "disk_full"
    BAD_INPUT = "bad_input"  # the job itself: it would fail again (a diverged training, too)


_CAUSES = {
    CRASHED: Cause.CRASH, "internal": Cause.CRASH, OUT_OF_MEMORY: Cause.OOM, KILLED: Cause.KILLED, HUNG: Cause.HANG,
    "disk_full": Cause.DISK_FULL,
}  # fmt: skip


def cause(error: dict[str, str] | None) -> Cause:
    """Return the class of a failed job's error."""
    return _CAUSES.get((error or {}).get("code", CRASHED), Cause.BAD_INPUT)


@dataclass(frozen=True)
class Exit:
    """How a worker ended.

    Args:
        status: its exit status, negative for a signal; None for the worker of an earlier daemon.
        lost: a daemon stopped it, or ended before it, so its end says nothing about the job.
        last_line: the last line on its stdout.
        log_line: the most telling line of its log.
        log_tail: the last lines of its log.
        oom: the kernel's OOM killer was at work when it ended.
        silent: if it was killed as hung, how long it was silent and at which step; else "".
        unstarted: why the system refused to start it; "" if it started.
    """

    status: int | None = None
    lost: bool = False
    last_line: bytes = b""
    log_line: str = ""
    log_tail: str = ""
    oom: bool = False
    silent: str = ""
    unstarted: str = ""

    @property
    def words(self) -> str:
        """The end in words, behind "the worker"."""
        if self.silent:
            return f"hung: {self.silent}"
        if self.unstarted:
            return f"cannot be started: {self.unstarted}"
        if self.status is None:
            return "is gone"
        if self.status < 0:
            try:
                name = signal.Signals(-self.status).name
            except ValueError:
                name = f"signal {-self.status}"
            return f"was killed by {name}" + (": the machine was out of memory" if self._memory else "")
        return f"ended with exit status {self.status} without a result" + (": out of memory" if self._memory else "")

    @property
    def code(self) -> str:
        """The error code of a worker that ended without a message."""
        if self.silent:
            return HUNG
        if self._memory:
            return OUT_OF_MEMORY
        return KILLED if self.status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP) else CRASHED

    @property
    def _memory(self) -> bool:
        if self.status == -signal.SIGKILL:
            return self.oom
        died = self.status is not None and self.status != 0 and self.status != -signal.SIGTERM
        return died and _NO_MEMORY.search(self.log_tail) is not None


def outcome(end: dict[str, Any] | None, how: Exit, intent: str) -> tuple[JobState, str, dict[str, str] | None]:
    """Return the job's next state, the reason, and for a failed job the error: ``{code, message, hint}``, perhaps with ``log`` (its tail).

    ``end``: the worker's end line or None; ``intent``: "", "pause", "cancel" or "resume" (a pause that was taken back).
    """
    if end is not None:
        state = end["state"]
        if state == JobState.SUCCEEDED:
            return state, end.get("reason", ""), None
        if state == JobState.FAILED:
            error = end["error"] or {"code": "internal", "message": "the worker gave no reason", "hint": how.log_line}
            return state, error["message"], _with_log(error, how) if cause(error) != Cause.BAD_INPUT else error
        if state == JobState.CANCELLED:
            return state, "cancelled", None
        if state != JobState.PAUSED:
            return _died(how)
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
        return JobState.PAUSED, "the worker did not answer and was killed: the job continues from its last checkpoint", None
    if intent == "resume":
        return JobState.QUEUED, "", None
    return _died(how)


def _died(how: Exit) -> tuple[JobState, str, dict[str, str] | None]:
    message = f"the worker {how.words}"
    reason = f"{message}: {how.log_line}" if how.log_line and not how.silent else message
    hint = CRASHED_IN_ENVIRONMENT if how.code == CRASHED and IN_ENVIRONMENT in how.log_line else HINTS[how.code]
    return JobState.FAILED, reason, _with_log({"code": how.code, "message": message, "hint": hint}, how)


def _with_log(error: dict[str, str], how: Exit) -> dict[str, str]:
    return {**error, "log": how.log_tail} if how.log_tail else error


def log_tail(path: Path, since: int = 0) -> tuple[str, str]:
    """Return the most telling line of a log (the interpreter's fatal error, else the last line), and the last lines.

    ``since``: size of the log at the start of the attempt, in bytes; what earlier attempts wrote is ignored.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(since, file.seek(0, 2) - 16384))
            lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "", ""
    tail = lines[-TAIL_LINES:]
    while len(tail) > 1 and sum(map(len, tail)) + len(tail) > TAIL_BYTES:
        tail = tail[1:]
    fatal = [i for i, line in enumerate(lines) if line.startswith("Fatal Python error")]
    line = lines[fatal[-1]] + _in_environment(lines[fatal[-1] :]) if fatal else (lines or [""])[-1].strip()
    return line[:300], "\n".join(tail)[-TAIL_BYTES:]


def _in_environment(lines: list[str]) -> str:
    """Say where in an environment the process was, from the stack after a fatal error; "" if it was not in one."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Current thread")), len(lines))
    frames: list[re.Match[str]] = []
    for line in lines[start + 1 :]:
        if (frame := _FRAME.match(line)) is None:
            break
        frames.append(frame)
    for i, (path, _, function) in enumerate(frame.groups() for frame in frames):
        if any(path.endswith(f"/{file}") and function in functions for file, functions in _INTO_ENVIRONMENT.items()):
            where = "" if i == 0 else "{} line {} in {}".format(*frames[0].groups())  # the innermost call comes first
            return f" {IN_ENVIRONMENT}{f' ({where})' if where else ''}"
    return ""
