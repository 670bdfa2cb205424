"""A real daemon process for the client's tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import offrl

UP_S = 120.0  # for a daemon to answer on a busy machine


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    """What the condition gives once it holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come about within {seconds} s"
        time.sleep(0.05)
    return found


@dataclass
class Daemon:
    """A running daemon: its address, its state folder and its process."""

    url: str
    state_dir: Path
    process: subprocess.Popen[bytes]


def start_daemon(state_dir: Path) -> Daemon:
    """Start a daemon and wait until it answers."""
    log = (state_dir.parent / "daemon.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "offrld.daemon.main", "--state-dir", str(state_dir)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    log.close()
    url = f"ipc://{state_dir}/run/offrld.sock"
    end = time.monotonic() + UP_S
    while True:
        try:
            with offrl.Client(url) as client:
                client.ping()
            return Daemon(url, state_dir, process)
        except offrl.errors.NoDaemon:
            text = (state_dir.parent / "daemon.log").read_text()[-2000:]
            assert process.poll() is None, f"the daemon ended: {text}"
            assert time.monotonic() < end, f"the daemon does not answer: {text}"
            time.sleep(0.05)


def stop_daemon(daemon: Daemon) -> None:
    """End it as systemd would."""
    daemon.process.send_signal(signal.SIGTERM)
    try:
        daemon.process.wait(120)
    except subprocess.TimeoutExpired:
        daemon.process.kill()
        daemon.process.wait(60)


class Relay:
    """A link to a daemon, at ``url``, that breaks after ``limit`` bytes towards it (None: never), and is ``down`` then."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self.url, self.limit, self.down = f"ipc://{path}", None, False
        self._to = daemon.url.removeprefix("ipc://")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here = self._listener.accept()[0]
                if self.down:
                    here.close()
                    continue
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._to)
                for ends in ((here, there, True), (there, here, False)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data) if up else 0
                if self.limit is not None and passed > self.limit:
                    self.down = True
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
