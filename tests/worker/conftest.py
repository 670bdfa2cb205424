"""Real worker processes, driven over their pipes as the daemon drives them."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 60.0


class WorkerProcess:
    """One attempt at a job in a state folder.

    Attributes:
        deadline_s: for every event and the end; seconds.
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
        """A worker that waits for a job: nothing is sent to it."""
        self = cls.__new__(cls)
        self.log = folder / "spare.log"
        self._start(folder, ["--spare"], {})
        return self

    def _start(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "offrld.worker", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                cwd=folder, env={**os.environ, "PYTHONSAFEPATH": "1", **environment}, start_new_session=True,
            )  # fmt: skip
        self.seen: list[dict[str, Any]] = []
        self.signs: list[dict[str, Any]] = []  # of life: by the pipe only, not in events.jsonl
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)  # a line that is no JSON would be a broken protocol: the thread dies, the test times out
            (self.signs.append if event["type"] in ("alive", "ready") else self._events.put)(event)
        self._events.put(None)

    def send(self, message: dict[str, Any]) -> None:
        """One control line."""
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        """What happens when the daemon dies."""
        self.process.stdin.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event of which ``wanted`` is true; fails with the log when the worker ends before it."""
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
        """The end event; the process is gone after it, with exit status 0."""
        event = self.until(lambda event: event["type"] == "end")
        assert self.wait() == 0
        return event

    def wait(self) -> int:
        """The exit status, and all events read."""
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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers in the state folder ``tmp_path``; all are gone after the test."""
    workers: list[WorkerProcess] = []

    def start(job: str, spec: dict[str, Any], **options: Any) -> WorkerProcess:
        workers.append(WorkerProcess(options.pop("state", tmp_path), job, spec, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def upload(tmp_path: Path) -> Callable[..., str]:
    """Puts files where the daemon puts a finished upload; returns its id."""

    def upload(*sources: Path, name: str = "upload-1") -> str:
        files = tmp_path / "uploads" / name / "files"
        files.mkdir(parents=True)
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, files / source.name)
            else:
                shutil.copy(source, files / source.name)
        return name

    return upload


@pytest.fixture(scope="session")
def imported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Datasets made by import workers, once: name -> {"path", "snapshot"}."""
    state = tmp_path_factory.mktemp("imported")
    made = {}
    for name, file in (("pendulum", "pendulum-replay.hdf5"), ("cartpole", "cartpole-replay.hdf5")):
        worker = WorkerProcess(
            state, f"import-{name}", {"kind": "import", "dataset": name, "path": str(shared_data / file)}, import_roots=[str(shared_data)]
        )
        try:
            assert worker.end()["state"] == "succeeded"
        finally:
            worker.close()
        made[name] = {"path": state / "datasets" / name, "snapshot": worker.of_type("dataset")[0]["dataset"]["snapshot"]}
    return made


@pytest.fixture
def train(imported: dict[str, dict[str, Any]], tmp_path: Path, start: Callable[..., WorkerProcess]) -> Callable[..., WorkerProcess]:
    """Starts a train worker on an imported dataset: ``train("job", "bc", "pendulum", steps=...)``."""

    def train(
        job: str, algorithm: str, dataset: str, *, attempt: int = 1, state: Path = tmp_path, environment: Any = None,
        start_message: dict[str, Any] | None = None, **spec: Any,
    ) -> WorkerProcess:  # fmt: skip
        target = state / "datasets" / dataset
        if not target.exists():
            shutil.copytree(imported[dataset]["path"], target)
        return start(
            job, {"kind": "train", "algorithm": algorithm, "dataset": dataset, "device": "cpu", "runner": "eager", **spec},
            attempt=attempt, snapshot=imported[dataset]["snapshot"], state=state, environment=environment or {},
            **(start_message or {}),
        )  # fmt: skip

    return train


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], Any]:
    """Polls a condition until it holds, with a deadline."""

    def wait_for(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition did not come to hold"
            time.sleep(0.005)
        return value

    return wait_for
