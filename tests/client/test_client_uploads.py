"""Uploads that are cut off: the next attempt goes on with them, and none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from client_daemon import Relay, wait_for

import offrl
from offrl import upload
from offrl.errors import OffrlError
from offrl.recording.sender import Sender
from offrl.recording.spool import Spool
from offrl_store import Episode, EpisodeStore, Field, Schema


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "offrl" / "uploads"


@pytest.fixture
def source(tmp_path) -> Path:
    """40 MB."""
    path = tmp_path / "source.npz"
    observations = np.random.default_rng(0).normal(size=(5_000, 1_000))
    np.savez(path, observations=observations, actions=np.zeros((5_000, 1)), rewards=np.zeros(5_000), terminals=np.arange(5_000) % 10 == 9)
    return path


def uploads(daemon) -> dict[str, int]:
    """Uploads at the daemon, and how many bytes each has."""
    found = {}
    for entry in os.scandir(daemon.state_dir / "uploads"):
        found[entry.name] = sum(path.stat().st_size for path in Path(entry.path, "files").rglob("*") if path.is_file())
    return found


def test_killed_clients_leave_one_upload_which_the_next_one_goes_on_with(own_daemon, source, cache):
    own_daemon.settings("[uploads]\nopen_per_owner = 2\n[workers]\nspare = 0\n")
    daemon, before = own_daemon.start(), 0
    program = "import sys, offrl; offrl.Client(sys.argv[1]).datasets.add(sys.argv[2], sys.argv[3], progress=lambda *_: input())"
    for number in range(3):  # each stands still after some chunks
        child = subprocess.Popen([sys.executable, "-c", program, daemon.url, f"d{number}", source], stdin=subprocess.PIPE)
        wait_for(lambda before=before: sum(uploads(daemon).values()) > before, "more of it")
        child.kill()
        child.wait()
        [(_, before)] = uploads(daemon).items()
    assert len(list(cache.iterdir())) == 1
    [going_on] = uploads(daemon)
    with offrl.Client(daemon.url) as client:
        client.datasets.add("whole", source)
        [job] = client.jobs("import")
        assert job.info().spec["upload"] == going_on
        assert not list(cache.iterdir())  # used up: the next one of the same content starts from the beginning
        client.datasets.add("again", source)
        assert client.jobs("import")[-1].info().spec["upload"] != going_on


def test_two_that_send_the_same_content_at_once_do_not_share_an_upload(daemon, client, source, cache):
    files = upload.scan(source)
    meet, sent = threading.Barrier(2), []

    def send() -> None:
        connection = client.connect()
        try:
            first = [lambda: meet.wait(30)]
            sent.append(upload.deliver(connection, files, lambda *_: first and first.pop()()))
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sent)) == 2


def test_without_a_place_for_notes_uploads_work_as_well(client, source, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    connection = client.connect()
    try:
        assert upload.deliver(connection, upload.scan(source)).startswith("up-")
    finally:
        connection.close()


def test_a_note_that_the_daemon_does_not_take_gives_way_to_a_new_one(client, source, cache, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"other content")
    connection = client.connect()
    try:
        taken = upload.send(connection, upload.scan(other))
        with upload._noted(client.url, upload.scan(source)) as (mine, _):
            [note] = cache.iterdir()
        note.write_text(taken)
        assert upload.deliver(connection, upload.scan(source)) not in (taken, mine)
    finally:
        connection.close()


def test_a_recorder_s_segment_arrives_over_a_link_that_breaks_again_and_again(own_daemon, tmp_path):
    """Each attempt brings a part of it; none of them leaves an upload of its own."""
    own_daemon.settings("[uploads]\nopen_per_owner = 2\n[workers]\nspare = 0\n")
    daemon = own_daemon.start()
    relay = Relay(daemon, daemon.state_dir.parent / "relay")
    with Spool(tmp_path / "spool", "steps") as spool:
        number, path = spool.begin_segment()
        with EpisodeStore.create(path, Schema(Field("float32", (2048,)), Field("float32", (1,)), Field("float32"))).writer() as writer:
            for seed in range(8):
                observations = np.random.default_rng(seed).normal(size=(101, 2048)).astype(np.float32)
                writer.append(Episode(observations, np.zeros((100, 1), np.float32), np.zeros(100, np.float32), True))
        spool.seal(number)
        sender = Sender(spool, lambda: offrl.Client(relay.url, patience=0.01, timeout=10), threading.Event())
        relay.limit, broken = 3_000_000, 0
        while not sender.sent:
            relay.limit += 100_000  # however unlucky the link's ends lie, it comes to an end
            relay.down = False
            try:
                sender.send_ready()
            except OffrlError as error:
                broken += 1
                assert error.code == "no_daemon" and broken < 50, error
            assert len(uploads(daemon)) <= 1
    relay.close()
    assert broken >= 2
    assert len(EpisodeStore.open(daemon.state_dir / "datasets" / "steps")) == 8
