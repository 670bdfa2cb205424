"""LeRobot v3: folders that LeRobot itself wrote, videos encoded here in its layout, and folders of ours."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import export_dataset, import_into, lerobot_export, open_source

av = pytest.importorskip("av")


@pytest.fixture
def formats(shared_data):
    return shared_data / "formats"


def flat_episodes(shared_data, lengths):
    """The first rows of the Pendulum data, cut as the LeRobot folders cut them."""
    with open_source(shared_data / "pendulum-replay.hdf5") as source:
        return [each for each, _ in zip(source.episodes, lengths, strict=False)]


def test_the_folder_that_lerobot_wrote_equals_the_first_episodes_of_the_flat_file(formats, shared_data, tmp_path):
    lines = []
    store = import_into(formats / "lerobot-v3-pendulum", tmp_path / "store", message=lines.append)
    assert (len(store), store.step_count, store.transition_count) == (5, 1000, 995)
    for ours, theirs in zip(store.episodes, flat_episodes(shared_data, range(5)), strict=True):
        for key in ("observation", "action", "reward"):
            np.testing.assert_array_equal(getattr(ours, key), getattr(theirs, key))
        assert not ours.terminated and ours.final_missing
    assert store.episode_metadata(3) == {"tasks": ["swing up"]} and store.metadata["source_attributes"]["fps"] == 20
    assert any("next.done does not say whether the task ended" in line for line in lines)


def test_what_the_end_means_can_be_told(formats, tmp_path):
    store = import_into(formats / "lerobot-v3-pendulum", tmp_path / "store", options={"done": "terminated"})
    assert all(each.terminated for each in store.episodes) and store.transition_count == 1000
    with pytest.raises(InvalidInput, match="done is 'yes'"):
        open_source(formats / "lerobot-v3-pendulum", options={"done": "yes"})


def test_images_are_decoded_channel_first(formats, tmp_path):
    """A ramp plus the step's number, as the folder's description says; pixels and state side by side."""
    store = import_into(formats / "lerobot-v3-images", tmp_path / "store")
    assert store.schema.observation == {"state": Field("float32", (3,)), "images.front": Field("uint8", (3, 24, 32))}
    with open_source(formats / "lerobot-v3-images") as source:
        first = next(source.episodes).observation["images.front"]
    assert first[0, :, 0, :4].tolist() == [[0, 1, 2, 3]] * 3
    for frames in (each.observation["images.front"] for each in store.episodes):
        assert frames.shape == (200, 3, 24, 32) and (np.diff(frames[:, 0, 0, 0].astype(int)) % 256 == 1).all()


# --- Videos ---------------------------------------------------------------------------------------------------------------------------


def picture(step, height=48, width=64):
    """A frame that survives the codec: large flat parts whose grey encodes the step."""
    frame = np.full((height, width, 3), 40, np.uint8)
    frame[:, : width // 2] = 40 + 4 * (step % 50)
    return frame


@pytest.fixture
def videos(formats, tmp_path):
    """The Pendulum folder with a camera: all episodes one behind the other in one mp4, as LeRobot keeps them; each 200 frames at 20 fps."""
    folder = tmp_path / "camera"
    shutil.copytree(formats / "lerobot-v3-pendulum", folder, copy_function=shutil.copyfile)
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info["features"]["observation.images.top"] = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    file = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    key = "videos/observation.images.top"
    for part, values in {
        "chunk_index": [0] * 5,
        "file_index": [0] * 5,
        "from_timestamp": np.arange(5) * 10.0,
        "to_timestamp": np.arange(1, 6) * 10.0,
    }.items():
        table = table.append_column(f"{key}/{part}", pa.array(values))
    pq.write_table(table, file)
    encode(folder / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4", 1000)
    return folder


def encode(path, frames, height=48, width=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        for step in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(step, height, width), format="rgb24")))
        container.mux(stream.encode())


def test_videos_are_cut_at_the_episodes_times(videos, tmp_path):
    store = import_into(videos, tmp_path / "store")
    assert store.schema.observation["images.top"] == Field("uint8", (3, 48, 64)) and len(store) == 5
    for episode in store.episodes:
        frames = episode.observation["images.top"].astype(int)
        left, right = frames[:, :, 8:40, 4:24].mean((1, 2, 3)), frames[:, :, 8:40, 40:60].mean((1, 2, 3))
        np.testing.assert_allclose(left, 40 + 4 * (np.arange(200) % 50), atol=4)  # each episode begins with a frame of number 0 again
        np.testing.assert_allclose(right, 40, atol=4)


def test_a_video_that_is_cut_short_damaged_or_of_another_size_is_named(videos, tmp_path):
    path = videos / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4"
    encode(path, 950)
    with pytest.raises(InvalidInput, match=r"camera, episode 4: observation.images.top has no frame at 47\.500 s"):
        import_into(videos, tmp_path / "store")
    skipped = []
    assert len(import_into(videos, tmp_path / "store", skip_bad=skipped.append)) == 4
    assert (skipped[0].episode, skipped[0].row) == (4, 150)
    encode(path, 1000, 96, 64)
    with pytest.raises(InvalidInput, match=r"observation.images.top\[0\] is a frame of 96x64"):
        import_into(videos, tmp_path / "x")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InvalidInput, match=r"observation\.images\.top cannot be decoded"):
        import_into(videos, tmp_path / "x")
    path.unlink()
    with pytest.raises(InvalidInput, match=r"holds no videos/observation.images.top/chunk-000/file-000.mp4"):
        import_into(videos, tmp_path / "x")


# --- Wrong folders --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pendulum(formats, tmp_path):
    shutil.copytree(formats / "lerobot-v3-pendulum", tmp_path / "pendulum", copy_function=shutil.copyfile)
    for each in (tmp_path / "pendulum", *(tmp_path / "pendulum").rglob("*")):
        each.chmod(0o755)
    return tmp_path / "pendulum"


def change(folder, **values):
    info = json.loads((folder / "meta" / "info.json").read_text())
    (folder / "meta" / "info.json").write_text(json.dumps(info | values))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"codebase_version": "v2.1"}, r"has LeRobot's version v2\.1; expected v3"),
        ({"data_path": "../../etc/passwd"}, "has the data_path"),
        ({"data_path": "data/{chunk_index:0999999999d}"}, "has the data_path"),
        ({"data_path": "data/{chunk_index.__class__}"}, "has the data_path"),
        ({"data_path": "other/file-{file_index:03d}.parquet"}, r"holds no other/file-000\.parquet"),
        ({"features": {"action": {"dtype": "float32", "shape": [1]}}}, "has no feature 'observation.NAME'"),
        (
            {"features": {"observation.state": {"dtype": "float32", "shape": [4]}, "action": {"dtype": "float32", "shape": [1]}}},
            "has rows of",
        ),
        ({"features": {"observation.state": {"dtype": "float32"}}}, "gives 'observation.state' no shape"),
    ],
)
def test_folders_that_are_wrong_are_one_line(pendulum, tmp_path, values, part):
    change(pendulum, **values)
    with pytest.raises(InvalidInput, match=part) as error:
        import_into(pendulum, tmp_path / "store")
    assert error.value.hint and not (tmp_path / "store").exists()


def test_damaged_parts_cost_their_episodes_alone(pendulum, tmp_path):
    """A NaN in one episode and rows of another one's number."""
    file = pendulum / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    rewards, numbers = table["next.reward"].to_numpy().copy(), table["episode_index"].to_numpy().copy()
    rewards[450], numbers[650] = np.nan, 0
    for key, values in (("next.reward", rewards), ("episode_index", numbers)):
        table = table.set_column(table.column_names.index(key), key, pa.array(values))
    pq.write_table(table, file, row_group_size=300)  # groups that lie across the episodes
    with pytest.raises(InvalidInput, match="pendulum, episode 3: row 50 is one of episode 0"):
        import_into(pendulum, tmp_path / "store")
    skipped = []
    store = import_into(pendulum, tmp_path / "store", skip_bad=skipped.append)
    assert [each.episode for each in skipped] == [2, 3] and skipped[0].why == "pendulum, episode 2: next.reward[50] is nan"
    assert len(store) == 3 and store.episodes[1].reward.shape == (200,)
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInput, match=r"pendulum, file-000.parquet cannot be read"):
        open_source(pendulum)


