"""What the daemon tells a running worker: pause, cancel, or (by closing the pipe, or with SIGTERM) that it is to stop.

A thread reads the lines of the control pipe; the job asks `Control.check` wherever it can stop cleanly, which raises
`Stopped`. A job that does not come to such a place in time (a long import of a library, a stuck compiler) is ended by
the thread itself once the daemon is gone, so that no worker outlives its daemon.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

Reason = Literal["pause", "cancel", "gone"]
GONE_S = 20.0            # seconds that a worker without a daemon may take to write its checkpoint
EXIT_STOPPED = 75        # exit status without an end event: the daemon is gone, or another worker holds the job


class Stopped(Exception):
    """The job was told to stop; ``reason`` is ``pause``, ``cancel`` or ``gone`` (no daemon, or SIGTERM)."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Control:
    """The control pipe of this worker. Call `read_start` first, then `listen`."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: the file descriptor of the pipe's reading end."""
        self._lines = _lines(descriptor)
        self._reason: Reason | None = None
        self._changed = threading.Event()
        self._finished = threading.Event()

    def read_start(self) -> dict[str, Any]:
        """The first line. Raises `Stopped` where the pipe was closed before it, ValueError where it is no start message."""
        line = next(self._lines, None)
        if line is None:
            raise Stopped("gone")
        message = json.loads(line)
        if not isinstance(message, dict) or message.get("type") != "start":
            raise ValueError(f"expected a start message, got {line[:200]!r}")
        return message

    def listen(self) -> None:
        """Read the later lines in a thread of their own, and take SIGTERM for a closed pipe."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop("gone"))
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    @property
    def reason(self) -> Reason | None:
        """Why the job is to stop, None while it is not."""
        return self._reason

    def check(self) -> None:
        """Raises `Stopped` once the job is to stop. Costs one attribute access."""
        if self._reason is not None:
            raise Stopped(self._reason)

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the job is told to stop."""
        self._changed.wait(seconds)

    def finished(self) -> None:
        """The worker is past everything that could get stuck."""
        self._finished.set()

    def _stop(self, reason: Reason) -> None:
        # The first reason stands (a daemon may close the pipe behind it), but a job being paused can still be cancelled.
        if self._reason is None or (self._reason, reason) == ("pause", "cancel"):
            self._reason = reason
        self._changed.set()

    def _listen(self) -> None:
        for line in self._lines:
            try:
                kind = json.loads(line).get("type")
            except (ValueError, AttributeError):
                kind = None
            if kind in ("pause", "cancel"):
                self._stop(kind)
            else:
                print(f"control message not understood: {line[:200]!r}", file=sys.stderr, flush=True)
        self._stop("gone")
        if not self._finished.wait(GONE_S):
            print(f"the daemon is gone and the job did not stop within {GONE_S:.0f} s: ending", file=sys.stderr, flush=True)
            os._exit(EXIT_STOPPED)


def _lines(descriptor: int) -> Iterator[bytes]:
    """The complete lines of a pipe, until it is closed. Reads at once what is there, which a buffered file would not."""
    rest = b""
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:
            return
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line for line in lines if line.strip())
