"""What is easily lost between formats, over the grid of `cases`: names that a format uses itself, shapes, spaces, order, meaning, depth."""

from __future__ import annotations

import io
import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import FIELDS, same, store, values

from offrl.errors import InvalidInput, Unknown
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import export_dataset, import_into, open_source

WHOLE = {"minari": "x-v0", "robomimic": "x.hdf5", "torchrl": "x"}  # formats that keep final observations
CUT = {"lerobot": "x", "d3rlpy": "x.h5"}  # formats that keep T observations
NAMES = WHOLE | CUT
RESERVED = ("timestamp", "index", "frame_index", "episode_index", "task_index", "action", "actions", "reward", "rewards", "next.reward",
            "next.done", "next.terminated", "observation", "observations", "observation.state", "obs", "next_obs", "dones", "done",
            "terminated", "truncated", "next", "collector", "is_init", "shape", "device", "_weight", "states", "extra.action", "task",
            "observation.arm", "step_count", "seed", "infos", "terminations", "traj_ids")  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("format", NAMES)
def test_a_case_of_the_grid_comes_back_as_it_was(tmp_path, format, case):
    """Names, dtypes, shapes, values, ends and the action space."""
    made = store(case, tmp_path / "made", final=format in WHOLE)
    again = import_into(export_dataset(made, tmp_path / NAMES[format], format), tmp_path / "again")
    expected = made.episodes if format in WHOLE else [each for each in made.episodes if each.steps]
    if format == "d3rlpy":
        expected = [Episode(each.observation, each.action, each.reward, each.terminated) for each in made.episodes]
    same(again.episodes, expected)
    assert again.schema.observation == made.schema.observation and again.schema.action == made.schema.action


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("format", [name for name in NAMES if name != "d3rlpy"])
def test_names_that_a_format_uses_itself_change_nothing(tmp_path, format, single):
    """Extras of all those names at once, beside observations of the same names: each comes back with its own values."""
    fields = Field("float32", (2,)) if single else {name: Field("float32", (2,)) for name in ("arm", *RESERVED)}
    schema = Schema(fields, Field("float32", (1,), low=-9, high=9), extra={name: Field("float32") for name in RESERVED})
    made = EpisodeStore.create(tmp_path / "made", schema)
    rng = np.random.default_rng(0)
    rows = lambda *shape: rng.uniform(-9, 9, shape).astype("f4")  # noqa: E731
    with made.writer() as writer:
        for terminated in (True, False):
            seen = rows(5, 2) if single else {name: rows(5, 2) for name in fields}
            writer.append(Episode(seen, rows(4, 1), rows(4), terminated, {name: rows(4) for name in RESERVED}))
    said = []
    again = import_into(export_dataset(made, tmp_path / NAMES[format], format, message=said.append), tmp_path / "again")
    for ours, theirs in zip(again.episodes, made.episodes, strict=True):
        found, due = values(ours), values(theirs)
        assert found.keys() == due.keys()
        for name, array in due.items():
            np.testing.assert_array_equal(found[name][:4], array[:4], err_msg=name)
    used = {"lerobot": "timestamp", "torchrl": "reward", "robomimic": "actions"}.get(format)
    assert used is None or any(f"the extra field {used!r} is written as 'extra.{used}'" in line for line in said)


@pytest.mark.parametrize(("format", "name"), [("lerobot", "timestamp"), ("torchrl", "reward"), ("robomimic", "actions")])
def test_renamed_fields_are_found_without_our_record_too(tmp_path, format, name):
    """Another program has rewritten the data, and our record is gone: nothing is replaced, the field has the name that was said."""
    schema = Schema(Field("float32", (2,)), Field("float32", (1,), low=-1, high=1), extra={name: Field("float32")})
    made = EpisodeStore.create(tmp_path / "made", schema)
    with made.writer() as writer:
        writer.append(Episode(np.zeros((5, 2), "f4"), np.zeros((4, 1), "f4"), np.ones(4, "f4"), True, {name: np.arange(4, dtype="f4")}))
    path = export_dataset(made, tmp_path / NAMES[format], format)
    if path.is_dir():
        next(path.rglob("offrl.json")).unlink()
    else:
        with h5py.File(path, "a") as file:
            del file.attrs["offrl"]
    again = import_into(path, tmp_path / "again").episodes[0]
    assert again.extra[f"extra.{name}"].tolist() == [0, 1, 2, 3] and again.reward.tolist() == [1] * 4 and not again.action.any()


