"""robomimic's HDF5: a file in the layout of its documentation, built here with h5py alone (robomimic itself brings robosuite and torch)."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from offrl.errors import InvalidInput, Unknown
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import export_dataset, import_into, open_source

ENV_ARGS = json.dumps({"env_name": "Lift", "env_type": 1, "env_kwargs": {"robots": ["Panda"]}})


@pytest.fixture
def lift(tmp_path):
    """Twelve demos of the kind of the published "lift" files: proprioception, a camera with its channels last, states, splits.

    https://robomimic.github.io/docs/datasets/overview.html; the actions lie in [-1, 1], rewards are sparse, dones mark the end.
    """
    rng, path = np.random.default_rng(0), tmp_path / "lift.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        total = 0
        for number in range(12):
            steps = 3 + number % 4
            rows = {
                "robot0_eef_pos": rng.normal(size=(steps + 1, 3)),
                "object": rng.normal(size=(steps + 1, 10)),
                "agentview_image": rng.integers(0, 256, (steps + 1, 12, 10, 3), np.uint8),
            }
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>" * 100
            for key, values in rows.items():
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = values[:-1], values[1:]
            demo["actions"], demo["states"] = rng.uniform(-1, 1, (steps, 7)), rng.normal(size=(steps, 32))
            demo["rewards"], demo["dones"] = (np.arange(steps) == steps - 1).astype(float), (np.arange(steps) == steps - 1).astype(int)
            total += steps
        data.attrs["total"], data.attrs["env_args"] = total, ENV_ARGS
        file["mask/train"] = np.array([f"demo_{i}" for i in range(10)], dtype="S")
        file["mask/valid"] = np.array([b"demo_10", b"demo_11"])
    return path


def test_demos_become_episodes_with_all_their_fields_and_final_observations(lift, tmp_path):
    lines = []
    store = import_into(lift, tmp_path / "store", message=lines.append)
    assert {name: (each.dtype.name, each.shape) for name, each in store.schema.observation.items()} == {
        "agentview_image": ("uint8", (3, 12, 10)),
        "object": ("float64", (10,)),
        "robot0_eef_pos": ("float64", (3,)),
    }
    assert store.metadata["source_attributes"]["env_args"] == ENV_ARGS and store.metadata["env_id"] is None
    with h5py.File(lift) as file:
        for number, episode in enumerate(store.episodes):
            demo = file[f"data/demo_{number}"]
            assert episode.terminated and not episode.final_missing
            for key in ("object", "robot0_eef_pos"):
                np.testing.assert_array_equal(episode.observation[key][:-1], demo[f"obs/{key}"])
                np.testing.assert_array_equal(episode.observation[key][1:], demo[f"next_obs/{key}"])
            np.testing.assert_array_equal(np.moveaxis(episode.observation["agentview_image"], 1, -1)[1:], demo["next_obs/agentview_image"])
            np.testing.assert_array_equal(episode.action, demo["actions"])
            np.testing.assert_array_equal(episode.extra["states"], demo["states"])
            assert store.episode_metadata(number) == {"demo": f"demo_{number}", "masks": ["train"] if number < 10 else ["valid"]}
    assert "not imported: model_file" in lines


def test_a_split_is_taken_alone(lift, tmp_path):
    store = import_into(lift, tmp_path / "store", options={"mask": "valid"})
    assert [store.episode_metadata(i)["demo"] for i in range(len(store))] == ["demo_10", "demo_11"]
    with pytest.raises(Unknown, match="no split 'vaild'") as error:
        open_source(lift, options={"mask": "vaild"})
    assert error.value.hint == "did you mean 'valid'?"


def test_a_file_of_ours_is_the_same_file_again(lift, tmp_path, same_episodes):
    """Every array, attribute and split; the model's XML is left out."""
    store = import_into(lift, tmp_path / "store")
    path = export_dataset(store, tmp_path / "again.hdf5", "robomimic")
    with h5py.File(lift) as theirs, h5py.File(path) as ours:
        names = []
        theirs.visititems(lambda name, each: names.append(name) if isinstance(each, h5py.Dataset) else None)
        found = []
        ours.visititems(lambda name, each: found.append(name) if isinstance(each, h5py.Dataset) else None)
        assert sorted(found) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])
            assert ours[name].dtype == theirs[name].dtype, name
        assert dict(ours["data"].attrs) == dict(theirs["data"].attrs)
        assert ours["data/demo_3"].attrs["num_samples"] == theirs["data/demo_3"].attrs["num_samples"]
    again = import_into(path, tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert again.episode_metadata(11) == store.episode_metadata(11)


@pytest.mark.parametrize("compress", [False, True])
def test_ends_and_single_fields_go_there_and_back(tmp_path, compress):
    schema = Schema(Field("float32", (2,)), Field("float32", (1,), low=-1, high=1), metadata={"env_id": "Unheard-v0"})
    store = EpisodeStore.create(tmp_path / "made", schema)
    with store.writer() as writer:
        for number, (final, terminated) in enumerate([(True, True), (True, False), (False, True), (False, False)]):
            rows = np.full((3 + final, 2), number, np.float32)
            writer.append(Episode(rows, np.zeros((3, 1), np.float32), [1.0, 2.0, 3.0], terminated))
    lines = []
    path = export_dataset(store, tmp_path / "x.hdf5", "robomimic", compress=compress, message=lines.append)
    again = import_into(path, tmp_path / "again")
    assert [(each.steps, each.terminated, each.final_missing) for each in again.episodes] == [
        (3, True, False),
        (3, False, False),
        (3, True, False),
        (2, False, False),
    ]
    assert again.schema.same_fields(store.schema) and again.metadata["env_id"] == "Unheard-v0"
    assert lines == [
        "1 terminated episodes lack their final observation: the last one is repeated there",
        "1 truncated episodes lack their final observation: they end one step earlier",
    ]


def change(path, action):
    with h5py.File(path, "a") as file:
        action(file)
    return path


def test_dones_in_the_middle_of_a_demo_do_not_cut_it(lift):
    """``done_mode`` 0 marks every step in a success state."""

    def mark(file):
        file["data/demo_2/dones"][:] = 1

    with open_source(change(lift, mark)) as source:
        assert sum(1 for _ in source.episodes) == 12
    assert "dones before the last step of 1 demos are ignored: a demo is one episode" in source.messages


@pytest.mark.parametrize(
    ("action", "part"),
    [
        (lambda file: file["data/demo_1"].pop("rewards"), "holds no 'data/demo_1/rewards'"),
        (lambda file: file["data/demo_1/obs"].pop("object"), "'data/demo_1/actions' comes with the observations"),
        (lambda file: file["data/demo_1/next_obs"].pop("object"), "'data/demo_1/next_obs' holds no 'object'"),
        (lambda file: file["data/demo_1/actions"].__setitem__((2, 3), np.nan), r"data/demo_1/actions\[2, 3\] is nan"),
        (lambda file: file["data/demo_1/obs/object"].__setitem__((0, 0), np.inf), r"data/demo_1/obs/object\[0, 0\] is inf"),
    ],
)
def test_what_is_wrong_names_the_demo_and_can_be_left_out(lift, tmp_path, action, part):
    change(lift, action)
    with pytest.raises(InvalidInput, match=part):
        import_into(lift, tmp_path / "store")
    skipped = []
    assert len(import_into(lift, tmp_path / "store", skip_bad=skipped.append)) == 11
    assert [each.episode for each in skipped] == [1]


def test_a_file_of_states_alone_says_how_to_make_observations(tmp_path):
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["data/demo_0/states"], file["data/demo_0/actions"] = np.zeros((3, 5)), np.zeros((3, 7))
    with pytest.raises(InvalidInput, match="holds states and no observations") as error:
        open_source(tmp_path / "demo.hdf5")
    assert "dataset_states_to_obs" in error.value.hint


def test_what_attributes_cannot_hold_is_left_out(tmp_path):
    """HDF5 keeps attributes below 64 KiB; an episode's metadata may be any JSON."""
    schema = Schema(Field("float32", (2,)), Field("float32", (1,)), metadata={"source_attributes": {"x": "y" * 70_000}})
    store = EpisodeStore.create(tmp_path / "made", schema)
    with store.writer() as writer:
        metadata = {"long": "x" * 100_000, "large": 10**30, "nested": {"a": 1}, "seed": 3, "masks": ["train"]}
        writer.append(Episode(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), [0.0, 1.0]), metadata)
    for format, name in (("robomimic", "x.hdf5"), ("minari", "x-v0"), ("d4rl", "y.hdf5")):
        export_dataset(store, tmp_path / name, format)
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert dict(file["data/demo_0"].attrs) == {"seed": 3, "num_samples": 2} and file["mask/train"][0] == b"demo_0"
