"""A dataset that is exported and imported again is the same dataset."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from offrl.errors import EmptyStore, InvalidInput, Unknown
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld import fits
from offrld.importers import columns, export_dataset, flat_export, import_into

NAMES = {"d4rl": "data.hdf5", "npz": "data.npz", "store": "data"}  # what keeps everything; the others: test_recorded_export.py


@pytest.fixture(params=["all", "some", "none"])
def store(request, tmp_path) -> EpisodeStore:
    """Episodes of each kind; all, some or none of them have their final observation."""
    rng = np.random.default_rng(1)
    schema = Schema(
        Field("float32", (3,)), Field("float32", (2,), low=[-1, -2], high=[1, 3]), Field("float64"), metadata={"bounds": "declared"}
    )
    made = EpisodeStore.create(tmp_path / "made", schema)
    with made.writer() as writer:
        for number, steps in enumerate((4, 1, 6, 2, 3)):
            final = {"all": True, "none": False, "some": number % 3 > 0}[request.param]
            observations, actions = rng.normal(size=(steps + final, 3)), rng.uniform(-1, 1, size=(steps, 2))
            writer.append(
                Episode(observations.astype(np.float32), actions.astype(np.float32), rng.normal(size=steps), terminated=number % 2 == 0)
            )
    return made


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("format", list(NAMES))
def test_export_and_import_give_the_same_episodes(store, tmp_path, same_episodes, format, compress):
    path = export_dataset(store, tmp_path / NAMES[format], format, compress=compress)
    again = import_into(path, tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert again.schema.same_fields(store.schema)
    assert again.metadata["bounds"] == "declared"
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "again", "made"])


@pytest.mark.parametrize("format", list(NAMES))
def test_several_fields_and_discrete_actions_come_back(tmp_path, same_episodes, format):
    fields = {"camera": Field("uint8", (1, 4, 4)), "arm": Field("float64", (2,))}
    schema = Schema(
        fields, Field("int64", low=0, high=4), extra={"log_prob": Field("float32")}, metadata={"env_id": "Unheard-v0", "bounds": "declared"}
    )
    store = EpisodeStore.create(tmp_path / "made", schema)
    with store.writer() as writer:
        for steps in (3, 2):
            observation = {"camera": np.full((steps + 1, 1, 4, 4), steps, np.uint8), "arm": np.ones((steps + 1, 2))}
            extra = {"log_prob": np.arange(steps, dtype=np.float32)}
            writer.append(Episode(observation, np.arange(steps), np.ones(steps, np.float32), extra=extra))
    path = export_dataset(store, tmp_path / NAMES[format], format)
    lines = []
    again = import_into(path, tmp_path / "again", message=lines.append)
    same_episodes(again.episodes, store.episodes)
    assert again.schema.action == schema.action and again.metadata["env_id"] == "Unheard-v0"
    assert [each.extra["log_prob"].tolist() for each in again.episodes] == [[0, 1, 2], [0, 1]]
    assert not any("not imported" in line for line in lines)


def test_the_flat_layout_is_what_other_readers_expect(store, tmp_path):
    path = export_dataset(store, tmp_path / "data.hdf5", "d4rl")
    with h5py.File(path) as file:
        assert {"observations", "actions", "rewards", "terminals", "timeouts"} <= set(file)
        assert file["terminals"].dtype == bool and file["actions"].shape == (16, 2)
        terminals, timeouts = file["terminals"][:], file["timeouts"][:]
        assert np.flatnonzero(terminals).tolist() == [3, 10, 15] and np.flatnonzero(timeouts).tolist() == [4, 12]
        if "next_observations" in file:
            inner = ~(terminals | timeouts)
            np.testing.assert_array_equal(file["next_observations"][:][inner], file["observations"][:][np.flatnonzero(inner) + 1])
    with zipfile.ZipFile(export_dataset(store, tmp_path / "data.npz", "npz")) as archive:
        assert archive.testzip() is None
    with np.load(tmp_path / "data.npz", allow_pickle=False) as arrays:
        assert arrays["rewards"].dtype == np.float64 and arrays["action_high"].tolist() == [1, 3]


def test_metadata_of_the_source_and_of_episodes_come_back(write_h5, flat, tmp_path):
    """D4RL keeps what D4RL had; a store keeps that of single episodes too."""
    metadata = {"metadata/algorithm": "SAC", "metadata/policy/output": np.arange(3.0), "metadata/iteration": 7}
    store = import_into(write_h5({**flat, **metadata}), tmp_path / "store")
    again = import_into(export_dataset(store, tmp_path / "again.hdf5", "d4rl"), tmp_path / "again")
    assert again.metadata["source_metadata"] == {"algorithm": "SAC", "iteration": 7, "policy": {"output": [0.0, 1.0, 2.0]}}
    with store.writer() as writer:
        writer.append(store.episodes[0], {"level_seed": 45})
    copy = import_into(export_dataset(EpisodeStore.open(store.path), tmp_path / "copy", "store"), tmp_path / "copied")
    assert copy.episode_metadata(3) == {"level_seed": 45} and copy.episode_metadata(0) == {}


def test_short_episodes_are_written_in_blocks(store, tmp_path, same_episodes, monkeypatch):
    monkeypatch.setattr(flat_export, "BLOCK_BYTES", 40)
    monkeypatch.setattr(columns, "BLOCK_ROWS", 3)
    for format in ("d4rl", "npz"):
        again = import_into(export_dataset(store, tmp_path / NAMES[format], format), tmp_path / f"again-{format}")
        same_episodes(again.episodes, store.episodes)


def test_real_files_come_back_as_they_were(shared_data, tmp_path, same_episodes):
    store = import_into(shared_data / "cartpole-replay.hdf5", tmp_path / "store")
    path = export_dataset(store, tmp_path / "again.hdf5", "d4rl", compress=True)
    with h5py.File(shared_data / "cartpole-replay.hdf5") as original, h5py.File(path) as written:
        assert set(written) == set(original)
        for key in original:
            np.testing.assert_array_equal(written[key][:], original[key][:])
            assert written[key].dtype == original[key].dtype
        assert written.attrs["env_id"] == "CartPole-v1" and written.attrs["behaviour"] == original.attrs["behaviour"]
    minari = import_into(shared_data / "minari" / "cartpole" / "replay-v0", tmp_path / "minari")
    for format in NAMES:
        again = import_into(export_dataset(minari, tmp_path / f"minari-{NAMES[format]}", format), tmp_path / f"minari-{format}")
        same_episodes(again.episodes, minari.episodes)


def test_a_store_at_a_snapshot_gives_the_episodes_of_the_snapshot(store, tmp_path):
    snapshot = store.snapshot()
    import_into(store.path, store.path, append=True)
    pinned = EpisodeStore.open(store.path, snapshot)
    for format in NAMES:
        assert len(import_into(export_dataset(pinned, tmp_path / NAMES[format], format), tmp_path / f"again-{format}")) == 5


def test_progress_ends_with_all_episodes(store, tmp_path):
    for format in NAMES:
        seen = []
        export_dataset(store, tmp_path / NAMES[format], format, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen[-1] == (5, 5) and seen == sorted(seen)


def test_what_cannot_be_exported_says_so(store, tmp_path):
    with pytest.raises(Unknown) as caught:
        export_dataset(store, tmp_path / "x", "d4lr")
    assert caught.value.hint == "did you mean 'd4rl'?"
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InvalidInput, match="taken already exists"):
        export_dataset(store, tmp_path / "taken", "d4rl")
    with pytest.raises(InvalidInput, match="there is no folder"):
        export_dataset(store, tmp_path / "no" / "folder.npz", "npz")
    two = EpisodeStore.create(
        tmp_path / "two", Schema(Field("float32", (1,)), {"arm": Field("float32", (1,)), "hand": Field("float32", (1,))})
    )
    with pytest.raises(EmptyStore):
        export_dataset(two, tmp_path / "x", "npz")
    with two.writer() as writer:
        writer.append(Episode([[0.0], [0.0]], {"arm": [[0.0], [0.0]], "hand": [[0.0], [0.0]]}, [0.0, 0.0]))
    for format in ("d4rl", "npz"):
        with pytest.raises(InvalidInput, match="several action fields"):
            export_dataset(two, tmp_path / "x", format)
    assert not (tmp_path / "x").exists() and (tmp_path / "taken").read_text() == "mine"


FULL = """
import resource, signal, sys
from offrl.errors import DiskFull
from offrl_store import EpisodeStore
from offrld.importers import export_dataset
store = EpisodeStore.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for format in ("d4rl", "npz", "store"):
    for compress in (False, True):
        try:
            export_dataset(store, sys.argv[2], format, compress=compress)
        except DiskFull as error:
            print(format, error.exit_status, error.message)
