"""A private daemon for the time of a `with` block, without any setup: for the demo, notebooks and benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offrl.client import Client
from offrl.errors import NoDaemon, OffrlError

START_S = 60.0  # a cold disk makes the first start slow
STOP_S = 30.0


@contextmanager
def embedded_daemon(state_dir: str | os.PathLike[str] | None = None) -> Iterator[Client]:
    """Start `offrld` as a child process and yield a client of it; the daemon ends with the block.

    Args:
        state_dir: its state folder; by default a temporary folder that is removed at the end.

    Raises:
        OffrlError: it did not start; the message holds the last line of its log.
    """
    with tempfile.TemporaryDirectory(prefix="offrl-") as temporary:
        state = Path(state_dir or Path(temporary) / "state").absolute()
        log = Path(temporary) / "daemon.log"
        with log.open("wb") as stderr:
            command = [sys.executable, "-m", "offrld.daemon.main", "--state-dir", str(state)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            with _connected(f"ipc://{state}/run/offrld.sock", process, log) as client:
                yield client
        finally:
            process.terminate()
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _connected(url: str, process: subprocess.Popen[bytes], log: Path) -> Client:
    deadline = time.monotonic() + START_S
    while True:
        try:
            client = Client(url)
            client.ping()
            return client
        except NoDaemon:
            if process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                last = lines[-1] if lines else "it wrote no log"
                raise OffrlError(f"the embedded daemon did not start: {last}", hint="run `offrl serve` to see why") from None
            time.sleep(0.02)
