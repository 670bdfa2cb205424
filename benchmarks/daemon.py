"""A daemon of one's own for a benchmark: in a temporary folder, ended when the benchmark ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import offrl
from offrl.errors import NoDaemon


@contextmanager
def running_daemon() -> Iterator[offrl.Client]:
    """Start `offrld` in a temporary state folder and give a client of it."""
    with tempfile.TemporaryDirectory(prefix="offrl-") as folder:
        log = Path(folder) / "daemon.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen([sys.executable, "-m", "offrld.daemon.main", "--state-dir", f"{folder}/state"], stderr=stderr)
        try:
            client = _connect(f"ipc://{folder}/state/run/offrld.sock", process, log)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=30)


def _connect(url: str, process: subprocess.Popen[bytes], log: Path) -> offrl.Client:
    deadline = time.monotonic() + 30
    while True:
        try:
            client = offrl.Client(url)
            client.ping()
            return client
        except NoDaemon:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
