"""gen_dgrl's Procgen episodes: real files of its own writer, which episodes its loader takes, and folders of ours in its form."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from offrl.errors import EmptyStore, InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema, copy
from offrld.importers import export_dataset, import_into, open_source

GRAMMAR = re.compile(r"\d{8}T\d{6}_\d+_\d+_-?\d+_-?\d+\.\d\d\.npz")


@pytest.fixture
def coinrun(shared_data):
    return shared_data / "formats" / "gen-dgrl-coinrun"


def loader(folder, limit, level=None, max_episodes=None):
    """The benchmark's loader, by its rule: the best returns first, whole files until there are more transitions than the limit, of which
    this number is used; (level, return, steps used) of each."""
    collected = sorted((name.removesuffix(".npz").split("_") for name in os.listdir(folder)), key=lambda parts: int(parts[1]))
    files = sorted(collected, key=lambda parts: -float(parts[4]))  # files of one return: in any order there, in this one here
    chosen, count = [], 0
    for parts in files:
        if level is not None and int(parts[3]) != level:
            continue
        if count > limit or (max_episodes is not None and len(chosen) == max_episodes):
            break
        chosen.append([int(parts[3]), float(parts[4]), int(parts[2])])
        count += int(parts[2])
    over = count - limit
    while over > 0 and chosen:
        cut = min(over, chosen[-1][2])
        chosen[-1][2] -= cut
        over -= cut
        if not chosen[-1][2]:
            chosen.pop()
    return [tuple(each) for each in chosen]


def taken(store):
    return [(store.episode_metadata(i)["level_seed"], store.returns[i], store.episodes[i].steps) for i in range(len(store))]


def test_the_real_episodes_come_with_their_level_and_without_the_next_episode_s_frame(coinrun, tmp_path):
    """O17, O18: eight files of gen_dgrl's own writer; pixels are bytes again, the last row of each file is left out."""
    store = import_into(coinrun, tmp_path / "store")
    assert (len(store), store.step_count, store.transition_count) == (8, 221, 221)
    assert store.schema.observation == Field("uint8", (3, 64, 64)) and store.schema.action == Field("int64", (), low=0, high=14)
    for number, name in enumerate(sorted(os.listdir(coinrun), key=lambda name: int(name.split("_")[1]))):
        time, index, steps, level, ret = name.removesuffix(".npz").split("_")
        episode = store.episodes[number]
        with np.load(coinrun / name) as arrays:
            np.testing.assert_array_equal(episode.observation, arrays["observations"][:-1])
            np.testing.assert_array_equal(episode.action, arrays["actions"][:, 0])
            np.testing.assert_array_equal(episode.reward, arrays["rewards"][:, 0])
        assert (episode.steps, episode.ret) == (int(steps), float(ret)) and episode.terminated and episode.final_missing
        assert store.episode_metadata(number) == {"time": time, "index": int(index), "level_seed": int(level)}
    batch = store.transitions(64, seed=0).sample()  # a next frame is never one of another episode
    assert (batch.next_observation[batch.terminal == 1] == 0).all()


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"capacity": 100}, 100),
        ({"capacity": 200, "percentile": 0.5}, 100),
        ({"percentile": 0.25}, 55),
        ({"capacity": 33}, 33),
        ({"capacity": 1000}, 1000),
        ({"capacity": 500, "level_seed": 113}, 500),
        ({"capacity": 150, "max_episodes": 2}, 150),
    ],
)
def test_capacity_percentile_and_level_take_what_the_benchmark_s_loader_takes(coinrun, tmp_path, options, limit):
    """O20: a share of the capacity, best episodes first, the exact number of transitions."""
    store = import_into(coinrun, tmp_path / "store", options=options)
    expected = loader(coinrun, limit, options.get("level_seed"), options.get("max_episodes"))
    assert [(level, steps) for level, _, steps in taken(store)] == [(level, steps) for level, _, steps in expected]
    assert store.transition_count == min(limit, sum(steps for *_, steps in expected))


def test_a_cut_episode_is_truncated_and_knows_its_next_frame(coinrun, tmp_path):
    store = import_into(coinrun, tmp_path / "store", options={"capacity": 30})
    last = store.episodes[len(store) - 1]
    assert not last.terminated and not last.final_missing and store.transition_count == 30


def test_episodes_may_be_counted_instead(coinrun, tmp_path):
    store = import_into(coinrun, tmp_path / "store", options={"capacity": 4, "capacity_type": "episodes", "percentile": 0.5})
    assert store.returns.tolist() == [10, 10] and all(each.terminated for each in store.episodes)


def test_sequences_are_windows_of_the_store(coinrun, tmp_path):
    """O20: returns-to-go are undiscounted and reach beyond the window; short episodes are padded under a mask."""
    store = import_into(coinrun, tmp_path / "store")
    windows = store.windows(batch_size=32, length=20, seed=0).sample()
    assert windows.observation.shape == (32, 20, 3, 64, 64)
    finals = windows.returns_to_go[:, -1].reshape(32)
    assert set(np.unique(finals).tolist()) <= {0.0, 10.0}
    assert (windows.mask.sum(1) >= 1).all() and (windows.mask[:, -1] == 1).all()