def test_names_that_are_a_group_and_an_array_at_once(tmp_path):
    fields = {"arm": Field("float32", (1,)), "arm.left": Field("float32", (2,)), "arm.left.tip": Field("float32", (3,))}
    made = EpisodeStore.create(tmp_path / "made", Schema(fields, Field("float32", (1,), low=-1, high=1)))
    with made.writer() as writer:
        seen = {name: np.full((3, *each.shape), i, "f4") for i, (name, each) in enumerate(fields.items())}
        writer.append(Episode(seen, np.zeros((2, 1), "f4"), [0.0, 1.0]))
    for format, name in WHOLE.items():
        again = import_into(export_dataset(made, tmp_path / name, format), tmp_path / f"{format}.again")
        same(again.episodes, made.episodes)


# --- TorchRL --------------------------------------------------------------------------------------------------------------------------


def buffer(root, arrays, *, length=None, cursor=0, written=None):
    """A dumped buffer: arrays by their key; the first gives the dimensions in front."""
    lead = list(arrays["action"].shape[: 2 if arrays["action"].ndim == 3 else 1])
    folders = {""} | {key.rpartition("/")[0] for key in arrays}
    for folder in folders:
        (root / "storage" / folder).mkdir(parents=True, exist_ok=True)
        meta = {"shape": lead, "device": "cpu"} | ({each: {"type": "TensorDict"} for each in folders if each} if not folder else {})
        for key, array in arrays.items():
            if key.rpartition("/")[0] == folder:
                name = key.rpartition("/")[2]
                array.tofile(root / "storage" / folder / f"{name}.memmap")
                meta[name] = {"device": "cpu", "shape": list(array.shape), "dtype": f"torch.{array.dtype.name}", "is_nested": False}
        (root / "storage" / folder / "meta.json").write_text(json.dumps(meta))
    rows = int(np.prod(lead))
    (root / "storage" / "storage_metadata.json").write_text(json.dumps({"is_pytree": False, "len": length or rows}))
    (root / "writer").mkdir()
    (root / "writer" / "metadata.json").write_text(json.dumps({"cursor": cursor, "write_count": written or lead[0]}))
    return root


def steps(trajectory, step, last):
    """Rows of trajectories ``[N]``: an observation encodes both; ``last``: the step that ends each."""
    trajectory, step = np.asarray(trajectory), np.asarray(step)
    seen = np.stack([trajectory, step], -1).astype("f4")
    done = (step == last)[..., None]
    return {
        "observation": seen,
        "action": step[..., None].astype("f4") / 10,
        "next/observation": seen + np.float32([0, 1]),
        "next/reward": step[..., None].astype("f4"),
        "next/done": done,
        "next/terminated": done,
        "next/truncated": done & False,
    }


def lived(source):
    return [(int(each.observation[0, 0]), each.observation[:, 1].astype(int).tolist(), each.terminated) for each in source.episodes]


