"""Fixtures of the daemon's tests: daemons in processes of their own, in short temporary folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_harness import Daemon

from offrld.daemon.queue.database import Connection, connect


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Connection]:
    """Open the database of an empty queue."""
    db = connect(tmp_path / "queue.sqlite")
    yield db
    db.close()


@pytest.fixture(scope="session")
def folders() -> Iterator[Callable[[], Path]]:
    """Make short temporary folders: a socket's path has at most 107 bytes."""
    made: list[str] = []

    def make() -> Path:
        made.append(tempfile.mkdtemp(prefix="offrld-"))
        return Path(made[-1])

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_daemon(folders: Callable[[], Path]) -> Iterator[Callable[..., Daemon]]:
    """Make daemons that are not started yet and end after the test."""
    made: list[Daemon] = []

    def make(settings: str = "") -> Daemon:
        made.append(Daemon(folders(), settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture(scope="session")
def daemon(folders: Callable[[], Path]) -> Iterator[Daemon]:
    """Share a running daemon between tests: each test uses names of its own and leaves nothing running."""
    settings = "[slots]\ntrain = 4\nlight = 2\n[devices]\nthreads = 8\n[grace]\ncancel_s = 0.3\npause_s = 0.3\nstop_s = 2\n"
    daemon = Daemon(folders(), settings).start()
    yield daemon
    daemon.close()
    assert daemon.process is not None
    assert daemon.process.returncode == 0, daemon.output.read_text()
    assert "Traceback" not in daemon.output.read_text(), daemon.output.read_text()
