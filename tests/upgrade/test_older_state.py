"""What an earlier version has left is gone on with, or refused with the way out; the samples were written by that version itself.

``state-queue-1.tar.gz`` is the state folder of a daemon with queue version 1 that was killed: a dataset, jobs that succeeded, were paused,
cancelled, waited and ran, with their checkpoints, and half an upload. ``policy-N.onnx`` are policy files of format N, and
``policies.json`` what they did for observations of zeros and of ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

import offrl
from offrl import Client, wire
from offrl.errors import ProtocolMismatch
from offrld.daemon.queue.schema import SCHEMA_VERSION
from offrld.embedded import embedded_daemon

SAMPLES = Path(__file__).resolve().parent / "samples"
DONE, PAUSED, CANCELLED, WAITING, RUNNING = "bmxsc7j5", "bgze96db", "ekpkydq6", "xr93kt3z", "v33anvqb"


@pytest.fixture
def state() -> Iterator[Path]:
    """The old state folder, at a short path: a socket's has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-old-"))
    with tarfile.open(SAMPLES / "state-queue-1.tar.gz") as archive:
        archive.extractall(folder / "state", filter="data")
    (folder / "state").chmod(0o700)
    for path in [folder / "state", *(folder / "state").rglob("*")]:
        os.utime(path)  # used until just now: an upload that nobody goes on with for a day is removed
    yield folder / "state"
    shutil.rmtree(folder)


def until(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.05)
    return value


def test_a_state_folder_of_queue_version_1_is_gone_on_with(state: Path) -> None:
    before = {path.name: path.read_bytes() for path in (state / "datasets" / "data" / "columns").iterdir()}
    with embedded_daemon(state) as client:
        jobs = {job.id: job.last for job in client.jobs(kind="all")}
        assert {job: jobs[job].state for job in (DONE, PAUSED, CANCELLED, WAITING)} == {
            DONE: "succeeded",
            PAUSED: "paused",
            CANCELLED: "cancelled",
            WAITING: "queued",
        }
        assert len(jobs) == 7
        assert jobs[DONE].metrics["critic_loss"]["0"] > 0
        assert next(client.job(DONE).follow()).n == 1
        assert client.datasets.show("data").transitions == 196
        config = client.job(WAITING).info().spec["config"]
        again = client.submit("td3_bc", dataset="data", steps=40, config=config, after=PAUSED, key="later", priority=3)
        assert again.id == WAITING

        # Half an upload goes on: what had arrived is still there.
        data = b"0123456789"
        entry = wire.FileEntry(path="a.bin", size=10, sha256=hashlib.sha256(data).hexdigest())
        assert client.request(wire.OpenUpload(upload="half-way", files=[entry])).received == {"a.bin": 4}
        client.request(wire.WriteChunk(upload="half-way", path="a.bin", offset=4, data=data[4:], crc32=zlib.crc32(data[4:])))
        client.request(wire.FinishUpload(upload="half-way"))

        # The policy of a job that has ended, and a checkpoint that is trained on: the job that ran is at its 83rd update.
        policy = offrl.Policy(client.job(DONE).fetch(state.parent / "policy.onnx"))
        assert policy.act(np.zeros(3, np.float32)).shape == (1,)
        running = client.job(RUNNING)
        until(lambda: "resumed from the checkpoint at step 83" in running.log())
        assert running.info().attempt == 2
        running.cancel()
        running.wait(check=False)
    with sqlite3.connect(state / "queue.sqlite.v1") as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",)
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (7,)
    db.close()
    assert {path.name: path.read_bytes() for path in (state / "datasets" / "data" / "columns").iterdir()} == before


