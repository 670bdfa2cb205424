"""The claim of a run folder: its lock and attempt number let only one worker write there."""

from __future__ import annotations

import fcntl
import os
import time

from offrl_store.disk import write_atomic
from offrld.state.run_folder import RunFolder
from offrld.worker.control import Control

LOCK_WAIT_S = 30.0  # time for a worker whose daemon was killed to notice that and release the lock
POLL_S = 0.02


class Fenced(Exception):
    """Another worker has this job: a later attempt has started, or an earlier one still holds the lock."""


def claim(run: RunFolder, attempt: int, control: Control, wait_s: float = LOCK_WAIT_S) -> int:
    """Lock a run folder and record this attempt; return the lock's descriptor, which the kernel releases when the process ends.

    Wait up to ``wait_s`` seconds for a worker that still holds the lock. Raises `Fenced` if that takes longer or if a later attempt has
    claimed the folder, and `Stopped` if the job must stop meanwhile.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            control.check()
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Fenced(f"another worker still holds {run.path} after {wait_s:.0f} s") from None
            control.wait(POLL_S)
    newest = int(run.attempt.read_text() or 0) if run.attempt.exists() else 0
    if newest > attempt:
        raise Fenced(f"attempt {newest} of this job was started after this one ({attempt})")
    write_atomic(run.attempt, f"{attempt}\n".encode())
    return descriptor
