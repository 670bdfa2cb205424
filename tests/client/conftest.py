"""A real daemon in a folder of its own for the client's tests, a client of it, and the command line with its output taken apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from client_daemon import Daemon, start_daemon, stop_daemon

import offrl
from offrl.cli import run


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests that do not stop it."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))  # short: a socket's path has 107 bytes
    (folder / "state").mkdir()
    (folder / "state" / "offrld.toml").write_text("[slots]\ntrain = 1\n")  # the tests say what waits
    started = start_daemon(folder / "state")
    try:
        yield started
    finally:
        stop_daemon(started)
        shutil.rmtree(folder, ignore_errors=True)


class OwnDaemon:
    """A daemon of one test, which may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, None

    def settings(self, text: str) -> None:
        """What stands in its offrld.toml, before it is started."""
        (self._folder / "state").mkdir(parents=True, exist_ok=True)
        (self._folder / "state" / "offrld.toml").write_text(text)

    def start(self) -> Daemon:
        return self.start_at(self._folder / "state")

    def start_at(self, state_dir: Path) -> Daemon:
        """On another folder below the test's own."""
        self._running = start_daemon(state_dir)
        return self._running

    def stop(self) -> None:
        if self._running is not None:
            stop_daemon(self._running)
            self._running = None


@pytest.fixture
def own_daemon() -> Iterator[OwnDaemon]:
    """A daemon that no other test uses, not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))
    made = OwnDaemon(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def client(daemon: Daemon) -> Iterator[offrl.Client]:
    with offrl.Client(daemon.url) as made:
        yield made


@dataclass
class Ran:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process, against ``OFFRL_URL`` as the test has set it."""

    def command(*arguments: object) -> Ran:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ran(status, out, err)

    return command


@pytest.fixture
def offrl_cli(daemon: Daemon, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """The same against the daemon."""
    monkeypatch.setenv("OFFRL_URL", daemon.url)
    return cli


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which no daemon can be found by chance; the state folder that is named."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.setenv("OFFRLD_STATE_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def offrl_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command line as a process of its own."""

    def process(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "offrl.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=100, **options)

    return process
