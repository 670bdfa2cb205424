"""What a job takes is bounded: the memory of an import, the quota of the state folder, and the disk's reserve, whatever unfolds."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from disks import SmallDisk

from offrl_store import EpisodeStore
from offrld.disk_usage import usage

QUOTA = 60 << 20
UNFOLDED = 200 << 20


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some kilobytes whose observations, fill values that no byte stands for, unfold into 200 MB."""
    path, steps = tmp_path_factory.mktemp("bomb") / "bomb.hdf5", UNFOLDED // 1024
    ends = np.zeros(steps, bool)
    ends[99::100] = True
    with h5py.File(path, "w") as file:
        for key, shape in (("observations", (steps, 256)), ("actions", (steps, 1)), ("rewards", (steps,)), ("terminals", (steps,))):
            file.create_dataset(key, shape=shape, dtype="?" if key == "terminals" else "f4", chunks=(4096, *shape[1:]), fillvalue=0)
        file.create_dataset("timeouts", data=ends, chunks=(65536,), compression="gzip")
    assert path.stat().st_size < 100_000
    return path


class Least:
    """The least free space, and the most that the folder held, while the block ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.free, self.used, self._done = folder, 1 << 60, 0, threading.Event()

    def __enter__(self) -> Least:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self.free = min(self.free, shutil.disk_usage(self.folder).free)
            self.used = max(self.used, usage(self.folder))

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_an_import_ends_at_the_quota_and_leaves_nothing(start, upload, bomb, tmp_path):
    spec = {"kind": "import", "dataset": "bomb", "upload": upload(bomb)}
    with Least(tmp_path) as seen:
        end = start("job-1", spec, quota_bytes=QUOTA).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "disk_full")
    assert f"disk.quota_bytes = {QUOTA} is the limit" in end["error"]["message"]
    assert seen.used <= QUOTA
    assert list((tmp_path / "datasets").iterdir()) == []
    assert start("job-2", spec, quota_bytes=2 * UNFOLDED).end()["state"] == "succeeded"


def test_an_append_ends_at_the_quota_and_keeps_the_dataset(start, upload, bomb, tmp_path):
    small = tmp_path / "small.hdf5"
    with h5py.File(small, "w") as file:
        file["observations"], file["actions"] = np.ones((100, 256), "f4"), np.linspace(-1, 1, 100, dtype="f4")[:, None]
        file["rewards"], file["terminals"], file["timeouts"] = np.ones(100, "f4"), np.zeros(100, bool), np.arange(100) == 99
    assert start("job-1", {"kind": "import", "dataset": "data", "upload": upload(small)}).end()["state"] == "succeeded"
    spec = {"kind": "import", "dataset": "data", "upload": upload(bomb, name="upload-2"), "append": True}
    end = start("job-2", spec, quota_bytes=QUOTA).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "disk_full")
    assert len(EpisodeStore.open(tmp_path / "datasets" / "data")) == 1
    assert usage(tmp_path / "datasets") < 4 << 20


@pytest.mark.parametrize("format", ["npz", "d4rl", "minari", "torchrl"])
def test_an_export_ends_at_the_quota_and_leaves_nothing(start, upload, bomb, tmp_path, format):
    worker = start("job-1", {"kind": "import", "dataset": "data", "upload": upload(bomb)})
    assert worker.end()["state"] == "succeeded"
    shutil.rmtree(tmp_path / "uploads")
    snapshot = worker.of_type("dataset")[0]["dataset"]["snapshot"]
    quota = usage(tmp_path) + (40 << 20)
    with Least(tmp_path) as seen:
        worker = start("job-2", {"kind": "dataset_export", "dataset": "data", "format": format}, snapshot=snapshot, quota_bytes=quota)
        end = worker.end()
    if end["state"] == "succeeded":  # zeros that the format compresses
        assert format == "minari"
    else:
        assert end["error"]["code"] == "disk_full", end
        assert not (worker.run / "dataset").exists()
    assert seen.used <= quota
    assert usage(worker.run) < 40 << 20


def test_training_ends_at_the_quota_and_keeps_its_checkpoint(start, imported, tmp_path):
    (tmp_path / "datasets").mkdir()
    shutil.copytree(imported["pendulum"]["path"], tmp_path / "datasets" / "pendulum")
    spec = {"kind": "train", "algorithm": "bc", "dataset": "pendulum", "steps": 200, "seeds": [0], "threads": 1}
    worker = start(
        "job-1",
        spec,
        snapshot=imported["pendulum"]["snapshot"],
        quota_bytes=usage(tmp_path) + (1 << 20),
        environment={"OFFRLD_CHECKPOINT_SECONDS": "0.01"},
    )
    end = worker.end()
    assert (end["state"], end["error"]["code"]) == ("failed", "disk_full"), end
    again = start("job-1", spec, snapshot=imported["pendulum"]["snapshot"], attempt=2)
    assert again.end()["state"] == "succeeded"


@pytest.mark.skipif(bool(SmallDisk.unavailable()), reason=f"no small disk: {SmallDisk.unavailable()}")
def test_an_import_keeps_the_reserve_of_the_disk_free(bomb, tmp_path):
    from worker_process import WorkerProcess

    disk = SmallDisk(tmp_path, 150)
    try:
        inside = disk.inside
        (inside / "uploads/upload-1/files").mkdir(parents=True)
        shutil.copy(bomb, inside / "uploads/upload-1/files/bomb.hdf5")
        with Least(inside) as seen:
            worker = WorkerProcess(
                inside, "job-1", {"kind": "import", "dataset": "bomb", "upload": "upload-1"}, keep_free_bytes=50 << 20, confine=False
            )  # the disk is seen through another process's /proc entry
            try:
                end = worker.end()
            finally:
                worker.close()
        assert end["error"]["code"] == "disk_full"
        assert f"uploads.keep_free_bytes = {50 << 20} must stay free" in end["error"]["message"]
        assert 50 << 20 <= seen.free < 100 << 20
        assert os.listdir(inside / "datasets") == []
    finally:
        disk.close()


def test_an_import_that_needs_too_much_memory_fails_alone(start, upload, tmp_path):
    """One episode of 512 MB, compressed to one."""
    path, steps = tmp_path / "long.hdf5", 1 << 17
    with h5py.File(path, "w") as file:
        file.create_dataset("observations", data=np.zeros((steps, 1024), "f4"), chunks=(8192, 1024), compression="gzip", compression_opts=1)
        file["actions"], file["rewards"] = np.linspace(-1, 1, steps, dtype="f4")[:, None], np.zeros(steps, "f4")
        file["terminals"], file["timeouts"] = np.arange(steps) == steps - 1, np.zeros(steps, bool)
    end = start("job-1", {"kind": "import", "dataset": "long", "upload": upload(path)}, import_memory_mb=500).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "out_of_memory"), end
    assert "workers.import_memory_mb" in end["error"]["hint"]
    assert list((tmp_path / "datasets").iterdir()) == []
