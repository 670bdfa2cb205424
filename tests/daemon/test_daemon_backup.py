"""A backup of a working daemon, and a daemon started on the restored state folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from daemon_harness import Daemon, until

import offrl
from offrl import backup as backups
from offrl import wire
from offrl.errors import CheckFailed, Conflict, InvalidInput, Unknown
from offrl_store import EpisodeStore, Field, Schema
from offrl_store.check import check
from offrld.daemon.queue.database import connect
from offrld.daemon.storage import backup
from offrld.state.folder import StateFolder

LONG = 10**6


def taken(daemon: Daemon, out: Path, **options) -> dict:
    with offrl.Client(daemon.url) as client:
        return backups.backup(client, out, **options)


def frozen(daemon: Daemon) -> list[Path]:
    return list((daemon.state / "cache" / "backup").iterdir())


@pytest.fixture
def restored(new_daemon):
    """Restore a backup into the folder of a new daemon, which is not started yet."""

    def restore(source: Path) -> Daemon:
        daemon = new_daemon()
        shutil.rmtree(daemon.state)
        backups.restore(source, daemon.state)
        return daemon

    return restore


def test_jobs_continue_after_a_restore(new_daemon, restored, tmp_path: Path) -> None:
    daemon = new_daemon("[slots]\ntrain = 2\n[limits]\nunfinished = 77\n").start()
    data = daemon.dataset("data")
    done = daemon.train(data, key="done", seeds=[1, 2])
    daemon.wait(done)
    running = [daemon.train(data, "slow", steps=150) for _ in range(2)]
    queued = daemon.train(data, priority=3)
    imported = daemon.import_("more", format="slow")
    for job in (*running, imported):
        daemon.wait(job, "running")
    until(lambda: all(daemon.job(job).step > 3 for job in running))
    about = taken(daemon, tmp_path / "out")
    assert frozen(daemon) == []
    assert {each["action"] for each in daemon.ask(wire.ReadAudit()).entries} >= {"begin_backup"}
    assert about["files"] == sum(1 for path in (tmp_path / "out" / "state").rglob("*") if path.is_file())
    assert not (tmp_path / "out" / "state" / "keys").exists()
    before = {job: daemon.events(job) for job in (done, *running)}
    daemon.close()

    daemon = restored(tmp_path / "out")
    assert {stat.S_IMODE(path.stat().st_mode) for path in daemon.state.rglob("*")} == {0o600, 0o700}
    daemon.start()
    assert daemon.ask(wire.GetQueue()).limits["limits.unfinished"] == 77  # its settings came with it
    assert daemon.job(done).state == "succeeded"
    assert daemon.events(done) == before[done]
    assert daemon.train(data, key="done", seeds=[1, 2]) == done
    for job in (*running, queued):
        assert daemon.wait(job).state == "succeeded"
        events = daemon.events(job)
        assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert daemon.job(imported).state == "running"  # its upload is there again
    daemon.control(imported, "cancel")
    assert daemon.ask(wire.OpenArtifact(job=done, kind="metrics")).ready


def test_files_removed_or_replaced_during_the_copy_are_in_the_back_up(new_daemon, tmp_path: Path) -> None:
    daemon = new_daemon().start()
    data = daemon.dataset("data")
    job = daemon.train(data)
    daemon.wait(job)
    log = daemon.state / "jobs" / job / "log.txt"
    written = log.read_bytes()
    begun = daemon.ask(wire.BeginBackup())
    daemon.control(job, "remove")
    daemon.ask(wire.RemoveDataset(name=data))
    listed = daemon.ask(wire.ReadBackup(backup=begun.backup, path=begun.list, offset=0, size=wire.CHUNK)).data
    files = {file["path"]: file["size"] for file in map(json.loads, listed.splitlines())}
    assert files[f"jobs/{job}/log.txt"] == len(written)
    assert f"datasets/{data}/log" in files
    assert daemon.ask(wire.ReadBackup(backup=begun.backup, path=f"jobs/{job}/log.txt", offset=0, size=wire.CHUNK)).data == written
    for path in ("../../queue.sqlite", "/etc/hostname", "jobs"):
        with pytest.raises((Unknown, InvalidInput)):
            daemon.ask(wire.ReadBackup(backup=begun.backup, path=path, offset=0, size=10))
    daemon.ask(wire.EndBackup(backup=begun.backup))
    with pytest.raises(Unknown):
        daemon.ask(wire.ReadBackup(backup=begun.backup, path="queue.sqlite", offset=0, size=10))


def test_abandoned_back_ups_are_bounded_and_deleted(new_daemon) -> None:
    daemon = new_daemon().start()
    for _ in range(4):
        daemon.ask(wire.BeginBackup())
    with pytest.raises(Conflict, match="4 backups are being copied"):
        daemon.ask(wire.BeginBackup())
    old = frozen(daemon)[0]
    os.utime(old, (1, 1))
    daemon.ask(wire.BeginBackup())
    assert not old.exists()
    daemon.stop()
    daemon.start()
    until(lambda: not frozen(daemon))


def test_keys_are_in_a_back_up_on_request_only_and_private(new_daemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    offrl.keys.server_pair(daemon.state)
    secret = (daemon.state / "keys" / "server.key").read_bytes()
    daemon.start()
    taken(daemon, tmp_path / "without")
    assert not (tmp_path / "without" / "state" / "keys").exists()
    taken(daemon, tmp_path / "with", keys=True)
    path = tmp_path / "with" / "state" / "keys" / "server.key"
    assert path.read_bytes() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    backups.restore(tmp_path / "with", tmp_path / "state")
    assert (tmp_path / "state" / "keys" / "server.key").read_bytes() == secret


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup."""
    daemon = Daemon(folders()).start()
    try:
        daemon.wait(daemon.train(daemon.dataset("data")))
        out = tmp_path_factory.mktemp("backup") / "out"
        taken(daemon, out)
        with pytest.raises(InvalidInput, match="already exists"):
            taken(daemon, out)
    finally:
        daemon.close()
    return out


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "no queue", "format", "leads out"])
def test_a_damaged_back_up_is_refused_and_leaves_nothing(made: Path, damage: str, tmp_path: Path) -> None:
    source, target = tmp_path / "copy", tmp_path / "state"
    shutil.copytree(made, source)
    path, about = source / "state" / "datasets" / "data" / "log", json.loads((source / "backup.json").read_text())
    if damage == "flipped":
        path.write_bytes(b"x" + path.read_bytes()[1:])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    elif damage == "no queue":
        about["files"] = [file for file in about["files"] if file["path"] != "queue.sqlite"]
    elif damage == "format":
        about["format"] = 99
    else:
        about["files"][0]["path"] = "../out"
    (source / "backup.json").write_text(json.dumps(about))
    with pytest.raises(InvalidInput if damage == "format" else CheckFailed):
        backups.restore(source, target)
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_or_half_restored_is_refused(made: Path, new_daemon, tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.mkdir()
    (target / "something").write_text("mine")
    with pytest.raises(InvalidInput, match="is not empty"):
        backups.restore(made, target)
    assert [path.name for path in target.iterdir()] == ["something"]
    daemon = new_daemon()
    (daemon.state / ".restoring").mkdir()
    status, lines = daemon.refused()
    assert status == 2
    assert "is being restored, or a restore was cut short" in lines[0]
    assert not (daemon.state / "queue.sqlite").exists()


# ------------------------------------------------------------------------------------------- a store that is written all the time
@pytest.mark.parametrize("limit", [None, 3000])
def test_a_dataset_that_is_written_step_by_step_is_frozen_at_one_moment(tmp_path: Path, limit: int | None) -> None:
    state = StateFolder(tmp_path / "state")
    state.prepare()
    with contextlib.closing(connect(state.database)) as db:
        db.execute("INSERT INTO datasets VALUES ('data', '{}', 'x', 'y', 0.0)")
    schema = Schema(observation=Field("float32", (2,)), action=Field("int64", low=0, high=1), reward=Field("float32"))
    EpisodeStore.create(state.datasets / "data", schema, **({} if limit is None else {"limit_transitions": limit}))
    stop, written = threading.Event(), [0]

    def write() -> None:
        with EpisodeStore.open(state.datasets / "data").writer() as writer:
            while not stop.is_set():
                writer.begin(np.full(2, written[0], np.float32))
                for last in [False] * 9 + [True]:
                    writer.step(0, float(written[0]), np.full(2, written[0], np.float32), last, False)
                    written[0] += 1
                writer.commit()
                stop.wait(0.002)

    robot = threading.Thread(target=write)
    robot.start()
    try:
        until(lambda: written[0] > 100)
        for number in range(3):
            begun = backup.begin(state, keys=False, version="x")
            behind, out = written[0], tmp_path / f"out-{number}"
            until(lambda behind=behind: written[0] > behind + 500)  # it goes on while it is copied
            for file in map(json.loads, (state.backups / begun.backup / begun.list).read_text().splitlines()):
                (out / file["path"]).parent.mkdir(parents=True, exist_ok=True)
                (out / file["path"]).write_bytes((state.backups / begun.backup / file["path"]).read_bytes()[: file["size"]])
            backup.end(state, begun.backup)
            copy = out / "datasets" / "data"
            assert check(copy) == []
            with EpisodeStore.open(copy).writer():  # takes over, or cuts, what the other had not finished
                pass
            assert check(copy) == []
            found = EpisodeStore.open(copy)
            rewards = np.concatenate([episode.reward for episode in found.episodes])
            assert np.array_equal(rewards, np.arange(rewards[0], rewards[0] + len(rewards)))  # none missing, none twice
            assert (rewards[0] == 0) == (limit is None or behind < limit)
            assert behind - 30 <= rewards[-1] + 1 <= behind + 10 or limit is not None
    finally:
        stop.set()
        robot.join()