def test_trajectories_in_turn_are_put_together(tmp_path):
    ids, step = [0, 1, 2, 0, 1, 2, 0, 2, 0, 2], [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    arrays = steps(ids, step, 3) | {"collector/traj_ids": np.array(ids)}
    with open_source(buffer(tmp_path / "b", arrays)) as source:
        assert lived(source) == [(0, [0, 1, 2, 3, 4], True), (1, [0, 1, 2], False), (2, [0, 1, 2, 3, 4], True)]
        assert any("3 trajectories are interleaved" in line for line in source.messages)
    arrays = {key: np.roll(array, 4, 0) for key, array in arrays.items()}  # a ring whose oldest row is row 4
    with open_source(buffer(tmp_path / "ring", arrays, cursor=4, written=14)) as source:
        assert [each[:2] for each in lived(source)] == [(0, [0, 1, 2, 3, 4]), (1, [0, 1, 2]), (2, [0, 1, 2, 3, 4])]


def test_a_number_that_comes_again_behind_an_end_is_another_trajectory(tmp_path):
    ids, step = [0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 0, 0, 1, 1]
    arrays = steps(ids, step, 1) | {"collector/traj_ids": np.array(ids)}
    with open_source(buffer(tmp_path / "b", arrays)) as source:
        assert [each[:2] for each in lived(source)] == [(0, [0, 1, 2]), (1, [0, 1, 2])] * 2


def test_rows_of_environments_in_turn_without_numbers_need_an_option(tmp_path):
    path = buffer(tmp_path / "b", steps([0, 1] * 4, np.repeat(np.arange(4), 2), 3))
    with open_source(path, options={"environments": 2}) as source:
        assert [each[:2] for each in lived(source)] == [(0, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 3, 4])]
    with pytest.raises(InvalidInput, match="environments is 0"):
        open_source(path, options={"environments": 0})


@pytest.mark.parametrize("cursor", [0, 2])
def test_environments_side_by_side_are_taken_apart(tmp_path, cursor):
    """A storage of two dimensions has time first: [T, B]."""
    step, ids = np.repeat(np.arange(5)[:, None], 3, 1), np.tile(np.arange(3), (5, 1))
    arrays = {key: np.roll(array, cursor, 0) for key, array in steps(ids, step, 4).items()}
    with open_source(buffer(tmp_path / "b", arrays, cursor=cursor, written=5 + cursor)) as source:
        assert lived(source) == [(i, [0, 1, 2, 3, 4, 5], True) for i in range(3)]


def test_pieces_of_trajectories_as_rows_are_joined(tmp_path):
    """A buffer of one dimension over pieces [B, T]: a trajectory goes on in a later row."""
    ids, step = np.repeat([[0], [1], [0], [1]], 2, 1), np.array([[0, 1], [0, 1], [2, 3], [2, 3]])
    arrays = steps(ids, step, 3) | {"collector/traj_ids": ids}
    with open_source(buffer(tmp_path / "b", arrays, length=4, written=4)) as source:
        assert lived(source) == [(0, [0, 1, 2, 3, 4], True), (1, [0, 1, 2, 3, 4], True)]


def test_padding_is_left_out(tmp_path):
    arrays = steps([0, 0, 0, 1, 1, 1], [0, 1, 9, 0, 1, 2], 2) | {"collector/mask": np.array([1, 1, 0, 1, 1, 1], bool)}
    with open_source(buffer(tmp_path / "b", arrays)) as source:
        assert lived(source) == [(0, [0, 1, 2], False), (1, [0, 1, 2, 3], True)]
        assert "1 rows are padding (collector/mask): left out" in source.messages


def test_what_transforms_carry_is_no_observation_unless_it_is_chosen(tmp_path):
    count = np.arange(4)[:, None]
    carried = {key: count.astype(dtype) for key, dtype in {"step_count": "i8", "episode_reward": "f4", "speed": "f4"}.items()}
    arrays = steps([0] * 4, range(4), 3) | carried | {f"next/{key}": array + 1 for key, array in carried.items()}
    path = buffer(tmp_path / "b", arrays)
    with open_source(path) as source:
        assert list(source.schema.observation) == ["observation", "speed"]
        assert list(source.schema.extra) == ["step_count", "episode_reward"]
        assert "observation: observation, speed; kept with each step: episode_reward, step_count" in source.messages
        assert any(line.startswith("episode_reward, step_count: written by a transform of TorchRL") for line in source.messages)
    with open_source(path, options={"observation": ["observation", "step_count"]}) as source:
        assert list(source.schema.observation) == ["observation", "step_count"]
    with open_source(path, options={"drop": "speed,step_count"}) as source:
        assert source.schema.observation == Field("float32", (2,)) and list(source.schema.extra) == ["episode_reward"]
        assert "not imported: next/episode_reward, speed, step_count" not in source.messages
    with pytest.raises(Unknown, match="has no 'sped' to drop"):
        open_source(path, options={"drop": ["sped"]})


