"""The real datasets: every format gives the episodes that its documentation says."""

from __future__ import annotations

from itertools import islice

import h5py
import numpy as np
import pytest

from offrl.errors import InvalidInput
from offrl_store import Field
from offrld.importers import import_into, open_source


@pytest.mark.parametrize(
    ("name", "episodes", "steps", "transitions", "action"),
    [
        ("pendulum-replay", 100, 20_000, 19_900, Field("float32", (1,), low=-2, high=2)),
        ("pendulum-random", 100, 20_000, 19_900, Field("float32", (1,), low=-2, high=2)),
        ("cartpole-replay", 104, 20_000, 19_992, Field("int64", (), low=0, high=1)),
        ("cartpole-random", 887, 20_000, 19_999, Field("int64", (), low=0, high=1)),
    ],
)
def test_flat_files_keep_every_step_and_count_what_can_be_sampled(shared_data, tmp_path, name, episodes, steps, transitions, action):
    store = import_into(shared_data / f"{name}.hdf5", tmp_path / "store")
    assert (len(store), store.step_count, store.transition_count) == (episodes, steps, transitions)
    assert store.schema.action == action
    env_id = store.metadata["env_id"]
    assert store.metadata["bounds"] == f"env:{env_id}"
    assert store.metadata["source"] == {"format": "d4rl", "file": f"{name}.hdf5"}
    with h5py.File(shared_data / f"{name}.hdf5") as file:
        attributes = dict(file.attrs)
        rows = np.concatenate([episode.observation[: episode.steps] for episode in store.episodes])
        np.testing.assert_array_equal(rows, file["observations"][:])
        np.testing.assert_array_equal(np.concatenate([episode.action for episode in store.episodes]), file["actions"][:])
        np.testing.assert_array_equal(np.concatenate([episode.reward for episode in store.episodes]), file["rewards"][:])
    assert store.metadata["source_attributes"]["seed"] == attributes["seed"]
    returns = store.returns[:-1] if attributes["last_episode_cut"] else store.returns
    assert returns.mean() == pytest.approx(attributes["episode_return_mean"])


def test_hopper_has_the_environment_s_bounds(shared_data, tmp_path):
    pytest.importorskip("mujoco")
    store = import_into(shared_data / "hopper-medium-replay.hdf5", tmp_path / "store")
    assert (len(store), store.step_count, store.transition_count) == (851, 113_677, 113_676)
    assert store.schema.action == Field("float32", (3,), low=-1, high=1)
    assert store.metadata["bounds"] == "env:Hopper-v5"


def test_the_minari_copy_equals_the_flat_file_but_for_final_observations(shared_data, tmp_path):
    flat = import_into(shared_data / "cartpole-replay.hdf5", tmp_path / "flat")
    minari = import_into(shared_data / "minari" / "cartpole" / "replay-v0", tmp_path / "minari")
    assert minari.transition_count == minari.step_count == 20_000
    assert minari.metadata["env_id"] == "CartPole-v1" and minari.metadata["bounds"] == "declared"
    assert minari.metadata["source"] == {"format": "minari", "file": "replay-v0", "dataset_id": "cartpole/replay-v0"}
    assert minari.schema.same_fields(flat.schema)
    for ours, theirs in zip(minari.episodes, flat.episodes, strict=True):
        assert not ours.final_missing and theirs.final_missing
        assert ours.terminated == theirs.terminated
        np.testing.assert_array_equal(ours.observation[:-1], theirs.observation)
        np.testing.assert_array_equal(ours.action, theirs.action)
        np.testing.assert_array_equal(ours.reward, theirs.reward)


def test_the_data_folder_of_a_minari_dataset_is_taken_too(shared_data):
    with open_source(shared_data / "minari" / "cartpole" / "replay-v0" / "data") as source:
        assert source.metadata["source"]["file"] == "replay-v0"


@pytest.mark.parametrize(("name", "flat", "episodes"), [("cartpole", "cartpole-replay", 15), ("pendulum", "pendulum-replay", 11)])
def test_d3rlpy_v2_files_equal_the_first_episodes_of_the_flat_files(shared_data, same_episodes, name, flat, episodes):
    path = shared_data / "formats" / f"d3rlpy-v2-{name}.h5"
    with open_source(path) as source, open_source(shared_data / f"{flat}.hdf5") as whole:
        assert source.format == "d3rlpy" and source.count == episodes
        same_episodes(source.episodes, islice(whole.episodes, episodes))


def test_minari_s_arrow_form_equals_the_first_episodes_of_the_flat_file(shared_data, tmp_path):
    """J26: written by Minari itself; there the observation after the last action repeats the one before."""
    store = import_into(shared_data / "formats" / "minari-arrow" / "pendulum" / "replay-v0", tmp_path / "store")
    assert (len(store), store.transition_count, store.metadata["bounds"], store.metadata["env_id"]) == (5, 1000, "declared", "Pendulum-v1")
    with open_source(shared_data / "pendulum-replay.hdf5") as flat:
        for ours, theirs in zip(store.episodes, islice(flat.episodes, 5), strict=True):
            np.testing.assert_array_equal(ours.observation[:-1], theirs.observation)
            np.testing.assert_array_equal(ours.observation[-1], theirs.observation[-1])
            np.testing.assert_array_equal(ours.action, theirs.action)
            np.testing.assert_array_equal(ours.reward, theirs.reward)
            assert not ours.terminated and not ours.final_missing


def test_files_of_other_formats_say_what_they_are(shared_data, tmp_path):
    with pytest.raises(InvalidInput, match="it is a folder of datasets; pass one of them, for example cartpole/replay-v0"):
        open_source(shared_data / "minari")
    (tmp_path / "notes.md").write_text("no data")
    with pytest.raises(InvalidInput, match=r"it is a folder with notes\.md") as error:
        open_source(tmp_path)
    assert all(name in error.value.hint for name in ("d4rl", "minari", "npz", "d3rlpy", "store"))
