"""Exports for Minari and d3rlpy: their layouts, what comes back, what is left out and said, and (where installed) their own readers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from offrl.errors import DiskFull, EmptyStore, InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import EXPORTS, FOLDERS, dump_dataset, export_dataset, import_into

RECORDED = ("minari", "d3rlpy", "d3rlpy-v1")
NAMES = {"minari": "data-v0", "d3rlpy": "data.h5", "d3rlpy-v1": "data.h5"}


def make(path, *, final: bool, discrete: bool = False, dtype: str = "float32", lengths=(4, 1, 6, 2, 3)) -> EpisodeStore:
    rng = np.random.default_rng(1)
    action = Field("int64", low=0, high=4) if discrete else Field("float32", (2,), low=[-1, -2], high=[1, 3])
    store = EpisodeStore.create(path, Schema(Field(dtype, (3,)), action, Field(dtype)))
    with store.writer() as writer:
        for number, steps in enumerate(lengths):
            actions = rng.integers(0, 5, steps) if discrete else rng.uniform(-1, 1, (steps, 2)).astype("f4")
            writer.append(
                Episode(
                    rng.normal(size=(steps + final, 3)).astype(dtype),
                    actions,
                    rng.normal(size=steps).astype(dtype),
                    terminated=number % 2 == 0,
                )
            )
    return store


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_minari_brings_whole_episodes_back_as_they_were(tmp_path, same_episodes, discrete, dtype, compress):
    """J26, J24: nothing is lost or narrowed where every episode has its final observation."""
    store = make(tmp_path / "made", final=True, discrete=discrete, dtype=dtype)
    lines = []
    path = export_dataset(store, tmp_path / "data-v0", "minari", compress=compress, message=lines.append)
    again = import_into(path, tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert again.schema.same_fields(store.schema) and again.metadata["bounds"] == "declared" and lines == []


def test_real_minari_data_come_back_with_their_spaces_and_words(shared_data, tmp_path, same_episodes):
    source = shared_data / "minari" / "cartpole" / "replay-v0"
    store = import_into(source, tmp_path / "store")
    path = export_dataset(store, tmp_path / "replay-v0", "minari")
    same_episodes(import_into(path, tmp_path / "again").episodes, store.episodes)
    theirs, ours = (json.loads((folder / "data" / "metadata.json").read_text()) for folder in (source, path))
    for key in ("total_episodes", "total_steps", "algorithm_name", "author", "ref_max_score"):
        assert ours[key] == theirs[key], key
    for key in ("observation_space", "action_space"):
        assert json.loads(ours[key]) == json.loads(theirs[key])
    assert json.loads(ours["env_spec"])["id"] == "CartPole-v1"
    with h5py.File(source / "data" / "main_data.hdf5") as left, h5py.File(path / "data" / "main_data.hdf5") as right:
        for key in ("episode_0", "episode_103"):
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                assert (left[key][name].shape, left[key][name].dtype) == (right[key][name].shape, right[key][name].dtype)
                np.testing.assert_array_equal(left[key][name][:], right[key][name][:])
            assert dict(left[key].attrs) == dict(right[key].attrs)


def test_minari_never_gets_a_made_up_observation_that_a_learner_would_use(tmp_path):
    store = make(tmp_path / "made", final=False)  # episodes 0, 2, 4 terminated; 1 and 3 truncated, of 1 and 2 steps
    lines = []
    again = import_into(export_dataset(store, tmp_path / "d-v0", "minari", message=lines.append), tmp_path / "again")
    assert [len(each.reward) for each in again.episodes] == [4, 6, 1, 3]
    assert [each.terminated for each in again.episodes] == [True, True, False, True]
    assert again.transition_count == store.transition_count
    for ours, number in zip(again.episodes, (0, 2, 3, 4), strict=True):
        theirs = store.episodes[number]
        rows = len(theirs.observation)
        np.testing.assert_array_equal(ours.observation[:rows], theirs.observation)
        np.testing.assert_array_equal(ours.reward, theirs.reward[: ours.steps])
    assert lines == [
        "3 terminated episodes lack their final observation: the last one is repeated there",
        "2 truncated episodes lack their final observation: they end one step earlier, and 1 of one step are left out",
    ]
    with pytest.raises(EmptyStore):
        export_dataset(make(tmp_path / "one", final=False, lengths=()), tmp_path / "x", "minari")


def test_several_fields_and_extras_go_to_minari(tmp_path, same_episodes):
    fields = {"camera": Field("uint8", (1, 4, 4)), "arm": Field("float64", (2,))}
    store = EpisodeStore.create(tmp_path / "made", Schema(fields, Field("float32", (1,), low=-1, high=1), extra={"cost": Field("int16")}))
    with store.writer() as writer:
        observation = {"camera": np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4), "arm": np.ones((4, 2))}
        writer.append(Episode(observation, np.zeros((3, 1), np.float32), [1.0, 2, 3], True, {"cost": np.int16([7, 8, 9])}))
    path = export_dataset(store, tmp_path / "d-v0", "minari")
    same_episodes(import_into(path, tmp_path / "again").episodes, store.episodes)
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        assert file["episode_0/infos/cost"][:].tolist() == [0, 7, 8, 9]  # T + 1: the first is that of the reset


@pytest.mark.parametrize("format", ["d3rlpy", "d3rlpy-v1"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_d3rlpy_files_bring_back_all_but_final_observations(tmp_path, same_episodes, format, discrete, dtype):
    """J08, J09: exact for stores without final observations, whatever their dtype."""
    store = make(tmp_path / "made", final=False, discrete=discrete, dtype=dtype)
    lines = []
    again = import_into(export_dataset(store, tmp_path / "data.h5", format, message=lines.append), tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert lines == []
    whole = make(tmp_path / "whole", final=True, discrete=discrete, dtype=dtype)
    again = import_into(export_dataset(whole, tmp_path / "whole.h5", format, message=lines.append), tmp_path / "again2")
    for ours, theirs in zip(again.episodes, whole.episodes, strict=True):
        np.testing.assert_array_equal(ours.observation, theirs.observation[:-1])
        np.testing.assert_array_equal(ours.action, theirs.action)
        np.testing.assert_array_equal(ours.reward, theirs.reward)
    assert lines == [
        "d3rlpy keeps no final observations: those of 5 episodes are left out, and with them the last transition of 2 truncated ones"
    ]


@pytest.mark.parametrize(("name", "key"), [("cartpole", "actions_3"), ("pendulum", "observations_7")])
def test_a_real_d3rlpy_file_is_written_again_as_d3rlpy_wrote_it(shared_data, tmp_path, name, key):
    """J09: every array of the file that d3rlpy 2.8.1 dumped, with its dtype and shape."""
    source = shared_data / "formats" / f"d3rlpy-v2-{name}.h5"
    path = export_dataset(import_into(source, tmp_path / "store"), tmp_path / "again.h5", "d3rlpy")
    with h5py.File(source) as theirs, h5py.File(path) as ours:
        assert set(ours) == set(theirs) and key in ours
        for each in theirs:
            np.testing.assert_array_equal(ours[each][()], theirs[each][()], err_msg=each)
            assert (ours[each].shape, ours[each].dtype) == (theirs[each].shape, theirs[each].dtype), each


@pytest.mark.parametrize("format", ["d3rlpy", "d3rlpy-v1", "d4rl", "npz"])
def test_a_file_that_is_open_for_writing_is_filled(tmp_path, same_episodes, format):
    """J09: a handle opened "wb" works, which d3rlpy's own dump fails with; so does one in memory."""
    store = make(tmp_path / "made", final=False)
    with open(tmp_path / "dumped.file", "wb") as file:
        dump_dataset(store, file, format)
    same_episodes(import_into(tmp_path / "dumped.file", tmp_path / "again").episodes, store.episodes)
    memory = io.BytesIO()
    dump_dataset(store, memory, format)
    assert len(memory.getvalue()) == (tmp_path / "dumped.file").stat().st_size
    with pytest.raises(InvalidInput, match="is a folder"):
        dump_dataset(store, memory, "minari")


