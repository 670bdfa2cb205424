"""Control messages from the daemon to a running worker: pause, cancel, stop (a closed pipe, or SIGTERM), and which snapshots are pinned.

A thread reads the lines of the control pipe. The job calls `Control.check` wherever it can stop cleanly. The call raises `Stopped` if the
job must stop. Otherwise it sends a sign of life; because that comes from the loop itself, the daemon notices a loop that hangs.

If a job must stop but does not reach such a call in time (a long import of a library, a stuck compiler), the thread ends the process, so
that no worker outlives its daemon. The job then continues from its last checkpoint, and the log says so.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

Reason = Literal["pause", "cancel", "gone"]
GONE_S = 20.0  # default time for the last checkpoint of a worker that must stop
BEAT_S = 2.0  # time between two signs of life
EXIT_STOPPED = 75  # exit status without an end event: the daemon is gone, or another worker holds the job


class Stopped(Exception):
    """The job must stop; ``reason`` is ``pause``, ``cancel`` or ``gone`` (no daemon, or SIGTERM)."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Control:
    """The control pipe of this worker. Call `read_start` first, then `listen`."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: the file descriptor of the pipe's reading end."""
        self._lines = _Lines(descriptor)
        self._reason: Reason | None = None
        self._changed = threading.Event()
        self._finished = threading.Event()
        self._beat: Callable[[], None] | None = None
        self._next_beat = 0.0
        self._given_up: Callable[[], str] = str
        self._stop_s = GONE_S
        self.pinned: tuple[str, ...] = ()  # snapshots, used by other jobs, of the dataset that this job writes

    def read_start(self) -> dict[str, Any]:
        """Read the first line. Raises `Stopped` if the pipe closes before it, ValueError if it is not a start message."""
        line = self._lines.next()
        if line is None:
            raise Stopped("gone")
        message = json.loads(line)
        if not isinstance(message, dict) or message.get("type") != "start":
            raise ValueError(f"expected a start message, got {line[:200]!r}")
        return message

    def listen(self, stop_s: float = GONE_S) -> None:
        """Read the later lines in a separate thread, and treat SIGTERM like a closed pipe.

        ``stop_s``: time for the last checkpoint of a worker that must stop.
        """
        self._stop_s = stop_s
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Python runs signal handlers only in the main thread, which a compiler may block for minutes; the pipe is written immediately.
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: self._stop("gone"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a worker has no terminal: SIGINT could only raise KeyboardInterrupt in a user's code
        threading.Thread(target=self._listen, args=(woken,), name="control", daemon=True).start()

    def report_life(self, beat: Callable[[], None], given_up: Callable[[], str]) -> None:
        """Make `check` call ``beat`` every `BEAT_S`; ``given_up`` returns the last log line of a worker that did not stop in time."""
        self._beat, self._given_up = beat, given_up

    @property
    def reason(self) -> Reason | None:
        """Why the job must stop; None if it need not."""
        return self._reason

    def check(self) -> None:
        """Raise `Stopped` if the job must stop, else send a sign of life if one is due. It costs one look at the clock."""
        if self._reason is not None:
            raise Stopped(self._reason)
        if self._beat is not None and (now := time.monotonic()) >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._beat()

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the job must stop."""
        self._changed.wait(seconds)

    def finished(self) -> None:
        """Note that nothing is left that could get stuck: the thread no longer ends the process."""
        self._finished.set()

    def _stop(self, reason: Reason) -> None:
        # The first reason stands (a daemon may close the pipe behind it), but a job being paused can still be cancelled.
        if self._reason is None or (self._reason, reason) == ("pause", "cancel"):
            self._reason = reason
        self._changed.set()

    def _listen(self, woken: int) -> None:
        while (line := self._lines.next(woken)) is not None:
            try:
                message = json.loads(line)
                kind = message.get("type")
            except (ValueError, AttributeError):
                kind = None
            if kind in ("pause", "cancel"):
                self._stop(kind)
            elif kind == "pinned":
                self.pinned = tuple(message["snapshots"])
            else:
                print(f"control message not understood: {line[:200]!r}", file=sys.stderr, flush=True)
        self._stop("gone")
        if not self._finished.wait(self._stop_s):
            print(f"the job had to stop, but did not within {self._stop_s:.1f} s: {self._given_up()}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(EXIT_STOPPED)


class _Lines:
    """The complete lines of a pipe. Unlike a buffered file, it reads whatever is available without waiting for more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self._ready: list[bytes] = []

    def next(self, woken: int | None = None) -> bytes | None:
        """Return the next line; None once the pipe is closed or SIGTERM has arrived (``woken`` is readable and holds its number)."""
        while not self._ready:
            if woken is not None:
                readable, _, _ = select.select([self._descriptor, woken], [], [])
                if woken in readable and bytes([signal.SIGTERM]) in os.read(woken, 4096):
                    return None
                if self._descriptor not in readable:
                    continue
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:
                return None
            if not data:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._ready = [line for line in lines if line.strip()]
        return self._ready.pop(0)
