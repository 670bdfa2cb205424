"""Import workers on real files: the dataset appears whole or not at all, and a killed attempt is completed by the next."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from offrl.wire import DatasetInfo
from offrl_store import EpisodeStore


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "datasets").iterdir())


def bad_file(path: Path) -> Path:
    """A D4RL file with a NaN in its last observation."""
    with h5py.File(path, "w") as file:
        observations = np.zeros((50, 3), np.float32)
        observations[-1, 1] = np.nan
        file["observations"] = observations
        file["actions"] = np.zeros((50, 1), np.float32)
        file["rewards"] = np.zeros(50, np.float32)
        file["terminals"] = np.arange(50) % 10 == 9
        file["timeouts"] = np.zeros(50, bool)
    return path


def test_an_uploaded_file_becomes_a_dataset(start, upload, shared_data, tmp_path):
    worker = start("job-1", {"kind": "import", "dataset": "pendulum", "upload": upload(shared_data / "pendulum-replay.hdf5")})
    assert worker.end()["state"] == "succeeded"
    [event] = worker.of_type("dataset")
    info = DatasetInfo.model_validate(event["dataset"])
    store = EpisodeStore.open(tmp_path / "datasets" / "pendulum")
    assert (info.name, info.episodes, info.transitions) == ("pendulum", 100, 19_900)
    assert info.snapshot == str(store.snapshot())
    assert info.returns["mean"] == pytest.approx(-297.0, abs=0.1)
    assert info.fields["action"]["shape"] == [1]
    assert folders(tmp_path) == ["pendulum"]
    assert (tmp_path / "uploads" / "upload-1").exists()  # the daemon's to delete, once it knows the end
    recorded = [json.loads(line) for line in (worker.run / "events.jsonl").read_text().splitlines()]
    assert recorded == worker.seen


def test_an_uploaded_folder_becomes_a_dataset(start, upload, shared_data):
    worker = start("job-1", {"kind": "import", "dataset": "minari", "upload": upload(shared_data / "minari" / "cartpole" / "replay-v0")})
    assert worker.end()["state"] == "succeeded"
    assert worker.of_type("dataset")[0]["dataset"]["episodes"] == 104


def test_a_worker_that_imports_does_not_load_torch(start, upload, shared_data):
    worker = start(
        "job-1",
        {"kind": "import", "dataset": "cartpole", "upload": upload(shared_data / "cartpole-replay.hdf5")},
        environment={"PYTHONVERBOSE": "1"},
    )
    assert worker.end()["state"] == "succeeded"
    log = worker.log.read_text()
    assert "import 'h5py'" in log
    assert "import 'torch'" not in log


def test_bad_data_leaves_nothing_behind(start, upload, tmp_path):
    worker = start("job-1", {"kind": "import", "dataset": "bad", "upload": upload(bad_file(tmp_path / "bad.hdf5"))})
    end = worker.end()
    assert end["state"] == "failed"
    assert end["error"]["code"] in ("invalid_input", "invalid_episode")
    assert "nan" in end["error"]["message"].lower()
    assert folders(tmp_path) == []
    assert "Traceback" not in worker.log.read_text()


def test_bad_episodes_are_left_out_and_named_in_the_result(start, upload, tmp_path):
    spec = {"kind": "import", "dataset": "kept", "upload": upload(bad_file(tmp_path / "bad.hdf5")), "skip_bad": True}
    worker = start("job-1", spec)
    end = worker.end()
    assert (end["state"], end["reason"]) == ("succeeded", "1 bad episodes were left out")
    info = DatasetInfo.model_validate(worker.of_type("dataset")[0]["dataset"])
    assert (info.episodes, info.skipped_episodes) == (4, 1)
    assert info.skipped[0].model_dump() == {"episode": 4, "row": 49, "why": "bad.hdf5: observations[49, 1] is nan"}
    assert any("left out: episode 4" in event["message"] for event in worker.of_type("message"))
    # the next attempt, after a kill between the rename and the report, says the same
    again = start("job-1", spec, attempt=2)
    assert again.end()["reason"] == end["reason"] and again.of_type("dataset") != []
    assert again.of_type("dataset")[0]["dataset"] == worker.of_type("dataset")[0]["dataset"]

    upload(bad_file(tmp_path / "bad.hdf5"), name="upload-2")
    append = start("job-2", {**spec, "upload": "upload-2", "append": True})
    assert append.end()["state"] == "succeeded"
    assert DatasetInfo.model_validate(append.of_type("dataset")[0]["dataset"]).episodes == 8


def test_an_option_that_the_format_lacks_is_refused(start, upload, shared_data, tmp_path):
    source = upload(shared_data / "cartpole-replay.hdf5")
    end = start("job-1", {"kind": "import", "dataset": "x", "upload": source, "options": {"percentile": 1}}).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "unknown")
    assert folders(tmp_path) == []


def test_a_path_outside_the_import_roots_is_refused(start, shared_data, tmp_path):
    link = tmp_path / "link.hdf5"
    link.symlink_to(shared_data / "pendulum-replay.hdf5")
    worker = start("job-1", {"kind": "import", "dataset": "x", "path": str(link)}, import_roots=[str(tmp_path)])
    end = worker.end()
    assert (end["state"], end["error"]["code"]) == ("failed", "not_allowed")
    assert folders(tmp_path) == []


def test_a_folder_below_an_import_root_may_hold_no_links(start, shared_data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.hdf5").symlink_to(shared_data / "pendulum-replay.hdf5")
    end = start("job-1", {"kind": "import", "dataset": "x", "path": str(folder)}, import_roots=[str(tmp_path)]).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "invalid_input")
    assert "symbolic link" in end["error"]["message"]


def test_an_existing_name_is_refused(start, upload, shared_data, tmp_path):
    spec = {"kind": "import", "dataset": "cartpole", "upload": upload(shared_data / "cartpole-replay.hdf5")}
    assert start("job-1", spec).end()["state"] == "succeeded"
    before = EpisodeStore.open(tmp_path / "datasets" / "cartpole").snapshot()
    upload(shared_data / "cartpole-random.hdf5", name="upload-2")
    end = start("job-2", {**spec, "upload": "upload-2"}).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "conflict")
    assert EpisodeStore.open(tmp_path / "datasets" / "cartpole").snapshot() == before


def test_an_attempt_after_the_rename_reports_the_dataset_again(start, upload, shared_data):
    spec = {"kind": "import", "dataset": "cartpole", "upload": upload(shared_data / "cartpole-replay.hdf5")}
    first = start("job-1", spec)
    assert first.end()["state"] == "succeeded"
    second = start("job-1", spec, attempt=2)
    assert second.end()["state"] == "succeeded"
    assert second.of_type("dataset")[0]["dataset"] == first.of_type("dataset")[0]["dataset"]


def test_an_append_adds_the_episodes_once(start, upload, shared_data, tmp_path):
    name = {"kind": "import", "dataset": "cartpole"}
    assert start("job-1", {**name, "upload": upload(shared_data / "cartpole-replay.hdf5")}).end()["state"] == "succeeded"
    append = {**name, "append": True, "upload": upload(shared_data / "cartpole-random.hdf5", name="upload-2")}
    worker = start("job-2", append)
    assert worker.end()["state"] == "succeeded"
    assert worker.of_type("dataset")[0]["dataset"]["episodes"] == 104 + 887

    # the next attempt, after a kill between the commit and the end of the report
    again = start("job-2", append, attempt=2)
    assert again.end()["state"] == "succeeded"
    assert again.of_type("dataset")[0]["dataset"] == worker.of_type("dataset")[0]["dataset"]

    # another job may append the same file again
    upload(shared_data / "cartpole-random.hdf5", name="upload-3")
    other = start("job-3", {**append, "upload": "upload-3"})
    assert other.end()["state"] == "succeeded"
    assert len(EpisodeStore.open(tmp_path / "datasets" / "cartpole")) == 104 + 2 * 887


def test_an_append_that_does_not_fit_changes_nothing(start, upload, shared_data, tmp_path):
    name = {"kind": "import", "dataset": "cartpole"}
    assert start("job-1", {**name, "upload": upload(shared_data / "cartpole-replay.hdf5")}).end()["state"] == "succeeded"
    before = EpisodeStore.open(tmp_path / "datasets" / "cartpole").snapshot()
    upload(shared_data / "pendulum-replay.hdf5", name="upload-2")
    end = start("job-2", {**name, "append": True, "upload": "upload-2"}).end()
    assert end["state"] == "failed"
    assert EpisodeStore.open(tmp_path / "datasets" / "cartpole").snapshot() == before


def test_a_cancelled_import_leaves_nothing_behind(start, upload, shared_data, tmp_path):
    worker = start("job-1", {"kind": "import", "dataset": "hopper", "upload": upload(shared_data / "hopper-medium-replay.hdf5")})
    worker.send({"type": "cancel"})
    assert worker.end()["state"] == "cancelled"
    assert not (tmp_path / "datasets").exists() or folders(tmp_path) == []


def test_an_import_whose_daemon_is_gone_ends_without_an_event(start, upload, shared_data, tmp_path):
    worker = start("job-1", {"kind": "import", "dataset": "hopper", "upload": upload(shared_data / "hopper-medium-replay.hdf5")})
    worker.close_stdin()
    assert worker.wait() != 0
    assert not worker.of_type("end")
    assert not (tmp_path / "datasets").exists() or folders(tmp_path) == []
    # the daemon comes back
    assert start("job-1", {"kind": "import", "dataset": "hopper", "upload": "upload-1"}, attempt=2).end()["state"] == "succeeded"
    assert folders(tmp_path) == ["hopper"]


def test_a_dataset_is_exported_into_the_run_folder(start, upload, shared_data, tmp_path):
    worker = start("job-1", {"kind": "import", "dataset": "cartpole", "upload": upload(shared_data / "cartpole-replay.hdf5")})
    assert worker.end()["state"] == "succeeded"
    snapshot = worker.of_type("dataset")[0]["dataset"]["snapshot"]
    export = start("job-2", {"kind": "dataset_export", "dataset": "cartpole", "format": "d4rl"}, snapshot=snapshot)
    assert export.end()["state"] == "succeeded"
    [path] = (export.run / "dataset").iterdir()
    assert path.name == "cartpole.hdf5"
    with h5py.File(path) as made, h5py.File(shared_data / "cartpole-replay.hdf5") as source:
        for name in ("observations", "actions", "rewards", "terminals"):
            assert np.array_equal(made[name][:], source[name][:])