def test_the_first_version_s_layout(tmp_path):
    """J08: names, dtypes and flags of MDPDataset.dump."""
    store = make(tmp_path / "made", final=False, discrete=True)
    with h5py.File(export_dataset(store, tmp_path / "x.h5", "d3rlpy-v1")) as file:
        assert set(file) == {"observations", "actions", "rewards", "terminals", "episode_terminals", "discrete_action", "version"}
        assert (file["actions"].dtype, file["actions"].shape) == (np.int32, (16,))
        assert file["terminals"].dtype == file["episode_terminals"].dtype == np.float32
        assert np.flatnonzero(file["episode_terminals"]).tolist() == [3, 4, 10, 12, 15]
        assert np.flatnonzero(file["terminals"]).tolist() == [3, 10, 15]
        assert bool(file["discrete_action"][()]) and file["version"][()] == b"1.0"


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    two = EpisodeStore.create(tmp_path / "two", Schema(Field("float32", (1,)), {"arm": Field("float32", (1,)), "hand": Field("int8")}))
    with two.writer() as writer:
        writer.append(Episode([[0.0], [0.0]], {"arm": [[0.0]], "hand": [0]}, [0.0]))
    for format in RECORDED:
        with pytest.raises(InvalidInput, match="several action fields"):
            export_dataset(two, tmp_path / "x", format)
    fields = EpisodeStore.create(
        tmp_path / "f", Schema({"a": Field("float32", (1,)), "b": Field("int8")}, Field("float32", (1,)), extra={"logp": Field("float32")})
    )
    with fields.writer() as writer:
        writer.append(Episode({"a": [[0.0], [1.0]], "b": [3, 4]}, [[0.0]], [0.0], extra={"logp": [0.5]}))
        writer.append(Episode({"a": [[5.0], [1.0]], "b": [6, 4]}, [[0.0]], [0.0], True, extra={"logp": [0.5]}))
    with pytest.raises(InvalidInput, match="several observation fields"):
        export_dataset(fields, tmp_path / "x", "d3rlpy-v1")
    lines = []
    again = import_into(export_dataset(fields, tmp_path / "x.h5", "d3rlpy", message=lines.append), tmp_path / "again")
    assert {name: each.tolist() for name, each in again.episodes[1].observation.items()} == {"a": [[5.0]], "b": [6]}
    assert lines[0] == "the observation fields a, b become a tuple in this order"
    assert lines[1] == "b: one number per step, written as rows of one number, which d3rlpy needs"
    assert lines[2] == "not exported: logp (d3rlpy has no place for them)"
    assert not (tmp_path / "x").exists()


