"""Formats other than D4RL: singular names, d3rlpy version 1, Minari with other spaces, our own store; and their detection."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from offrl.errors import InvalidInput
from offrld.importers import FORMATS, import_into, open_source

BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1, -2], "high": [1, 2]}
DISCRETE = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 7}
VECTOR = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-10] * 3, "high": [10] * 3}


@pytest.fixture
def write_minari(tmp_path: Path):
    """Writes a Minari folder: ``episodes`` are dicts of arrays (nested dicts become groups)."""

    def fill(group: h5py.Group, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                fill(group.create_group(key), value)
            else:
                group[key] = value

    def write(episodes: list[dict[str, Any]], observation: dict[str, Any], action: dict[str, Any], **metadata: Any) -> Path:
        folder = tmp_path / "task" / "name-v0"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        values = {"total_episodes": len(episodes), "data_format": "hdf5", "observation_space": json.dumps(observation)}
        values |= {"action_space": json.dumps(action), "dataset_id": "task/name-v0", **metadata}
        (folder / "data" / "metadata.json").write_text(json.dumps(values))
        with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
            fill(file, {f"episode_{i}": each for i, each in enumerate(episodes)})
        return folder

    return write


def minari_episode(steps: int, observations: Any = None, actions: Any = None, terminated: bool = True) -> dict[str, Any]:
    flags = np.zeros(steps, bool)
    ended = flags.copy()
    ended[-1:] = True
    return {
        "observations": np.arange((steps + 1) * 3, dtype=np.float32).reshape(-1, 3) if observations is None else observations,
        "actions": np.zeros((steps, 2), np.float32) if actions is None else actions,
        "rewards": np.ones(steps),
        "terminations": ended if terminated else flags,
        "truncations": flags if terminated else ended,
    }


def test_singular_names_and_gymnasium_s_names_are_taken(flat, same_episodes):
    other = {"observation": "observations", "action": "actions", "reward": "rewards", "terminated": "terminals", "truncated": "timeouts"}
    with open_source({name: flat[key] for name, key in other.items()}) as source, open_source(flat) as plural:
        same_episodes(source.episodes, plural.episodes)


def test_lists_are_arrays_too():
    arrays = {"observations": [[0.0], [1.0]], "actions": [0, 1], "rewards": [1, 1], "terminals": [False, True], "timeouts": [0, 0]}
    with open_source(arrays) as source:
        (episode,) = source.episodes
    assert episode.terminated and episode.action.tolist() == [0, 1]


def test_fortran_ordered_arrays_are_read(flat, tmp_path, same_episodes):
    np.savez(tmp_path / "data.npz", **{**flat, "observations": np.asfortranarray(flat["observations"])})
    with open_source(tmp_path / "data.npz") as source, open_source(flat) as plain:
        same_episodes(source.episodes, plain.episodes)


def test_an_npz_file_declares_its_action_space(flat, tmp_path):
    np.savez(tmp_path / "a.npz", **flat, action_low=[-1, -2], action_high=[1, 2], env_id="Unheard-v0")
    with open_source(tmp_path / "a.npz") as source:
        assert source.schema.action.low.tolist() == [-1, -2] and source.schema.action.high.tolist() == [1, 2]
        assert source.metadata["bounds"] == "declared" and source.metadata["env_id"] == "Unheard-v0"
    with open_source({**flat, "actions": np.zeros(10, int), "action_n": 4}) as source:
        assert source.schema.action.n == 4


@pytest.mark.parametrize("discrete", [True, False])
def test_d3rlpy_v1_files_with_their_flag_for_discrete_actions(flat, write_h5, discrete):
    episode_terminals = (flat["terminals"] | flat["timeouts"]).astype(np.float32)
    layout = {key: flat[key] for key in ("observations", "rewards")} | {
        "actions": np.array([0, 1] * 5, np.int32) if discrete else np.ones((10, 2), np.float32),
        "terminals": flat["terminals"].astype(np.float32),
        "episode_terminals": episode_terminals,
        "discrete_action": discrete,
        "version": "1.0",
    }
    with open_source(write_h5(layout, "old.h5")) as source:
        assert source.format == "d3rlpy" and source.metadata["source"]["version"] == "1.0"
        assert source.schema.action.discrete == discrete
        episodes = list(source.episodes)
    assert [(each.steps, each.terminated, each.final_missing) for each in episodes] == [
        (4, True, True),
        (3, False, True),
        (3, True, True),
    ]


def test_d3rlpy_v1_without_episode_terminals_ends_at_terminals(flat, write_h5):
    flat.pop("timeouts")
    with open_source(write_h5({**flat, "discrete_action": False}, "old.h5")) as source:
        assert source.format == "d3rlpy"
        assert [episode.steps for episode in source.episodes] == [4, 6]


def test_d3rlpy_v1_flag_wins_over_the_dtype(flat, write_h5):
    arrays = {**flat, "actions": np.array([0, 1, 2, 3, 0] * 2, np.float32), "discrete_action": True, "version": "1.0"}
    with open_source(write_h5(arrays, "old.h5")) as source:
        assert source.schema.action.n == 4 and next(source.episodes).action.dtype == np.int64


def test_d3rlpy_v2_tuple_observations_become_fields(write_h5):
    arrays = {"columns": [b"observations", b"actions", b"rewards", b"terminated"], "num_episodes": 2, "version": "2.1"}
    for i, steps in enumerate((3, 2)):
        arrays |= {f"observations_{i}_0": np.zeros((steps, 4), np.float32), f"observations_{i}_1": np.ones((steps, 2), np.float32)}
        arrays |= {
            f"actions_{i}": np.zeros((steps, 1), np.float32),
            f"rewards_{i}": np.ones((steps, 1), np.float32),
            f"terminated_{i}": i == 0,
        }
    with open_source(write_h5(arrays, "tuple.h5")) as source:
        episodes = list(source.episodes)
    assert {name: field.shape for name, field in source.schema.observation.items()} == {"observation_0": (4,), "observation_1": (2,)}
    assert [(episode.steps, episode.terminated) for episode in episodes] == [(3, True), (2, False)]


def test_minari_bounds_are_the_declared_ones(write_minari):
    with open_source(write_minari([minari_episode(4), minari_episode(2, terminated=False)], VECTOR, BOX)) as source:
        assert source.schema.action.low.tolist() == [-1, -2] and source.metadata["bounds"] == "declared"
        assert [(each.steps, each.terminated, each.final_missing) for each in source.episodes] == [(4, True, False), (2, False, False)]
    assert source.schema.reward.dtype == np.float64


def test_minari_without_finite_bounds_asks_the_environment_then_the_data(write_minari):
    open_box = {"type": "Box", "dtype": "float32", "shape": [1], "low": [float("-inf")], "high": [float("inf")]}
    episode = minari_episode(3, actions=np.array([[0.5], [1.5], [-1]], np.float32))
    with open_source(write_minari([episode], VECTOR, open_box, env_spec=json.dumps({"id": "Pendulum-v1"}))) as source:
        assert source.schema.action.low.tolist() == [-2] and source.metadata["bounds"] == "env:Pendulum-v1"
    with open_source(write_minari([episode], VECTOR, open_box)) as source:
        assert source.schema.action.low.tolist() == [-1] and source.metadata["bounds"] == "inferred"


def test_minari_dict_observations_are_fields_and_nested_names_are_joined(write_minari):
    space = {"type": "Dict", "subspaces": {"goal": VECTOR, "arm": {"type": "Dict", "subspaces": {"grip": DISCRETE}}}}
    observations = {"goal": np.zeros((4, 3), np.float32), "arm": {"grip": np.arange(4)}}
    path = write_minari([minari_episode(3, observations, actions=np.array([0, 6, 2]))], space, DISCRETE)
    with open_source(path) as source:
        (episode,) = source.episodes
    assert source.schema.action.n == 7
    assert {name: field.dtype.name for name, field in source.schema.observation.items()} == {"goal": "float32", "arm.grip": "int64"}
    assert episode.observation["arm.grip"].tolist() == [0, 1, 2, 3]


def test_minari_tuple_observations_are_fields_named_by_their_place(write_minari):
    space = {"type": "Tuple", "subspaces": [VECTOR, DISCRETE]}
    observations = {"_index_0": np.zeros((4, 3), np.float32), "_index_1": np.arange(4)}
    with open_source(write_minari([minari_episode(3, observations)], space, BOX)) as source:
        (episode,) = source.episodes
    assert episode.observation["1"].tolist() == [0, 1, 2, 3] and episode.observation["0"].shape == (4, 3)


def test_minari_goal_conditioned_data_with_their_infos_seeds_and_options(write_minari, tmp_path):
    """J26: the three parts of a goal observation; infos of the steps as extra fields, whether they begin with those of the reset or not."""
    space = {"type": "Dict", "subspaces": dict.fromkeys(("observation", "desired_goal", "achieved_goal"), VECTOR)}
    episodes = []
    for steps in (3, 2):
        rows = np.arange((steps + 1) * 3, dtype=np.float32).reshape(-1, 3)
        episode = minari_episode(steps, {name: rows + place for place, name in enumerate(space["subspaces"])})
        episode["infos"] = {"success": np.arange(steps + 1), "deep": {"qpos": np.ones((steps, 2))}, "words": ["a"] * (steps + 1)}
        episodes.append(episode)
    path = write_minari(episodes, space, BOX)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_1"].attrs["seed"] = 7
        file["episode_1"].attrs["options/start"] = "left"
        file["episode_1"].attrs["total_steps"] = 2
    lines = []
    store = import_into(path, tmp_path / "store", message=lines.append)
    assert set(store.schema.observation) == {"observation", "desired_goal", "achieved_goal"}
    assert {name: field.dtype.name for name, field in store.schema.extra.items()} == {"deep.qpos": "float64", "success": "int64"}
    assert [each.extra["success"].tolist() for each in store.episodes] == [[1, 2, 3], [1, 2]]
    assert store.episode_metadata(0) == {} and store.episode_metadata(1) == {"seed": 7, "options/start": "left"}
    assert "not imported: infos/words" in lines
    assert store.episodes[1].observation["achieved_goal"][0].tolist() == [2, 3, 4]


def ramp(step):
    """A picture that JPEG keeps nearly as it is."""
    return np.repeat(np.arange(48, dtype=np.uint8)[:, None, None] * 2 + 10 * step, 64, 1).repeat(3, 2)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("backend", ["hdf5", "arrow"])
def test_minari_s_jpeg_images_are_decoded_in_the_layout_of_their_space(write_minari, tmp_path, backend, equal):
    """The layouts that Minari 0.5.4 writes: rows of bytes in HDF5 (a matrix where they are equally long), binaries in Arrow."""
    image = {"type": "Box", "dtype": "uint8", "shape": [48, 64, 3], "low": 0, "high": 255}
    space = {"type": "Dict", "subspaces": {"camera": image, "state": VECTOR}}
    encoded = []
    for step in range(4):
        buffer = io.BytesIO()
        Image.fromarray(ramp(step)).save(buffer, format="JPEG")
        encoded.append(buffer.getvalue().ljust(2000 + (0 if equal else step), b"\0"))
    state = np.ones((4, 3), np.float32)
    path = write_minari([minari_episode(3, {"state": state})], space, BOX, data_format=backend, jpeg_encoding=True)
    if backend == "hdf5":
        with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
            frames = [np.frombuffer(content, np.uint8) for content in encoded]
            dtype = None if equal else h5py.vlen_dtype(np.uint8)
            file["episode_0/observations"].create_dataset("camera", data=frames, dtype=dtype, chunks=True)
    else:
        (path / "data" / "main_data.hdf5").unlink()
        (path / "data" / "0").mkdir()
        vectors = [pa.FixedSizeListArray.from_arrays(np.zeros(4 * n, np.float32), n) for n in (3, 2)]
        observations = pa.StructArray.from_arrays([pa.array(encoded, pa.binary()), vectors[0]], ["camera", "state"])
        table = pa.table(
            {
                "observations": observations,
                "actions": vectors[1],
                "rewards": np.ones(4),
                "terminations": [False, False, True, False],
                "truncations": [False] * 4,
            }
        )
        with pa.OSFile(str(path / "data" / "0" / "part-0.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with open_source(path) as source:
        (episode,) = source.episodes
        assert source.schema.observation["camera"].shape == (48, 64, 3)
    for step, frame in enumerate(episode.observation["camera"]):
        np.testing.assert_allclose(frame.astype(int), ramp(step), atol=4)
    assert episode.terminated and any("channels last" in line for line in source.messages)


def test_a_minari_episode_that_goes_on_after_an_end_is_given_out_in_pieces(write_minari):
    episode = minari_episode(5, terminated=False)
    episode["terminations"][1] = True
    with open_source(write_minari([episode], VECTOR, BOX)) as source:
        first, second = source.episodes
    assert (first.steps, first.terminated) == (2, True) and (second.steps, second.terminated) == (3, False)
    np.testing.assert_array_equal(first.observation[-1], second.observation[0])
    assert any("episode_0 continues after an end at step 1" in line for line in source.messages)


@pytest.mark.parametrize(
    ("observation", "action", "part"),
    [
        ({"type": "Text", "min_length": 1}, BOX, "'observations' is a Text space"),
        ({"type": "Tuple", "subspaces": [{"type": "Graph"}]}, BOX, "'observations/0' is a Graph space"),
        (VECTOR, {"type": "Tuple", "subspaces": [BOX, DISCRETE]}, "actions are a Tuple space"),
        (VECTOR, {"type": "MultiDiscrete", "nvec": [[2, 3], [2, 3]]}, "its nvec is"),
        (VECTOR, {"type": "MultiBinary", "n": [2, 2]}, "its n is"),
        (VECTOR, {**DISCRETE, "start": 1}, "numbered from 1"),
    ],
)
def test_minari_spaces_that_are_not_read_say_so(write_minari, observation, action, part):
    with pytest.raises(InvalidInput, match=part):
        open_source(write_minari([minari_episode(2)], observation, action, jpeg_encoding=True))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"observations": np.zeros((3, 3), np.float32)}, "'episode_0/observations' has 3 rows and 'episode_0/actions' has 3"),
        ({"actions": np.full((3, 2), 1.5, np.float32)}, r"episode_0/actions\[0, 0\] is 1.5, outside \[-1, 1\] of the file"),
        ({"actions": np.zeros((3, 4), np.float32)}, "has 4 dimensions, the actions of the file have 2"),
        ({"rewards": np.array([0, np.inf, 0])}, r"episode_0/rewards\[1\] is inf"),
        ({"rewards": np.zeros(2)}, "'episode_0/actions' has 3 rows and 'episode_0/rewards' has 2"),
    ],
)
def test_minari_values_that_cannot_be_name_episode_and_row(write_minari, tmp_path, change, part):
    path = write_minari([{**minari_episode(3), **change}], VECTOR, BOX)
    with pytest.raises(InvalidInput, match=part):
        import_into(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_incomplete_minari_dataset_is_refused(write_minari):
    with pytest.raises(InvalidInput, match="holds 1 episodes, its metadata says 3"):
        open_source(write_minari([minari_episode(3)], VECTOR, BOX, total_episodes=3))


def test_a_store_keeps_its_episodes_and_its_metadata(flat, write_h5, tmp_path, same_episodes):
    first = import_into(write_h5(flat, attributes={"env_id": "Unheard-v0", "seed": 3}), tmp_path / "first")
    second = import_into(tmp_path / "first", tmp_path / "second")
    assert second.metadata == first.metadata and second.schema == first.schema
    same_episodes(second.episodes, first.episodes)
    assert second.snapshot() == first.snapshot()


def test_a_damaged_store_is_refused(flat, tmp_path):
    import_into(flat, tmp_path / "first")
    rewards = tmp_path / "first" / "columns" / "reward.bin"
    raw = bytearray(rewards.read_bytes())
    raw[6 * 4] ^= 1
    rewards.write_bytes(raw)
    with pytest.raises(InvalidInput, match="first: episode 1 does not fit its checksum"):
        import_into(tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_every_format_has_a_name_a_summary_and_says_what_it_needs():
    assert list(FORMATS) == [
        "store",
        "minari",
        "atari",
        "torchrl",
        "lerobot",
        "gen_dgrl",
        "robomimic",
        "d3rlpy",
        "d4rl",
        "npz",
        "csv",
        "parquet",
    ]
    assert all(each.summary and each.needs and each.name == name for name, each in FORMATS.items())