# --- Folders of ours ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lerobot-v3-pendulum", "lerobot-v3-images"])
def test_a_folder_of_ours_has_lerobot_s_tables(formats, tmp_path, same_episodes, name):
    """The same columns with the same types and values, features, counts, episodes and tasks; statistics to rounding."""
    store = import_into(formats / name, tmp_path / "store")
    path = export_dataset(store, tmp_path / "out", "lerobot")
    theirs, ours = (pq.read_table(root / "data" / "chunk-000" / "file-000.parquet") for root in (formats / name, path))
    for key in theirs.column_names:
        if key.startswith("observation.images"):
            continue  # PNGs of other encoders: the pixels are compared below
        assert ours.schema.field(key).type == theirs.schema.field(key).type, key
        assert ours[key].to_pylist() == theirs[key].to_pylist(), key
    known, made = (json.loads((root / "meta" / "info.json").read_text()) for root in (formats / name, path))
    for key in set(known) - {"features"}:
        assert made[key] == known[key], key
    for key, feature in known["features"].items():
        assert {**made["features"][key], "names": None} == {**feature, "names": None}
    file = "meta/episodes/chunk-000/file-000.parquet"
    theirs, ours = pq.read_table(formats / name / file), pq.read_table(path / file)
    assert {field.name: field.type for field in ours.schema} == {field.name: field.type for field in theirs.schema}
    for key in theirs.column_names:
        if not key.startswith("stats"):
            assert ours[key].to_pylist() == theirs[key].to_pylist(), key
        elif "image" not in key and key.rsplit("/", 1)[1] in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(ours[key].to_pylist(), theirs[key].to_pylist(), rtol=1e-3, atol=1e-5, err_msg=key)
    assert pq.read_table(path / "meta/tasks.parquet").to_pydict() == pq.read_table(formats / name / "meta/tasks.parquet").to_pydict()
    known, made = (json.loads((root / "meta" / "stats.json").read_text()) for root in (formats / name, path))
    for key in ("observation.state", "action", "next.reward", "timestamp"):
        for value in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(made[key][value], known[key][value], rtol=1e-5, atol=1e-6, err_msg=f"{key} {value}")
    again = import_into(path, tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert again.schema.observation == store.schema.observation and again.episode_metadata(1) == store.episode_metadata(1)


def test_ends_extras_and_several_files_come_back(tmp_path, same_episodes, monkeypatch):
    monkeypatch.setattr(lerobot_export, "DATA_BYTES", 1)  # a file for each episode
    monkeypatch.setattr(lerobot_export, "FILES_PER_CHUNK", 2)
    fields = {"camera": Field("uint8", (1, 6, 8)), "arm": Field("float64", (2, 3))}
    extra = {"cost": Field("int16"), "force": Field("float32", (2,))}
    schema = Schema(fields, Field("int64", low=0, high=3), Field("float64"), extra=extra)
    store = EpisodeStore.create(tmp_path / "made", schema)
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for number, steps in enumerate((3, 1, 4)):
            observation = {"camera": rng.integers(0, 256, (steps, 1, 6, 8), np.uint8), "arm": rng.normal(size=(steps, 2, 3))}
            extra = {"cost": np.arange(steps, dtype=np.int16), "force": rng.normal(size=(steps, 2)).astype(np.float32)}
            writer.append(
                Episode(observation, rng.integers(0, 4, steps), rng.normal(size=steps), number != 1, extra),
                {"tasks": [f"task {number % 2}"]},
            )
    lines = []
    path = export_dataset(store, tmp_path / "out", "lerobot", message=lines.append)
    assert sorted(each.relative_to(path).as_posix() for each in path.glob("data/**/*.parquet")) == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        "data/chunk-001/file-000.parquet",
    ]
    again = import_into(path, tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert [again.episode_metadata(i)["tasks"] for i in range(3)] == [["task 0"], ["task 1"], ["task 0"]]
    assert lines == ["the dataset does not state its steps per second: 30 are written"]


def test_final_observations_are_left_out_and_said(shared_data, tmp_path):
    store = import_into(shared_data / "minari" / "cartpole" / "replay-v0", tmp_path / "store")
    lines = []
    again = import_into(export_dataset(store, tmp_path / "out", "lerobot", message=lines.append), tmp_path / "again")
    cut = sum(not each.terminated for each in store.episodes)
    assert again.step_count == store.step_count and again.transition_count == store.transition_count - cut
    assert lines[1] == (
        f"LeRobot keeps no final observations: those of 104 episodes are left out, "
        f"and with them the last transition of {cut} truncated ones"
    )
    assert again.schema.action.n == 2 and [each.terminated for each in again.episodes] == [each.terminated for each in store.episodes]