FULL = """
import resource, signal, sys
from offrl.errors import DiskFull
from offrl_store import EpisodeStore
from offrld.importers import export_dataset
store = EpisodeStore.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for format in sys.argv[3:]:
    try:
        export_dataset(store, sys.argv[2], format)
    except DiskFull as error:
        print(format, error.message)
"""


def full_disk(store, formats, tmp_path):
    command = [sys.executable, "-c", FULL, store.path, tmp_path / "out", *formats]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{format} no space left to write {tmp_path / 'out'}" for format in formats]
    assert os.listdir(tmp_path) == ["store"]


def test_a_full_disk_ends_the_export_and_not_the_process(tmp_path):
    store = make(tmp_path / "store", final=True, lengths=(400,) * 10)
    full_disk(store, [*RECORDED, "robomimic", "torchrl", "lerobot"], tmp_path)


def test_a_full_disk_while_pictures_are_written(tmp_path):
    store = EpisodeStore.create(tmp_path / "store", Schema(Field("uint8", (3, 32, 32)), Field("int64", low=0, high=3)))
    pixels = np.random.default_rng(0).integers(0, 256, (21, 3, 32, 32), np.uint8)
    with store.writer() as writer:
        writer.append(Episode(pixels, np.zeros(20, np.int64), np.zeros(20, np.float32), terminated=True))
    full_disk(store, ["gen_dgrl", "lerobot"], tmp_path)


