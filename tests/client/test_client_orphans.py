"""Steps whose worker, or daemon, died before it reported them: they are listed, or gone; their dataset's name is free or of use."""

from __future__ import annotations

import os
import signal

import pytest
from client_daemon import wait_for

import offrl
from offrl_store import EpisodeStore, check


def kill_worker(job: str, state_dir: str) -> None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if f"OFFRLD_WORKER={job}:{state_dir}".encode() in file.read():
                    os.kill(int(pid), signal.SIGKILL)
        except OSError:
            continue


def test_steps_of_a_worker_that_was_killed_before_it_told_of_them(own_daemon):
    own_daemon.settings("[workers]\nspare = 0\n[retry]\nattempts = 1\n")
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        job = client.collect("CartPole-v1", into="steps", steps=10**8, limit=10**6)
        path = daemon.state_dir / "datasets" / "steps"
        wait_for(lambda: path.exists() and len(EpisodeStore.open(path)) > 0, "synced steps")
        kill_worker(job.id, str(daemon.state_dir))
        info = job.wait(60, check=False)
        assert (info.state, "SIGKILL" in info.reason) == ("failed", True)
        listed = client.datasets.show("steps")
        store = EpisodeStore.open(path)
        assert listed.episodes == len(store) > 0 and check(path) == []
        assert listed.snapshot == str(store.snapshot())
        job.rm()
        more = client.collect("CartPole-v1", into="steps", steps=10)
        assert more.wait(60).state == "succeeded"
        assert client.datasets.show("steps").episodes > listed.episodes


def test_what_a_daemon_left_is_looked_after_when_it_comes_back(own_daemon):
    own_daemon.settings("[workers]\nspare = 0\n")
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        job = client.collect("CartPole-v1", into="steps", steps=100)
        assert job.wait(60).state == "succeeded"
        for name in ("kept", "empty"):
            path = daemon.state_dir / "datasets" / name
            source = EpisodeStore.open(daemon.state_dir / "datasets" / "steps")
            store = EpisodeStore.create(path, source.schema)
            if name == "kept":
                with store.writer() as writer:
                    writer.append(source.episodes[0])
            (path / "import.json").write_text(f'{{"job": "{job.id}"}}')
    own_daemon.stop()
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        assert client.datasets.show("kept").episodes == 1
        assert not (daemon.state_dir / "datasets" / "empty").exists()
        with pytest.raises(offrl.errors.Unknown):
            client.datasets.show("empty")
