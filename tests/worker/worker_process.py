"""A real worker process, driven over its pipes as the daemon drives it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 180.0  # enough for a busy machine: a worker loads torch


class WorkerProcess:
    """One attempt at a job in a state folder.

    Attributes:
        deadline_s: longest wait for each event and for the end, in seconds.
    """

    deadline_s = DEADLINE_S

    def __init__(self, state: Path, job: str, spec: dict[str, Any], *, attempt: int = 1, snapshot: str | None = None, **start: Any) -> None:
        self.run = state / "jobs" / job
        self.run.mkdir(parents=True, exist_ok=True)
        self.log = self.run / "log.txt"
        self._start(self.run, [], start.pop("environment", {}))
        first = {"type": "start", "job": job, "attempt": attempt, "state_dir": str(state), "spec": spec, "snapshot": snapshot}
        self.send({**first, "import_roots": [], **start})

    @classmethod
    def spare(cls, folder: Path) -> WorkerProcess:
        """Start a worker that waits for a job; no start message is sent."""
        self = cls.__new__(cls)
        self.log = folder / "spare.log"
        self._start(folder, ["--spare"], {})
        return self

    def _start(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "offrld.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
                start_new_session=True,
            )
        self.seen: list[dict[str, Any]] = []
        self.signs: list[dict[str, Any]] = []  # signs of life: they go only through the pipe, not into events.jsonl
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)  # a line that is not JSON would be a broken protocol: the thread dies, the test times out
            (self.signs.append if event["type"] in ("alive", "ready") else self._events.put)(event)
        self._events.put(None)

    def send(self, message: dict[str, Any]) -> None:
        """Send one control line."""
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        """Close the control pipe, as a dying daemon does."""
        self.process.stdin.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next event for which ``wanted`` is true; fail with the log if the worker ends first."""
        deadline = time.monotonic() + self.deadline_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no such event within {self.deadline_s} s; log:\n{self.log.read_text()}")
            if event is None:
                pytest.fail(f"the worker ended; events: {self.seen}; log:\n{self.log.read_text()}")
            self.seen.append(event)
            if wanted(event):
                return event

    def end(self) -> dict[str, Any]:
        """Return the end event; the process must then end with exit status 0."""
        event = self.until(lambda event: event["type"] == "end")
        assert self.wait() == 0
        return event

    def wait(self) -> int:
        """Read all remaining events; return the exit status."""
        status = self.process.wait(self.deadline_s)
        while (event := self._events.get(timeout=self.deadline_s)) is not None:
            self.seen.append(event)
        return status

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.seen if event["type"] == kind]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
