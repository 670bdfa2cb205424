"""A real daemon in its own process, and a bare ZeroMQ client that talks to it with `offrl.wire`."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from offrl import wire
from offrl.job import ImportSpec, TrainSpec
from offrl.keys import ClientKey

HERE = Path(__file__).resolve().parent
DEADLINE_S = 120.0  # on a busy machine
_numbers = itertools.count()


def until(condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE_S) -> Any:
    """Poll ``condition`` until it is true; return its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"did not come in {seconds} s: {what or condition}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gateway(daemon: Daemon) -> int:
    """Return the process that listens on the daemon's tcp address."""
    assert daemon.process is not None
    children = [pid for task in Path(f"/proc/{daemon.process.pid}/task").glob("*/children") for pid in task.read_text().split()]
    return next(int(pid) for pid in children if b"offrld.daemon.transport.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes())


class Clock:
    """The clock of a daemon started with ``--clock PATH``: the machine's clock plus an offset that the test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, seconds: float) -> None:
        """Set the offset from the machine's clock. The file is replaced, because the daemon may read it at any moment."""
        beside = self.path.with_suffix(".new")
        beside.write_text(str(seconds))
        beside.replace(self.path)


class Connection:
    """One DEALER socket."""

    def __init__(self, context: zmq.Context, url: str, key: ClientKey | None = None) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if key is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(key.server))
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(key.public))
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(key.secret))
        self.socket.connect(url)

    def send(self, request: wire.Request) -> bytes:
        number = b"%d" % next(_numbers)
        self.socket.send_multipart([number, *wire.encode_frames(request)])
        return number

    def raw(self, frames: list[bytes], seconds: float = DEADLINE_S) -> list[bytes] | None:
        """Send any frames; return those of the reply, or None if none comes in time."""
        self.socket.send_multipart(frames)
        return self.socket.recv_multipart() if self.socket.poll(seconds * 1000) else None

    def receive(self, number: bytes, model: type[wire.Reply], seconds: float = DEADLINE_S) -> Any:
        while self.socket.poll(seconds * 1000):
            got, body = self.socket.recv_multipart()
            if got == number:
                return wire.decode_reply(body, model)
        raise TimeoutError(f"no reply in {seconds} s")

    def ask(self, request: wire.Request, seconds: float = DEADLINE_S) -> Any:
        return self.receive(self.send(request), request.reply, seconds)


class Daemon:
    """The daemon of one state folder, which can be started on it again and again."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self.output = folder / "stderr.txt"
        self.process: subprocess.Popen[bytes] | None = None
        if "[retry]" not in settings:  # a crash is final, unless the test is about retries
            settings += "\n[retry]\nattempts = 1\n"
        (self.state / "offrld.toml").write_text(settings)
        self.context = zmq.Context()
        self.connection: Connection | None = None

    @property
    def url(self) -> str:
        return f"ipc://{self.state}/run/offrld.sock"

    def start(self, *options: str, answer: bool = True) -> Daemon:
        """Start it, and wait until it answers unless ``answer`` is False."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "daemon_program.py"), "--state-dir", str(self.state), *options], stderr=output, stdout=output
            )
        self.connection = self.connect()
        if answer:
            self.ask(wire.Ping())
        return self

    def refused(self, *options: str, **environment: str) -> tuple[int, list[str]]:
        """Start another daemon that should refuse; return its exit status and output."""
        command = [sys.executable, str(HERE / "daemon_program.py"), *(options or ("--state-dir", str(self.state)))]
        done = subprocess.run(command, stderr=subprocess.PIPE, timeout=DEADLINE_S, env={**os.environ, **environment})
        return done.returncode, done.stderr.decode().splitlines()

    def connect(self) -> Connection:
        return Connection(self.context, self.url)

    def ask(self, request: wire.Request, seconds: float = DEADLINE_S) -> Any:
        assert self.connection is not None
        return self.connection.ask(request, seconds)

    def kill(self) -> None:
        """Send SIGKILL, like a crash of the daemon."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._disconnect()

    def stop(self) -> int:
        """Send SIGTERM; return the exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(DEADLINE_S)
        self._disconnect()
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self._disconnect()
        self.context.destroy(linger=0)  # a failed test has left sockets open

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.socket.close()
            self.connection = None

    # ------------------------------------------------------------------------------------------------------- shorthands
    def train(self, dataset: str, behaviour: str = "normal", *, algorithm: str = "anything", **fields: Any) -> str:
        """Submit a train job."""
        request = {name: fields.pop(name) for name in ("key", "after", "priority", "start_at", "start_in_s") if name in fields}
        spec = TrainSpec(algorithm=algorithm, dataset=dataset, **{"steps": 3, "config": {"behaviour": behaviour}, **fields})
        return self.ask(wire.Submit(spec=spec, **request)).job

    def upload(self, files: dict[str, bytes], upload: str | None = None) -> str:
        """Upload files in one chunk each."""
        upload = upload or f"up-{os.getpid()}-{next(_numbers)}"
        entries = [wire.FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()]
        self.ask(wire.OpenUpload(upload=upload, files=entries))
        for path, data in files.items():
            self.ask(wire.WriteChunk(upload=upload, path=path, offset=0, data=data, crc32=zlib.crc32(data)))
        self.ask(wire.FinishUpload(upload=upload))
        return upload

    def import_(self, dataset: str, format: str | None = None, **fields: Any) -> str:
        """Submit an import job of a fresh upload."""
        request = {name: fields.pop(name) for name in ("key", "after", "priority") if name in fields}
        spec = ImportSpec(dataset=dataset, upload=self.upload({"a.bin": b"abc"}), format=format, **fields)
        return self.ask(wire.Submit(spec=spec, **request)).job

    def dataset(self, name: str, format: str | None = None) -> str:
        """Import a dataset and wait for it; return its name."""
        assert self.wait(self.import_(name, format)).state == "succeeded"
        return name

    def job(self, job: str) -> wire.JobInfo:
        return self.ask(wire.GetJob(job=job))

    def control(self, job: str, action: str) -> wire.JobInfo:
        return self.ask(wire.ControlJob(job=job, action=action))

    def wait(self, job: str, *states: str) -> wire.JobInfo:
        """Wait until the job has ended, or is in one of ``states``."""
        return until(lambda: (info := self.job(job)) and (info.state in states if states else info.state.ended) and info, f"{job} {states}")

    def events(self, job: str) -> list[wire.Event]:
        """Return all events so far, requested in small parts."""
        found: list[wire.Event] = []
        while True:
            part = self.ask(wire.GetEvents(job=job, cursor=found[-1].n if found else 0, limit=7))
            found += part.events
            if not part.events:
                return found

    def attempts(self, job: str) -> list[tuple[int, int, str]]:
        """Return attempt number, process id and snapshot of every worker of the job."""
        path = self.state / "jobs" / job / "attempts.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(number), int(pid), snapshot) for number, pid, snapshot in (line.split() for line in lines)]