def test_a_handle_on_a_full_disk_says_so(tmp_path):
    with open("/dev/full", "wb") as full, pytest.raises(DiskFull, match="/dev/full"):
        dump_dataset(make(tmp_path / "store", final=True), full)


def test_every_format_is_tested_somewhere():
    assert set(EXPORTS) == {*RECORDED, "d4rl", "npz", "store", "robomimic", "torchrl", "gen_dgrl", "atari", "lerobot"}
    assert set(FOLDERS) == {"minari", "store", "torchrl", "gen_dgrl", "atari", "lerobot"}


# --- Their own readers ------------------------------------------------------------------------------------------------------------


def test_minari_itself_reads_the_folder(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    (tmp_path / "root" / "arm").mkdir(parents=True)
    store = make(tmp_path / "made", final=True)
    export_dataset(store, tmp_path / "root" / "arm" / "reach-v3", "minari")
    dataset = minari.load_dataset("arm/reach-v3")
    assert (dataset.total_episodes, dataset.total_steps) == (5, 16)
    for theirs, ours in zip(dataset.iterate_episodes(), store.episodes, strict=True):
        np.testing.assert_array_equal(theirs.observations, ours.observation)
        np.testing.assert_array_equal(theirs.actions, ours.action)
        np.testing.assert_array_equal(theirs.rewards, ours.reward)
        assert (bool(theirs.terminations[-1]), bool(theirs.truncations[-1])) == (ours.terminated, not ours.terminated)
    assert dataset.spec.action_space.high.tolist() == [1, 3]


PEER = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
LOADS = """
import sys, numpy as np, d3rlpy
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        if path.endswith("v1.h5"):
            episodes = d3rlpy.dataset.load_v1(file)
        else:
            episodes = d3rlpy.dataset.ReplayBuffer.load(file, d3rlpy.dataset.InfiniteBuffer()).episodes
    arrays = {"count": np.array([each.transition_count for each in episodes])}
    for i, each in enumerate(each for each in episodes if each.transition_count):
        arrays |= {f"o{i}": each.observations, f"a{i}": each.actions, f"r{i}": each.rewards, f"t{i}": np.array(bool(each.terminated))}
    np.savez(path + ".npz", **arrays)
"""


def test_d3rlpy_itself_reads_both_versions(tmp_path):
    """J08, J09, J24: the files that d3rlpy loads give its transitions, as many as our sampler draws from."""
    if not PEER.exists():
        pytest.skip("needs d3rlpy in .venv-peers, which the benchmarks make")
    stores = {kind: make(tmp_path / kind, final=False, discrete=kind == "discrete") for kind in ("discrete", "continuous")}
    files = {tmp_path / f"{kind}-{version}.h5": kind for kind in stores for version in ("v1", "v2")}
    for path, kind in files.items():
        export_dataset(stores[kind], path, "d3rlpy-v1" if path.stem.endswith("v1") else "d3rlpy")
    done = subprocess.run([PEER, "-c", LOADS, *files], capture_output=True, text=True, check=False)
    if "No module named 'd3rlpy'" in done.stderr:
        pytest.skip("needs d3rlpy in .venv-peers, which the benchmarks make")
    assert done.returncode == 0, done.stderr[-2000:]
    for path, kind in files.items():
        made = stores[kind]
        kept = [each for each in made.episodes if each.terminated or each.steps > 1]  # d3rlpy forgets an episode without a transition
        with np.load(f"{path}.npz") as arrays:
            assert arrays["count"].sum() == made.transition_count and f"o{len(kept)}" not in arrays
            for i, ours in enumerate(kept):
                np.testing.assert_array_equal(arrays[f"o{i}"], ours.observation)
                np.testing.assert_array_equal(arrays[f"a{i}"].reshape(ours.action.shape), ours.action)
                np.testing.assert_array_equal(arrays[f"r{i}"][:, 0], ours.reward)
                assert bool(arrays[f"t{i}"]) == ours.terminated
