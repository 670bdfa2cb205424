"""A backup of a daemon with real workers that train and append meanwhile: what is restored is whole, and ends as it would have."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import offrl
from offrl_store import EpisodeStore
from offrl_store.check import check

WAIT_S = 100
STEPS = 1500


def arrays(seed: int, rows: int = 200) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    ends = np.zeros(rows, bool)
    ends[49::50] = True
    return {
        "observations": random.normal(size=(rows, 3)).astype(np.float32),
        "actions": random.integers(0, 3, rows).astype(np.int64),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": ends,
    }


def weights(state_dir, job: str) -> dict[str, bytes]:
    tensors = load_file(state_dir / "jobs" / job / "checkpoints" / f"{STEPS:012d}.safetensors")
    return {name: value.tobytes() for name, value in tensors.items()}


@pytest.mark.slow
def test_a_back_up_under_load_is_whole_and_its_jobs_end_with_the_same_bits(own_daemon, cli, tmp_path, monkeypatch):
    daemon = own_daemon.start()
    monkeypatch.setenv("OFFRL_URL", daemon.url)
    with offrl.Client(daemon.url) as client:
        client.datasets.add("data", arrays(0))
        client.datasets.add("grows", arrays(0))
        job = client.submit("discrete_bc", dataset="data", steps=STEPS, device="cpu", runner="eager", seeds=[0, 1])
        end = time.monotonic() + WAIT_S
        while job.info().step < 20:
            assert time.monotonic() < end
            time.sleep(0.02)
        stop, appended = threading.Event(), []

        def append() -> None:
            with offrl.Client(daemon.url) as robot:
                while not stop.is_set():
                    robot.datasets.append("grows", arrays(len(appended) + 1))
                    appended.append(True)

        robot = threading.Thread(target=append)
        robot.start()
        try:
            while not appended:
                time.sleep(0.01)
                assert robot.is_alive()
            told = cli("backup", tmp_path / "out", "--json")
            assert told.status == 0, told.err
        finally:
            stop.set()
            robot.join()
        undisturbed = job.wait(WAIT_S)
        assert undisturbed.attempt == 1
        expected = weights(daemon.state_dir, job.id)
        episodes = client.datasets.show("grows").episodes
    own_daemon.stop()

    monkeypatch.delenv("OFFRL_URL")
    copy = daemon.state_dir.parent / "copy" / "state"
    told = cli("restore", tmp_path / "out", "--state-dir", copy, "--json")
    assert (told.status, told.json["path"]) == (0, str(copy)), told.err
    restored = own_daemon.start_at(copy)
    with offrl.Client(restored.url) as client:
        known = client.datasets.show("grows")
        store = EpisodeStore.open(copy / "datasets" / "grows", known.snapshot)  # what the queue names is there
        assert check(copy / "datasets" / "grows") == []
        assert 8 <= len(store) <= episodes
        info = client.job(job.id).wait(WAIT_S)
        assert (info.state, info.attempt) == ("succeeded", 2)  # it was running, and went on
        assert weights(copy, job.id) == expected
        for each in client.jobs("import"):
            assert each.wait(WAIT_S, check=False).state == "succeeded", each.last.reason
        client.datasets.append("grows", arrays(99))
        assert check(copy / "datasets" / "grows") == []


@pytest.mark.parametrize("command", [("backup", "out"), ("restore", "nothing", "--state-dir", "state")])
def test_what_cannot_be_done_is_one_line(command, cli, nowhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = cli(*command)
    assert told.status == (3 if command[0] == "backup" else 2)
    assert len(told.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