"""


def test_a_full_disk_ends_the_export_and_not_the_process(tmp_path):
    """In a process of its own: HDF5 itself crashes where a write fails while it closes a file."""
    rng = np.random.default_rng(0)
    count = 20_000
    arrays = {"observations": rng.normal(size=(count, 3)), "actions": rng.uniform(size=(count, 1)), "rewards": rng.normal(size=count)}
    store = import_into({**arrays, "terminals": np.arange(count) % 10 == 9}, tmp_path / "store")
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", FULL, store.path, out], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{format} 1 no space left to write {out}" for format in NAMES for _ in range(2)]
    assert os.listdir(tmp_path) == ["store"]


# --- Actions: their dtype and bounds ---
OTHERS = ["d4rl", "npz", "minari", "d3rlpy", "robomimic", "torchrl", "lerobot"]


def acted(path, action, rows, **metadata) -> EpisodeStore:
    store = EpisodeStore.create(path, Schema(Field("float32", (2,)), action, Field("float32"), metadata={"bounds": "declared"} | metadata))
    with store.writer() as writer:
        writer.append(Episode(np.ones((5, 2), "f4"), rows, np.ones(4, "f4"), True))
    return store


@pytest.mark.parametrize("format", OTHERS)
@pytest.mark.parametrize(
    "action", [Field("int64", (2,), low=0, high=[1, 2]), Field("uint8", (2,), low=0, high=255), Field("int8", (3,), low=0, high=1)]
)
def test_vectors_of_whole_numbers_keep_their_dtype_and_bounds(tmp_path, format, action):
    size = action.shape[0]
    rows = (np.arange(4 * size) % 2).reshape(4, size).astype(action.dtype)
    store = acted(tmp_path / "store", action, rows)
    back = import_into(export_dataset(store, tmp_path / "out", format), tmp_path / "back")
    assert back.schema.action == action
    assert np.array_equal(next(iter(back.episodes)).action, rows)


@pytest.mark.parametrize("format", OTHERS)
def test_a_single_bound_is_kept(tmp_path, format):
    store = acted(tmp_path / "store", Field("float64", (2,), low=-5), np.arange(8.0).reshape(4, 2))
    lines = []
    back = import_into(export_dataset(store, tmp_path / "out", format), tmp_path / "back", message=lines.append)
    assert back.schema.action.low.tolist() == [-5, -5]
    assert any("the high bound of the actions is infinite" in line for line in lines)


@pytest.mark.parametrize("format", ["store", "d4rl", "npz", "minari", "d3rlpy", "d3rlpy-v1", "robomimic", "torchrl", "lerobot"])
@pytest.mark.parametrize(("kind", "low", "high"), [("MultiDiscrete", [1, 0], [1, 2]), ("MultiBinary", 0, 1)])
def test_several_choices_at_once_stay_choices_in_every_format(tmp_path, format, kind, low, high):
    store = acted(tmp_path / "store", Field("int64", (2,), low=low, high=high), np.ones((4, 2), "i8"), action_space={"kind": kind})
    path = export_dataset(store, tmp_path / ("out.npz" if format == "npz" else "out"), format)
    back = import_into(path, tmp_path / "back")
    assert back.metadata["action_space"] == {"kind": kind}
    assert back.schema.action.low.tolist() == np.broadcast_to(low, 2).tolist()
    assert back.schema.action.high.tolist() == np.broadcast_to(high, 2).tolist()
    with pytest.raises(InvalidInput, match=f"choices at once \\({kind}\\)"):
        fits.check_action(back.schema)
