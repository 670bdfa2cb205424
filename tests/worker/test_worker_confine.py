"""A worker reaches the files that its job needs, and the kernel refuses the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offrld import landlock

pytestmark = pytest.mark.skipif(landlock.abi() < 4, reason="the kernel has no Landlock with rules for TCP (ABI 4)")

# Restricts itself as a worker of that job does, then tries each action and prints the result.
CHILD = """
import json, os, socket, subprocess, sys, tempfile
from pathlib import Path
from offrld.worker.confine import confine
from offrld.state.folder import StateFolder
start, acts = json.loads(sys.argv[1])
state = StateFolder(Path(start["state_dir"]))
assert confine(start, state, state.run(start["job"])) or not start.get("confine", True)
def read(path): return Path(path).read_text()
def write(path): Path(path).write_text("x")
def listing(path): return os.listdir(path)
def run(path): return subprocess.run([path], check=True)
def connect(port): socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
def signal(pid): os.kill(int(pid), 0)
def remove(path): Path(path).unlink()
def link(path): os.link(path, state.run(start["job"]).path / "linked")
def temporary(_): tempfile.NamedTemporaryFile().close()
def load(name): __import__(name)
done = {}
for act, what in acts:
    try:
        globals()[act](what)
        done[f"{act} {what}"] = "done"
    except PermissionError:
        done[f"{act} {what}"] = "refused"
    except OSError as error:
        done[f"{act} {what}"] = type(error).__name__
print(json.dumps(done))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder as a daemon leaves it, with what must stay closed, and a file outside of it."""
    root = tmp_path / "state"
    for folder in ("keys", "datasets/there", "jobs/mine", "jobs/other", "uploads/mine/files", "uploads/other/files", "cache"):
        (root / folder).mkdir(parents=True)
    for file in (
        "keys/server.key",
        "queue.sqlite",
        "audit.log",
        "datasets/there/schema.json",
        "jobs/other/spec.json",
        "uploads/mine/files/a",
        "uploads/other/files/a",
    ):
        (root / file).write_text("content")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("content")
    return root


def attempt(state: Path, spec: dict[str, Any], acts: list[tuple[str, object]], **start: Any) -> dict[str, str]:
    start = {"job": "mine", "state_dir": str(state), "spec": spec, **start}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([start, [(act, str(what)) for act, what in acts]])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {key.replace(str(state.parent), ""): value for key, value in json.loads(done.stdout).items()}


def test_an_import_reads_its_upload_and_writes_datasets_only(state: Path) -> None:
    acts = [
        ("read", state / "uploads/mine/files/a"),
        ("write", state / "datasets/new"),
        ("write", state / "jobs/mine/note"),
        ("temporary", ""),
        ("load", "h5py"),
        ("load", "wave"),
        ("read", state / "uploads/other/files/a"),
        ("read", state / "keys/server.key"),
        ("read", state / "queue.sqlite"),
        ("read", state / "audit.log"),
        ("read", state / "jobs/other/spec.json"),
        ("write", state / "jobs/other/spec.json"),
        ("read", state.parent / "outside/file"),
        ("write", state.parent / "outside/file"),
        ("remove", state.parent / "outside/file"),
        ("listing", Path.home()),
        ("read", "/etc/shadow"),
        ("run", "/bin/true"),
        ("signal", os.getpid()),
        ("read", f"/proc/{os.getpid()}/environ"),
    ]
    done = attempt(state, {"kind": "import", "upload": "mine", "path": None, "named": None}, acts)
    assert list(done.values()) == ["done"] * 6 + ["refused"] * 14, done


def test_an_import_of_a_path_reads_below_that_path_and_nothing_beside_it(state: Path) -> None:
    root = state.parent / "outside"
    (root / "data").mkdir()
    (root / "data" / "a").write_text("content")
    spec = {"kind": "import", "upload": None, "path": str(root / "data"), "named": None}
    acts = [("read", root / "data/a"), ("read", root / "file")]
    assert list(attempt(state, spec, acts, import_roots=[str(root)]).values()) == ["done", "refused"]
    assert list(attempt(state, spec, acts, import_roots=["/elsewhere"]).values()) == ["refused", "refused"]


def test_only_an_import_that_downloads_reaches_the_network(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("HOME", str(tmp_path))  # where downloads go
    with socket.create_server(("127.0.0.1", 0)) as server:
        acts = [("connect", server.getsockname()[1])]
        uploaded = attempt(state, {"kind": "import", "upload": "mine", "path": None, "named": None}, acts)
        named = attempt(
            state,
            {"kind": "import", "upload": None, "path": None, "named": "hopper-medium-v2"},
            [*acts, ("write", tmp_path / ".d4rl/datasets/new")],
        )
    assert list(uploaded.values()) == ["refused"]
    assert list(named.values()) == ["done", "done"]


@pytest.mark.parametrize("kind", ["train", "collect", "train_online"])
def test_a_job_with_an_environment_keeps_the_machine_but_not_the_services_secrets(state: Path, kind: str) -> None:
    steps = kind != "train"
    acts = [
        ("read", state.parent / "outside/file"),
        ("write", state.parent / "outside/new"),
        ("run", "/bin/true"),
        ("temporary", ""),
        ("read", state / "jobs/other/spec.json"),
        ("read", state / "datasets/there/schema.json"),
        ("write", state / "cache/a"),
        ("link", state / "jobs/other/spec.json"),
        ("read", state / "keys/server.key"),
        ("read", state / "queue.sqlite"),
        ("read", state / "audit.log"),
        ("read", state / "uploads/other/files/a"),
        ("write", state / "keys/clients.toml"),
    ]
    done = attempt(state, {"kind": kind}, acts)
    assert list(done.values()) == ["done"] * 8 + ["refused"] * 5, done
    written = attempt(state, {"kind": kind}, [("write", state / "datasets/there/schema.json")])
    assert list(written.values()) == ["done" if steps else "refused"]


def test_a_symbolic_link_beside_the_state_folder_gives_no_access_to_it(state: Path) -> None:
    (state.parent / "link").symlink_to(state)
    done = attempt(state, {"kind": "train"}, [("read", state.parent / "link/keys/server.key"), ("read", state / "keys/server.key")])
    assert list(done.values()) == ["refused", "refused"]


def test_the_administrator_may_switch_it_off(state: Path) -> None:
    acts = [("read", state.parent / "outside/file")]
    spec = {"kind": "import", "upload": "mine", "path": None, "named": None}
    assert list(attempt(state, spec, acts, confine=False).values()) == ["done"]