def test_a_folder_of_ours_is_read_back_and_has_the_published_names(coinrun, tmp_path, same_episodes):
    """O17, O18: the same names and the same arrays but for the frame behind the end."""
    store = import_into(coinrun, tmp_path / "store")
    lines = []
    path = export_dataset(store, tmp_path / "out", "gen_dgrl", message=lines.append)
    assert sorted(os.listdir(path)) == sorted(os.listdir(coinrun)) and lines == []
    for name in os.listdir(path):
        with np.load(path / name) as ours, np.load(coinrun / name) as theirs:
            assert ours.files == theirs.files
            for key in theirs.files:
                assert (ours[key].dtype, ours[key].shape) == (theirs[key].dtype, theirs[key].shape)
                np.testing.assert_array_equal(ours[key][: len(ours["dones"])], theirs[key][: len(theirs["dones"])])
    again = import_into(path, tmp_path / "again")
    same_episodes(again.episodes, store.episodes)
    assert taken(again) == taken(store)


def test_what_the_folder_cannot_hold_is_said_or_refused(tmp_path):
    """Episodes that were cut are no part of gen_dgrl's sets: it writes completed ones."""
    schema = Schema(Field("uint8", (3, 8, 8)), Field("int64", low=0, high=3), extra={"logp": Field("float32")})
    store = EpisodeStore.create(tmp_path / "made", schema)
    with store.writer() as writer:
        for number in range(4):
            observation = np.full((2 + (number != 3), 3, 8, 8), number, np.uint8)
            writer.append(Episode(observation, [0, 1], [1.0, number], terminated=number != 1, extra={"logp": [0.0, 0.0]}))
    lines = []
    path = export_dataset(store, tmp_path / "out", "gen_dgrl", message=lines.append)
    assert all(GRAMMAR.fullmatch(name) for name in os.listdir(path))
    assert sorted(name.split("_", 1)[1] for name in os.listdir(path)) == ["0_2_-1_1.00.npz", "2_2_-1_3.00.npz", "3_2_-1_4.00.npz"]
    assert lines == [
        "1 cut episodes are left out: gen_dgrl's sets hold completed ones",
        "the final observations of 2 episodes are left out: the format has no place for them",
        "not exported: logp (gen_dgrl has no place for them)",
    ]
    smaller = export_dataset(store, tmp_path / "smaller", "gen_dgrl", compress=True)
    for one, other in zip(sorted(path.iterdir()), sorted(smaller.iterdir()), strict=True):
        with np.load(one) as ours, np.load(other) as theirs:
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours.files)
    cut = copy(store, tmp_path / "cut", store.select(terminated=False))
    with pytest.raises(EmptyStore, match="all 1 episodes were cut"):
        export_dataset(cut, tmp_path / "no", "gen_dgrl")
    assert not (tmp_path / "no").exists()
    vectors = EpisodeStore.create(tmp_path / "vectors", Schema(Field("float32", (3,)), Field("int64", low=0, high=3)))
    with vectors.writer() as writer:
        writer.append(Episode(np.zeros((3, 3), np.float32), [0, 1], [0.0, 0.0]))
    with pytest.raises(InvalidInput, match="the observations are"):
        export_dataset(vectors, tmp_path / "no", "gen_dgrl")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"percentile": 1.5}, "percentile is 1.5"),
        ({"capacity_type": "x"}, "capacity_type is 'x'"),
        ({"level_seed": "a"}, "level_seed is 'a'"),
        ({"capacities": 3}, "no option 'capacities'"),
    ],
)
def test_options_that_cannot_be(coinrun, options, part):
    with pytest.raises(InvalidInput, match=part):
        open_source(coinrun, options=options)


def test_a_level_that_is_not_there_names_those_that_are(coinrun):
    with pytest.raises(EmptyStore, match="no episode of level 7") as error:
        open_source(coinrun, options={"level_seed": 7})
    assert "113" in error.value.hint


def test_files_that_are_damaged_or_renamed_are_named_and_can_be_left_out(coinrun, tmp_path):
    folder = tmp_path / "coinrun"
    shutil.copytree(coinrun, folder)
    folder.chmod(0o755)
    names = sorted(os.listdir(folder), key=lambda name: int(name.split("_")[1]))
    for name in names[:4]:
        (folder / name).chmod(0o644)
    whole = (folder / names[0]).read_bytes()
    (folder / names[0]).write_bytes(whole[: len(whole) // 2])
    (folder / names[1]).rename(folder / names[1].replace("_22_", "_21_"))
    with np.load(folder / names[2]) as arrays:
        broken = dict(arrays)
    broken["observations"][3, 0, 0, 0] = 0.5
    np.savez_compressed(folder / names[2], **broken)
    np.savez(folder / names[3], obs=np.zeros(3), actions=np.zeros(3), rewards=np.zeros(3), dones=np.zeros(3))
    (folder / "notes.npz").write_bytes(b"")
    with pytest.raises(InvalidInput, match=f"{re.escape(names[0])} cannot be read"):
        import_into(folder, tmp_path / "store")
    skipped, lines = [], []
    store = import_into(folder, tmp_path / "store", skip_bad=skipped.append, message=lines.append)
    assert len(store) == 4 and [(each.episode, each.row) for each in skipped] == [(0, None), (1, None), (2, 3), (3, None)]
    assert "is named for 21 steps and holds 22" in skipped[1].why and "observations[3, 0, 0, 0] is 0.5" in skipped[2].why
    assert any("not imported, because their names" in line for line in lines) and store.metadata["source"]["game"] == "coinrun"