def test_one_hot_actions_declare_their_number(tmp_path):
    arrays = steps([0] * 4, range(4), 3) | {"action": np.eye(6, dtype=bool)[[0, 2, 1, 2]]}
    with open_source(buffer(tmp_path / "b", arrays)) as source:
        assert source.schema.action.n == 6 and source.metadata["bounds"] == "declared"


def test_flags_of_several_columns_are_one_line(tmp_path):
    arrays = steps([0] * 4, range(4), 3)
    arrays["next/done"] = np.zeros((4, 2), bool)
    with pytest.raises(InvalidInput, match=r"'next/done' has shape \(4, 2\)"):
        open_source(buffer(tmp_path / "b", arrays))


# --- LeRobot --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def camera(tmp_path):
    """An exported folder with a grey camera of 4 frames, and how to put other pictures into it."""
    fields = {"images.depth": Field("uint8", (1, 6, 8)), "state": Field("float32", (2,))}
    made = EpisodeStore.create(tmp_path / "made", Schema(fields, Field("float32", (1,), low=-1, high=1)))
    with made.writer() as writer:
        seen = {"images.depth": np.zeros((4, 1, 6, 8), np.uint8), "state": np.zeros((4, 2), "f4")}
        writer.append(Episode(seen, np.zeros((4, 1), "f4"), np.zeros(4, "f4"), True))
    path = export_dataset(made, tmp_path / "folder", "lerobot")

    def put(pictures, channels=1):
        key = "observation.images.depth"
        file = next(path.glob("data/**/*.parquet"))
        table = pq.read_table(file)
        encoded = pa.array([{"bytes": each, "path": ""} for each in pictures], table.schema.field(key).type)
        pq.write_table(table.set_column(table.column_names.index(key), key, encoded), file)
        info = json.loads((path / "meta" / "info.json").read_text())
        info["features"][key]["shape"][2] = channels
        (path / "meta" / "info.json").write_text(json.dumps(info))
        return path

    return put


def encoded(rows, format, mode=None):
    image = pytest.importorskip("PIL.Image")
    made = []
    for each in rows:
        out = io.BytesIO()
        picture = image.fromarray(each)
        (picture.convert(mode) if mode else picture).save(out, format)
        made.append(out.getvalue())
    return made


@pytest.mark.parametrize("format", ["TIFF", "PNG"])
def test_depth_of_16_bits_stays(tmp_path, camera, format):
    depth = np.random.default_rng(0).integers(0, 65536, (4, 6, 8), dtype=np.uint16)
    store_ = import_into(camera(encoded(depth, format)), tmp_path / "store")
    found = store_.episodes[0].observation["images.depth"]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[:, 0], depth)
    again = import_into(export_dataset(store_, tmp_path / "again", "lerobot"), tmp_path / "back")
    np.testing.assert_array_equal(again.episodes[0].observation["images.depth"], found)


def test_distances_as_floats_stay(tmp_path, camera):
    depth = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    found = import_into(camera(encoded(depth, "TIFF")), tmp_path / "store").episodes[0].observation["images.depth"]
    np.testing.assert_array_equal(found[:, 0], depth)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("RGB", 1), ("RGBA", 1), ("RGBA", 3), ("LA", 1), ("CMYK", 3), ("I;16", 3)],
)
def test_a_picture_that_would_lose_something_is_refused(camera, mode, channels):
    grey = np.full((4, 6, 8), 7, np.uint16 if mode == "I;16" else np.uint8)
    path = camera(encoded(grey, "TIFF", None if mode == "I;16" else mode), channels)
    refused = pytest.raises(InvalidInput, match=r"observation\.images\.depth\[0\] is a picture of the mode")
    with refused, open_source(path) as source:
        list(source.episodes)


