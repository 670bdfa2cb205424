"""The real daemon in its own process, restarted on one state folder, and the processes that it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offrl import Client
from offrl.errors import NoDaemon
from offrld.executors.local import MARK

START_S = 120.0  # on a busy machine
PROGRAM = (sys.executable, "-m", "offrld.daemon.main")


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Poll ``condition`` until it is true; its value. `AssertionError` after so long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come in {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Service:
    """``start`` it, ``kill`` it, ``start`` it again. Its stderr is appended to ``log``; ``url`` is where it is reached.

    ``program``: the daemon's command line, where it is to run in another place; ``disk``: a folder that this program sees as
    ``folder/disk``, for its state.
    """

    def __init__(
        self,
        folder: Path,
        settings: str = "",
        environment: dict[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        disk: Path | None = None,
    ) -> None:
        self.log, self.url = folder / "daemon.log", f"ipc://{folder}/offrld.sock"
        self.state = (disk or folder) / "state"  # as it is seen from here
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "offrld.toml").write_text(settings)
        named = folder / "state" if disk is None else folder / "disk" / "state"
        self.command = [*program, "--state-dir", str(named), "--bind", self.url]
        # The product is named: `auto` measures which is the faster, and on a busy machine two jobs may come to different last bits.
        self._environment = {**os.environ, "OFFRL_LINEAR": "torch", **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process, without waiting for it to answer."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment)

    def refused(self) -> tuple[int, list[str]]:
        """Start it where it is expected to refuse: its exit status, and the lines that it says."""
        done = subprocess.run(self.command, stderr=subprocess.PIPE, timeout=START_S, env=self._environment)
        return done.returncode, done.stderr.decode().splitlines()

    def start(self) -> Client:
        """Start the process; a client of it, once it answers."""
        self.launch()
        return self.client()

    def client(self) -> Client:
        """A client, once the daemon answers. `AssertionError` where it ends instead."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                client = Client(self.url)
                client.ping()
                return client
            except NoDaemon:
                assert self.process is not None
                said = self.log.read_text()[-3000:]
                assert self.process.poll() is None, f"the daemon ended with status {self.process.returncode}: {said}"
                assert time.monotonic() < deadline, f"the daemon does not answer: {said}"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the daemon alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        """End whatever is left of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.workers():
            with_number(pid, signal.SIGKILL)

    def workers(self) -> dict[int, str]:
        """Every process that a daemon of this folder has started, whichever daemon: process id -> job, or spare-... ."""
        found = {}
        mark, folder = f"{MARK}=".encode(), os.fsencode(self.state)
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                environment = Path(entry.path, "environ").read_bytes().split(b"\0")
                state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            for variable in environment:
                name, _, where = variable.removeprefix(mark).partition(b":")
                if variable.startswith(mark) and where == folder and state != "Z":
                    found[int(entry.name)] = name.decode()
        return found


def with_number(pid: int, number: int) -> bool:
    """Send a signal; False where the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
