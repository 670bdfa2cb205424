"""TorchRL's dumped replay buffers: a real one, rings and one-hot actions, folders of ours, and (where installed) TorchRL's own reading."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.importers import export_dataset, import_into, open_source

PEER = Path(__file__).resolve().parents[2] / ".venv-store-peers" / "bin" / "python"


@pytest.fixture
def pendulum(shared_data, tmp_path):
    """A copy of the folder that TorchRL dumped, to be changed."""
    shutil.copytree(shared_data / "formats" / "torchrl-pendulum", tmp_path / "pendulum", copy_function=shutil.copyfile)
    for each in (tmp_path / "pendulum").rglob("*"):
        each.chmod(0o755)
    return tmp_path / "pendulum"


def test_the_real_folder_equals_the_first_episodes_of_the_flat_file(shared_data, tmp_path):
    """M13: 2,200 steps that TorchRL 0.14 dumped."""
    store = import_into(shared_data / "formats" / "torchrl-pendulum", tmp_path / "store")
    assert (len(store), store.transition_count) == (11, 2200)
    with open_source(shared_data / "pendulum-replay.hdf5") as flat:
        for ours, theirs in zip(store.episodes, flat.episodes, strict=False):
            np.testing.assert_array_equal(ours.observation[:-1], theirs.observation)
            np.testing.assert_array_equal(ours.action, theirs.action)
            np.testing.assert_array_equal(ours.reward, theirs.reward)
            assert not ours.terminated and not ours.final_missing


def test_a_ring_that_went_around_is_read_in_the_order_of_writing(pendulum, tmp_path):
    (pendulum / "writer" / "metadata.json").write_text(json.dumps({"cursor": 500, "write_count": 2700}))
    with open_source(pendulum) as source:
        episodes = list(source.episodes)
    rows = np.fromfile(pendulum / "storage" / "observation.memmap", np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(episodes[0].observation[0], rows[500])
    np.testing.assert_array_equal(np.concatenate([each.observation[:-1] for each in episodes]), np.concatenate([rows[500:], rows[:500]]))
    assert any("ring that has wrapped around" in line for line in source.messages)


def test_a_buffer_that_is_not_full_ends_where_it_is_filled(pendulum):
    (pendulum / "storage" / "storage_metadata.json").write_text(json.dumps({"metadata": {}, "is_pytree": False, "len": 450}))
    with open_source(pendulum / "storage") as source:  # the folder of the storage alone is taken, too
        assert [each.steps for each in source.episodes] == [200, 200, 50]


def set_action(folder, rows):
    rows.tofile(folder / "storage" / "action.memmap")
    meta = json.loads((folder / "storage" / "meta.json").read_text())
    meta["action"] |= {"shape": list(rows.shape), "dtype": f"torch.{rows.dtype.name}"}
    (folder / "storage" / "meta.json").write_text(json.dumps(meta))


def test_one_hot_actions_become_choices(pendulum):
    chosen = np.arange(2200) % 3
    set_action(pendulum, np.eye(3, dtype=np.int64)[chosen])
    with open_source(pendulum) as source:
        assert source.schema.action.n == 3
        np.testing.assert_array_equal(np.concatenate([each.action for each in source.episodes]), chosen)
    several = np.eye(3, dtype=np.int64)[chosen]
    several[1234] = [1, 1, 0]
    set_action(pendulum, several)
    with pytest.raises(InvalidInput, match=r"action\[1234\] is \[1, 1, 0\], which is not a one-hot choice"):
        open_source(pendulum)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("storage/next/reward.memmap", b"short", "next/reward.memmap has 5 bytes; expected 8800"),
        ("storage/meta.json", b"{", "meta.json is not JSON"),
        ("storage/storage_metadata.json", b'{"len": 9000}', "has the length 9000 for 2200 rows"),
        ("storage/meta.json", b'{"shape": [20, 11, 10]}', r"the storage has the shape \[20, 11, 10\]"),
        ("storage/meta.json", b'{"shape": [2200]}', "holds no 'action'"),
    ],
)
def test_damaged_folders_are_one_line(pendulum, file, content, part):
    (pendulum / file).write_bytes(content)
    with pytest.raises(InvalidInput, match=part):
        open_source(pendulum)


@pytest.fixture(params=[False, True])
def made(request, tmp_path):
    discrete = request.param
    action = Field("int64", low=0, high=4) if discrete else Field("float32", (2,), low=-2, high=2)
    fields = {"arm": Field("float64", (3,)), "camera": Field("uint8", (3, 4, 4))} if discrete else Field("float32", (3,))
    store = EpisodeStore.create(tmp_path / "made", Schema(fields, action, extra={"log_prob": Field("float32")}))
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for number, steps in enumerate((4, 1, 6, 3)):
            arm = rng.normal(size=(steps + 1, 3))
            camera = rng.integers(0, 256, (steps + 1, 3, 4, 4), np.uint8)
            observation = {"arm": arm, "camera": camera} if discrete else arm.astype(np.float32)
            actions = rng.integers(0, 5, steps) if discrete else rng.uniform(-2, 2, (steps, 2)).astype(np.float32)
            writer.append(
                Episode(
                    observation,
                    actions,
                    rng.normal(size=steps).astype(np.float32),
                    number % 2 == 0,
                    {"log_prob": rng.normal(size=steps).astype(np.float32)},
                )
            )
    return store


def test_a_folder_of_ours_is_read_back(made, tmp_path, same_episodes):
    lines = []
    path = export_dataset(made, tmp_path / "out", "torchrl", message=lines.append)
    same_episodes(import_into(path, tmp_path / "again").episodes, made.episodes)
    assert lines == []


def test_steps_without_their_next_observation_are_left_out_and_said(tmp_path):
    store = EpisodeStore.create(tmp_path / "made", Schema(Field("float32", (1,)), Field("float32", (1,))))
    with store.writer() as writer:
        for terminated in (True, False):
            writer.append(Episode([[1.0], [2.0]], [[0.0], [0.0]], [0.0, 1.0], terminated))
    lines = []
    again = import_into(export_dataset(store, tmp_path / "out", "torchrl", message=lines.append), tmp_path / "again")
    assert [(each.steps, each.terminated) for each in again.episodes] == [(2, True), (1, False)]
    assert lines == [
        "1 terminated episodes lack their final observation: the last one is repeated there",
        "1 truncated episodes lack their final observation: they end one step earlier",
    ]


LOADS = """
import sys, numpy as np, torch
from torchrl.data import LazyMemmapStorage, ReplayBuffer
buffer = ReplayBuffer(storage=LazyMemmapStorage(14))  # it wants the size of what it loads
buffer.loads(sys.argv[1])
rows = buffer[:]
flat = {"/".join(k) if isinstance(k, tuple) else k: v.numpy() for k, v in rows.items(True, True)}
np.savez(sys.argv[2], **flat)
larger = ReplayBuffer(storage=LazyMemmapStorage(100))
larger.extend(rows)
larger.extend(rows[:2])
larger.dumps(sys.argv[3])
"""


@pytest.mark.parametrize("made", [True], indirect=True)
def test_torchrl_itself_loads_the_folder_and_we_read_what_it_dumps(made, tmp_path):
    """M13: every leaf as TorchRL sees it; then a buffer larger than its content, dumped by TorchRL."""
    if not PEER.exists():
        pytest.skip("needs TorchRL in .venv-store-peers, which `make bench-store` makes")
    path = export_dataset(made, tmp_path / "out", "torchrl")
    command = [PEER, "-c", LOADS, path, tmp_path / "rows.npz", tmp_path / "dumped"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named 'torchrl'" in done.stderr:
        pytest.skip("needs TorchRL in .venv-store-peers, which `make bench-store` makes")
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "rows.npz") as rows:
        np.testing.assert_array_equal(rows["action"], np.concatenate([each.action for each in made.episodes]))
        np.testing.assert_array_equal(rows["next/reward"][:, 0], np.concatenate([each.reward for each in made.episodes]))
        np.testing.assert_array_equal(rows["log_prob"], np.concatenate([each.extra["log_prob"] for each in made.episodes]))
        assert np.flatnonzero(rows["next/terminated"]).tolist() == [3, 10] and np.flatnonzero(rows["next/truncated"]).tolist() == [4, 13]
        assert rows["collector/traj_ids"].tolist() == [0] * 4 + [1] + [2] * 6 + [3] * 3
    with open_source(tmp_path / "dumped") as source:
        steps = [each.steps for each in source.episodes]
    assert steps == [4, 1, 6, 3, 2]