def test_one_picture_of_another_depth_is_named(camera):
    deep = encoded(np.zeros((4, 6, 8), np.uint16), "PNG")
    deep[2] = encoded(np.zeros((1, 6, 8), np.uint8), "PNG")[0]
    with pytest.raises(InvalidInput, match=r"depth\[2\] is a picture of the mode L"), open_source(camera(deep)) as source:
        list(source.episodes)


def test_frames_in_another_order_are_sorted_and_a_missing_one_is_named(tmp_path):
    made = store("extras", tmp_path / "made", final=False)
    path = export_dataset(made, tmp_path / "folder", "lerobot")
    file = next(path.glob("data/**/*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.take([3, 1, 0, 2, *range(4, table.num_rows)]), file)
    said = []
    same(import_into(path, tmp_path / "again", message=said.append).episodes, made.episodes)
    assert "the frames of 1 episodes are sorted by their frame_index" in said
    pq.write_table(table.take([0, 1, 1, 3, *range(4, table.num_rows)]), file)
    with pytest.raises(InvalidInput, match="frame_index lacks 2 of 4 frames"):
        open_source(path)


def test_statistics_stand_with_each_episode(tmp_path):
    """LeRobot writes them with the episodes that it records; files without them and files with them cannot be read together."""
    made = store("pixels and vector", tmp_path / "made", final=False)
    path = export_dataset(made, tmp_path / "folder", "lerobot")
    features = json.loads((path / "meta" / "info.json").read_text())["features"]
    table = pq.read_table(next(path.glob("meta/episodes/**/*.parquet")))
    assert {key.split("/")[1] for key in table.column_names if key.startswith("stats/")} == set(features)
    for episode, row in zip(made.episodes, table.to_pylist(), strict=True):
        arm = episode.observation["arm"].astype(np.float64)
        np.testing.assert_allclose(row["stats/observation.arm/mean"], arm.mean(0), rtol=1e-6)
        np.testing.assert_allclose(row["stats/observation.arm/q90"], np.quantile(arm, 0.9, axis=0), rtol=1e-6)
        assert np.shape(row["stats/observation.camera/min"]) == (3, 1, 1)
    whole = json.loads((path / "meta" / "stats.json").read_text())
    rows = np.concatenate([each.observation["arm"] for each in made.episodes]).astype(np.float64)
    np.testing.assert_allclose(whole["observation.arm"]["std"], rows.std(0), rtol=1e-6)


# --- Minari ---------------------------------------------------------------------------------------------------------------------------


def minari(root, space, observations, *, actions=None, action_space=None, **metadata):
    """A folder of one episode, in Minari's layout; arrays by their path below the episode."""
    (root / "data").mkdir(parents=True)
    acted = np.zeros((3, 1), np.float32) if actions is None else actions
    with h5py.File(root / "data" / "main_data.hdf5", "w") as file:
        for key, rows in (observations if isinstance(observations, dict) else {"observations": observations}).items():
            file[f"episode_0/{key}"] = rows
        file["episode_0/actions"], file["episode_0/rewards"] = acted, np.zeros(len(acted))
        file["episode_0/terminations"], file["episode_0/truncations"] = np.arange(len(acted)) == len(acted) - 1, np.zeros(len(acted), bool)
    box = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-1.0], "high": [1.0]}
    (root / "data" / "metadata.json").write_text(
        json.dumps(
            {
                "total_episodes": 1,
                "total_steps": len(acted),
                "data_format": "hdf5",
                "observation_space": json.dumps(space),
                "action_space": json.dumps(action_space or box),
                "dataset_id": "x-v0",
                "minari_version": "0.5.4",
                **metadata,
            }
        )
    )
    return root


