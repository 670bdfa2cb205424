"""The Atari replay data: files in the published layout become one store of single frames, whose stacks share its memory."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from offrl.errors import InvalidInput
from offrl_store import Field, FrameStacks, check, to_arrays
from offrld.importers import import_into, open_source

COUNT = 700


def write_epoch(folder, count=COUNT, *, size=84, seed=0):
    """The four files of an epoch, as the bucket has them: one array each, gzipped; episodes of about fifty steps."""
    rng = np.random.default_rng(seed)
    arrays = {
        "observation": rng.integers(0, 255, (count, size, size), np.uint8) & np.uint8(3),  # compresses like real frames
        "action": rng.integers(0, 6, count).astype(np.int32),
        "reward": rng.integers(-1, 8, count).astype(np.float32),
        "terminal": (rng.random(count) < 0.02).astype(np.uint8),
    }
    arrays["terminal"][-1] = 0
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
            np.lib.format.write_array(file, array)
    return arrays


@pytest.fixture(scope="module")
def epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atari") / "Pong" / "1" / "50"
    return folder, write_epoch(folder)


def d4rl_atari_stacks(frames, terminals, k=4):
    """d4rl-atari's list, by its rule: views of k rows once the episode is that long, zero frames in front before that."""
    stacks, t = [], 0
    for i in range(len(frames)):
        t += 1
        if t >= k:
            stacks.append(frames[i - k + 1 : i + 1])
        else:
            stacks.append(np.concatenate([np.zeros((k - t, *frames.shape[1:]), frames.dtype), frames[i - t + 1 : i + 1]]))
        if terminals[i]:
            t = 0
    return stacks


def test_an_epoch_becomes_a_store_of_single_frames(epoch, tmp_path):
    """K05: every frame, action, reward and terminal, channel first; the rewards are not clipped."""
    folder, arrays = epoch
    lines = []
    store = import_into(folder, tmp_path / "store", message=lines.append)
    assert store.schema.observation == Field("uint8", (1, 84, 84)) and store.schema.action == Field("int64", (), low=0, high=5)
    assert store.metadata["env_id"] == "offrld/pong-v0" and store.metadata["bounds"] == "env:offrld/pong-v0"
    assert store.metadata["source"] == {"format": "atari", "file": "50", "game": "Pong", "index": 1, "epoch": 50}
    flat = to_arrays(store)
    assert flat["observations"].shape == (COUNT, 1, 84, 84)
    np.testing.assert_array_equal(flat["observations"][:, 0], arrays["observation"])
    for name in ("action", "reward", "terminal"):
        np.testing.assert_array_equal(flat[f"{name}s"], arrays[name])
    assert flat["timeouts"].nonzero()[0].tolist() == [COUNT - 1]  # the piece after the last game over
    assert any("began before" in line for line in lines) and any("follow no end" in line for line in lines)
    assert check(store.path) == []


def test_the_stacks_are_d4rl_atari_s_and_share_the_store_s_memory(epoch, tmp_path):
    """K06, J13: (4, 84, 84) views; zero frames in front, and copies, in the first three steps of an episode only."""
    folder, arrays = epoch
    store = import_into(folder, tmp_path / "store")
    stacks, column = FrameStacks(store), store.column("observation")
    expected = d4rl_atari_stacks(arrays["observation"], arrays["terminal"])
    assert len(stacks) == COUNT
    copies = 0
    for ours, theirs in zip(stacks, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.shape == (4, 84, 84)
        copies += not np.shares_memory(ours, column)
    assert copies <= 3 * len(store)
    assert len(stacks[10:30:3]) == 7 and np.array_equal(stacks[10:30:3][2], expected[16]) and np.array_equal(stacks[-1], expected[-1])
    batch = store.transitions(64, seed=0, frame_stack=4).sample()
    rows = np.concatenate([first + np.arange(n) for first, n in store.episode_table[["first_row", "steps"]].tolist()])
    for b, row in enumerate(batch.index):
        assert np.array_equal(batch.observation[b], expected[int(np.flatnonzero(rows == row)[0])])


def test_several_epochs_join_and_a_file_border_begins_an_episode(epoch, tmp_path):
    """K14: the frames of the second file are never stacked on those of the first."""
    folder, _ = epoch
    second = write_epoch(tmp_path / "Pong" / "1" / "49", 60, seed=3)
    store = import_into(folder, tmp_path / "store")
    import_into(tmp_path / "Pong" / "1" / "49", store.path, append=True)
    store.refresh()
    assert store.step_count == COUNT + 60
    stack = FrameStacks(store)[COUNT]
    assert not stack[:3].any() and np.array_equal(stack[3], second["observation"][0])


@pytest.mark.parametrize("name", ["observation", "action", "reward", "terminal"])
def test_files_that_are_missing_cut_or_no_gzip_are_named(tmp_path, name):
    folder = tmp_path / "epoch"
    write_epoch(folder, 40)
    file = folder / f"{name}.gz"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:6], b"plain text, and not short at all", b""):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=name):
            import_into(folder, tmp_path / "store", format="atari")
    file.unlink()
    with pytest.raises(InvalidInput, match=f"{name}.gz"):
        open_source(folder, "atari")
    assert not (tmp_path / "store").exists()


def test_frames_of_another_form_are_refused(tmp_path):
    folder = tmp_path / "epoch"
    write_epoch(folder, 40)
    with gzip.open(folder / "observation.gz", "wb") as file:
        np.lib.format.write_array(file, np.zeros((40, 84, 84), np.float32))
    with pytest.raises(InvalidInput, match="float32"):
        open_source(folder)
