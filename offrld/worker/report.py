"""Events of a worker: one JSON object per line, first into the run folder's ``events.jsonl``, then to the daemon.

The file is the record, also for an executor without a pipe; the pipe is faster. Signs of life go only through the pipe. Numbers are finite
or null, because JSON has no others.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from offrld.json_safe import json_safe

ENGINE = (
    "feed: ",
    "linear layers: ",
    "runner: ",
)  # prefixes of lines about the engine, which most readers of a log do not need
PROGRESS_S = 1.0  # least time between two unforced progress lines


class Reporter:
    """Writes the event lines of one attempt. Safe to use from several threads; nothing is written after `end`."""

    def __init__(self, descriptor: int, path: Path | None) -> None:
        """``descriptor``: the event pipe; ``path``: the run folder's ``events.jsonl``, appended to."""
        self._pipe = descriptor
        self._file = _open_lines(path) if path else None
        self._engine = path.parent / "engine.log" if path else None
        self._lock = threading.Lock()
        self._ended = False
        self._last_progress = -math.inf
        self._busy = ""

    def progress(
        self,
        step: int,
        steps: int,
        *,
        updates_per_second: float | None = None,
        eta_s: float | None = None,
        metrics: dict[str, dict[int, float]] | None = None,
        force: bool = False,
    ) -> bool:
        """Report the job's progress, at most once per `PROGRESS_S` unless forced; return whether a line was written.

        ``metrics``: name -> seed -> latest value; values that are not finite are left out, because the protocol's metrics are numbers.
        """
        self._busy = ""
        now = time.monotonic()
        if not force and now - self._last_progress < PROGRESS_S:
            return False
        self._last_progress = now
        shown = {
            name: {str(seed): json_safe(value) for seed, value in values.items() if math.isfinite(value)}
            for name, values in (metrics or {}).items()
        }
        self._write(
            "progress",
            step=int(step),
            steps=int(steps),
            updates_per_second=json_safe(updates_per_second),
            eta_s=json_safe(eta_s),
            metrics={name: values for name, values in shown.items() if values},
        )
        return True

    def busy(self, what: str) -> None:
        """Announce a long silence: "loading", "compiling". It ends with the next `progress`."""
        self._busy = what
        self.alive()

    def alive(self) -> None:
        """Send a sign of life, with the job's current activity and its peak memory on the cards."""
        self._send_message({"type": "alive", "busy": self._busy, "device_bytes": device_peak_bytes()})

    def learner(self, text: str) -> None:
        """Report a line of a learner: as a `message`, or in the run folder's ``engine.log`` if it is about how the engine computes."""
        if self._engine is None or not text.startswith(ENGINE):
            self.message(text)
            return
        with self._engine.open("a", encoding="utf-8") as file:
            file.write(" ".join(text.split()) + "\n")

    def message(self, text: str) -> None:
        """Write one line into the job's events and its log."""
        text = " ".join(text.split())
        print(text, file=sys.stderr, flush=True)
        self._write("message", message=text)

    def dataset(self, info: dict[str, Any]) -> None:
        """Report that a dataset is durable under its name; ``info`` has the fields of the wire's DatasetInfo."""
        self._write("dataset", dataset=info)

    def end(self, state: str, error: dict[str, str] | None = None, reason: str = "") -> None:
        """Write the last line; ``reason``: the remark for a success. A second call does nothing."""
        self._write("end", last=True, state=state, error=error, **({"reason": reason} if reason else {}))

    def _write(self, kind: str, *, last: bool = False, **fields: Any) -> None:
        line = json.dumps({"type": kind, "time": round(time.time(), 3), **fields}, default=json_safe, allow_nan=False) + "\n"
        with self._lock:
            if self._ended:
                return
            self._ended = last
            try:
                if self._file is not None:
                    _write_all(self._file, line.encode())
                    if last:
                        os.fsync(self._file)
            except OSError:
                if not last:  # a full disk ends the job, but the end must reach the daemon
                    raise
            self._send(line)

    def _send_message(self, message: dict[str, Any]) -> None:
        with self._lock:
            if not self._ended:
                self._send(json.dumps(message) + "\n")

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the daemon is gone: the control pipe is closed too, which ends the job
            _write_all(self._pipe, line.encode())


def device_peak_bytes() -> int:
    """Return the peak memory that torch has held on the cards of this process; 0 if it has used none."""
    torch = sys.modules.get("torch")  # only the kinds of job that need torch load it
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count()))


def _open_lines(path: Path) -> int:
    """Open a file of lines for appending; first complete a line that a crash cut short. Return the descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        _write_all(descriptor, b"\n")
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