def box(shape, dtype="float32", low=-2.0, high=2.0):
    return {"type": "Box", "dtype": dtype, "shape": list(shape), "low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}


SPACES = {
    "discrete": ({"type": "Discrete", "dtype": "int64", "start": 3, "n": 5}, {"observations": np.array([3, 4, 7, 5])}),
    "scalar": (box(()), {"observations": np.float32([0, 1, 2, 1])}),
    "several choices": (
        {"type": "MultiDiscrete", "dtype": "int64", "nvec": [3, 4], "start": [0, 1]}, {"observations": np.ones((4, 2), int)},
    ),
    "bits": ({"type": "MultiBinary", "n": [2, 2]}, {"observations": np.ones((4, 2, 2), np.int8)}),
    "nested": (
        {"type": "Dict", "subspaces": {"arm": {"type": "Dict", "subspaces": {"left": box((2,)), "right": box((2,), "float64")}},
                                       "pair": {"type": "Tuple", "subspaces": [box((1,)), {"type": "Discrete", "start": 0, "n": 9}]},
                                       "arm.left": box((2,)), "the hand": box((1,))}},
        {"observations/arm/left": np.zeros((4, 2), "f4"), "observations/arm/right": np.ones((4, 2)),
         "observations/pair/_index_0": np.zeros((4, 1), "f4"), "observations/pair/_index_1": np.arange(4),
         "observations/arm.left": np.full((4, 2), 2, "f4"), "observations/the hand": np.full((4, 1), 1, "f4")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPACES)
def test_spaces_and_arrays_go_back_to_minari_as_they_came(tmp_path, case):
    space, arrays = SPACES[case]
    words = {"author": "me", "requirements": ["numpy"], "license": "MIT", "code_permalink": "https://x", "algorithm_name": "expert"}
    spec = {
        "env_spec": json.dumps({"id": "Unheard-v3", "kwargs": {"map_name": "8x8"}, "max_episode_steps": 30}),
        "eval_env_spec": json.dumps({"id": "Unheard-v4", "kwargs": {"a": 1}}),
    }
    source = minari(tmp_path / "x-v0", space, arrays, **words, **spec)
    said = []
    made = import_into(source, tmp_path / "store", message=said.append)
    assert any("made with map_name='8x8'" in line for line in said)
    path = export_dataset(made, tmp_path / "y-v0", "minari")
    found = json.loads((path / "data" / "metadata.json").read_text())
    assert json.loads(found["observation_space"]) == space and {key: found[key] for key in words} == words
    assert {key: found[key] for key in spec} == spec and found["minari_version"] == "0.5.0"
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        for key, rows in arrays.items():
            assert file[f"episode_0/{key}"].dtype == rows.dtype
            np.testing.assert_array_equal(file[f"episode_0/{key}"], rows)
    same(import_into(path, tmp_path / "again").episodes, made.episodes)


def test_names_that_would_become_one_stay_apart_and_are_said(tmp_path):
    space, arrays = SPACES["nested"]
    said = []
    made = import_into(minari(tmp_path / "x-v0", space, arrays), tmp_path / "store", message=said.append)
    seen = made.episodes[0].observation
    assert set(seen) == {"arm.left", "arm.left_2", "arm.right", "pair.0", "pair.1", "the_hand"}
    assert seen["arm.left"][0].tolist() == [2, 2] and seen["arm.left_2"][0].tolist() == [0, 0]
    assert "the observation field 'arm/left' is kept as 'arm.left_2'" in said
    assert "the observation field 'the hand' is kept as 'the_hand'" in said


def test_actions_of_several_dimensions_are_vectors_and_go_back(tmp_path):
    actions = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 12
    source = minari(tmp_path / "x-v0", box((1,)), np.zeros((4, 1), "f4"), actions=actions, action_space=box((2, 2)))
    said = []
    made = import_into(source, tmp_path / "store", message=said.append)
    assert made.schema.action == Field("float32", (4,), low=-2, high=2) and "actions of shape (2, 2) are kept as vectors of 4" in said
    path = export_dataset(made, tmp_path / "y-v0", "minari")
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        np.testing.assert_array_equal(file["episode_0/actions"], actions)
    assert json.loads(json.loads((path / "data" / "metadata.json").read_text())["action_space"]) == box((2, 2))


def test_images_that_were_turned_go_back_with_their_channels_last(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (4, 9, 8, 3), dtype=np.uint8)
    space = box((9, 8, 3), "uint8", 0, 255)
    made = import_into(minari(tmp_path / "x-v0", space, rows), tmp_path / "store", options={"channels": "last"})
    assert made.schema.observation.shape == (3, 9, 8)
    path = export_dataset(made, tmp_path / "y-v0", "minari")
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        np.testing.assert_array_equal(file["episode_0/observations"], rows)


def test_a_part_that_is_not_read_can_be_left_out(tmp_path):
    space = {"type": "Dict", "subspaces": {"image": box((2,)), "mission": {"type": "Text", "max_length": 9}}}
    arrays = {"observations/image": np.ones((4, 2), "f4"), "observations/mission": np.array([b"go"] * 4)}
    source = minari(tmp_path / "x-v0", space, arrays)
    with pytest.raises(InvalidInput, match="'observations/mission' is a Text space") as error:
        open_source(source)
    assert "--option drop=mission" in error.value.hint
    said = []
    made = import_into(source, tmp_path / "store", options={"drop": "mission"}, message=said.append)
    assert made.schema.observation == {"image": Field("float32", (2,))} and "not imported: mission" in said


def test_a_whole_number_per_step_is_declared_as_a_choice(tmp_path):
    made = EpisodeStore.create(tmp_path / "made", Schema(Field("int64"), Field("int64", low=0, high=3)))
    with made.writer() as writer:
        writer.append(Episode(np.array([0, 15, 3]), np.array([0, 3]), [1.0, 1.0], True))
    said = []
    path = export_dataset(made, tmp_path / "x-v0", "minari", message=said.append)
    space = json.loads(json.loads((path / "data" / "metadata.json").read_text())["observation_space"])
    assert space == {"type": "Discrete", "dtype": "int64", "start": 0, "n": 16} and "Discrete(16), counted in the data" in said[0]


# --- robomimic ------------------------------------------------------------------------------------------------------------------------


def test_what_dones_mean_can_be_told(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for number, reward in enumerate((1.0, 0.0)):
            file[f"data/demo_{number}/obs/arm"], file[f"data/demo_{number}/actions"] = np.zeros((3, 2)), np.zeros((3, 1))
            file[f"data/demo_{number}/rewards"], file[f"data/demo_{number}/dones"] = [0, 0, reward], [0, 0, 1]
    for done, ends in {"dones": [True, True], "reward": [True, False], "truncated": [False, False], "terminated": [True, True]}.items():
        with open_source(tmp_path / "x.hdf5", options={"done": done}) as source:
            assert [each.terminated for each in source.episodes] == ends
            assert any("every demo ends with dones = 1" in line for line in source.messages) == (done == "dones")
    with pytest.raises(InvalidInput, match="done is 'maybe'"):
        open_source(tmp_path / "x.hdf5", options={"done": "maybe"})


def test_names_that_would_become_one_are_refused_or_left_out_and_said(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/arm"], demo["actions"], demo["rewards"], demo["dones"] = np.zeros((3, 2)), np.zeros((3, 1)), np.zeros(3), [0, 0, 1]
        demo["more/a/b"], demo["more/a.b"] = np.ones(3), np.zeros(3)
    with open_source(tmp_path / "x.hdf5") as source:
        assert next(source.episodes).extra["more.a.b"].tolist() == [1, 1, 1]
        assert "not imported: more/a.b" in source.messages
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        file["data/demo_0/obs/left/tip"], file["data/demo_0/obs/left.tip"] = np.zeros((3, 1)), np.ones((3, 1))
    with pytest.raises(InvalidInput, match=r"obs/left/tip' and 'data/demo_0/obs/left\.tip' would both be 'left\.tip'"):
        open_source(tmp_path / "x.hdf5")