def test_the_state_of_a_newer_daemon_is_refused_and_left_as_it_was(state: Path) -> None:
    newer = SCHEMA_VERSION + 7
    with sqlite3.connect(state / "queue.sqlite") as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(newer),))
    db.close()
    before = files(state)
    done = subprocess.run(
        [sys.executable, "-m", "offrld.daemon.main", "--state-dir", str(state)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 2, done.stderr  # systemd does not try again
    [line] = done.stderr.strip().splitlines()
    assert f"has version {newer}, this daemon reads version {SCHEMA_VERSION}" in line
    assert "a newer offrld wrote it" in line
    assert files(state) == before


def files(state: Path) -> dict[str, bytes]:
    """All that lasts, byte for byte."""
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file() and path.name not in ("offrld.lock", "queue.sqlite-shm", "queue.sqlite-wal")
    }


def test_the_way_back_that_is_documented_works(state: Path) -> None:
    """The copy that was kept takes the place of the queue: what the earlier version needs is there, and it can be upgraded again."""
    with embedded_daemon(state) as client:
        client.job(RUNNING).cancel()
    for name in ("queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm"):
        (state / name).unlink(missing_ok=True)
    (state / "queue.sqlite.v1").rename(state / "queue.sqlite")
    with sqlite3.connect(state / "queue.sqlite") as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",)
    db.close()
    with embedded_daemon(state) as client:
        assert client.job(DONE).info().state == "succeeded"
        client.job(RUNNING).cancel()


@pytest.mark.parametrize("version", [1, 2])
def test_policy_files_of_every_format_run(version: int) -> None:
    policy = offrl.Policy(SAMPLES / f"policy-{version}.onnx")
    assert policy.metadata["format"] == version
    first = policy.act(np.zeros(3, np.float32))
    second = policy.act(np.ones(3, np.float32))
    assert first.shape == second.shape == (1,)
    known = json.loads((SAMPLES / "policies.json").read_text())[str(version)]
    np.testing.assert_allclose(np.concatenate([first, second]), known, atol=1e-5)


@pytest.fixture(params=[wire.PROTOCOL - 1, wire.PROTOCOL + 1])
def other_protocol(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Somebody who speaks the protocol before this one, or after it: where it listens, and which."""
    folder = tempfile.mkdtemp(prefix="offrl-other-")
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    url = f"ipc://{folder}/offrld.sock"
    socket.bind(url)
    os.chmod(f"{folder}/offrld.sock", 0o600)
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            if socket.poll(50):
                client, number, _ = socket.recv_multipart()
                error = {"code": "protocol_mismatch", "message": "the client speaks another", "hint": "upgrade"}
                socket.send_multipart([client, number, msgpack.packb({"protocol": request.param, "ok": False, "error": error})])

    thread = threading.Thread(target=answer)
    thread.start()
    yield url, request.param
    ended.set()
    thread.join()
    context.destroy(linger=0)
    shutil.rmtree(folder)


def test_a_client_tells_a_daemon_of_another_protocol(other_protocol: tuple[str, int]) -> None:
    url, version = other_protocol
    with Client(url) as client, pytest.raises(ProtocolMismatch, match=f"daemon speaks protocol {version}, this client {wire.PROTOCOL};"):
        client.ping()
    command = [sys.executable, "-c", "from offrl.cli import main; raise SystemExit(main())", "ping"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env={**os.environ, "OFFRL_URL": url})
    assert done.returncode == 3, done.stderr
    said = " ".join(done.stderr.split())
    assert f"the daemon speaks protocol {version}, this client {wire.PROTOCOL}" in said
    older = "daemon" if version < wire.PROTOCOL else "client"
    assert f"install the same version of offrl on both sides: the {older} is older" in said


def test_a_client_of_another_protocol_is_told_so(state: Path) -> None:
    """The answer has the form that every version reads: protocol, ok, error."""
    context = zmq.Context()
    with embedded_daemon(state) as client:
        socket = context.socket(zmq.DEALER)
        socket.connect(client.url)
        for version, older in ((wire.PROTOCOL - 1, "client"), (wire.PROTOCOL + 1, "daemon")):
            socket.send_multipart([b"1", msgpack.packb({"protocol": version, "type": "ping", "of_its_own": 1})])
            assert socket.poll(30_000)
            answer = msgpack.unpackb(socket.recv_multipart()[1])
            assert (answer["protocol"], answer["ok"], answer["error"]["code"]) == (wire.PROTOCOL, False, "protocol_mismatch")
            assert answer["error"]["message"] == f"the client speaks protocol {version}, this daemon {wire.PROTOCOL}"
            assert answer["error"]["hint"] == f"install the same version of offrl on both sides: the {older} is older"
        client.job(RUNNING).cancel()
        context.destroy(linger=0)
