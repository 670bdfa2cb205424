"""Splitting, copying and joining stores, datasets from flat arrays, metadata of episodes, and a store's description."""

from __future__ import annotations

import numpy as np
import pytest
from store_cases import check_numbered, same_episode, write
from store_faults import Disk
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore, Field, MDPDataset, Schema, check, concat, copy, train_test_split
from offrl_store.errors import DiskFull, InvalidEpisode, InvalidInput, InvalidSchema, StoreExists, StoreLocked
from offrl_store.meta import META_FILE


def numbered(path, numbers):
    return write(path, SIMPLE, [numbered_episode(i) for i in numbers])


# --- Splits, copies, joins ------------------------------------------------------------------------------------------------------------


def test_a_split_is_by_episode_and_the_same_for_the_same_seed(tmp_path):
    store = numbered(tmp_path / "s", range(20))
    train, test = train_test_split(store, 0.25, seed=3)
    assert (len(train), len(test)) == (15, 5)
    assert sorted([*train.numbers, *test.numbers]) == list(range(20))
    assert same_episode(test[2], numbered_episode(int(test.numbers[2])))
    assert np.array_equal(train_test_split(store, 0.25, seed=3)[1].numbers, test.numbers)
    assert not np.array_equal(train_test_split(store, 0.25, seed=4)[1].numbers, test.numbers)
    rows = store.transitions(256, 0, episodes=test, extra=("row",)).sample().extra["row"]
    assert set(rows // 1000) <= set(test.numbers.tolist())
    assert [len(part) for part in train_test_split(train, 0.5)] == [7, 8]


@pytest.mark.parametrize("share", [0, 1, -0.1, "half"])
def test_an_invalid_share_is_refused(tmp_path, share):
    with pytest.raises(InvalidInput, match="share"):
        train_test_split(numbered(tmp_path / "s", range(3)), share)


def test_one_episode_cannot_be_split(tmp_path):
    with pytest.raises(InvalidInput, match="1 episodes"):
        train_test_split(numbered(tmp_path / "s", range(1)))


def test_a_copy_and_a_join_hold_the_episodes_and_their_metadata(tmp_path):
    first, second = numbered(tmp_path / "a", range(4)), numbered(tmp_path / "b", range(4, 6))
    with second.writer() as writer:
        writer.append(numbered_episode(6), metadata={"map": "x"})
    joined = concat(tmp_path / "j", [first, second])
    assert len(joined) == 7
    check_numbered(joined)
    assert [joined.episode_metadata(i) for i in (5, 6)] == [{}, {"map": "x"}]
    assert joined.snapshot() == copy(joined, tmp_path / "c").snapshot()
    part = copy(joined, tmp_path / "p", episodes=[6, 2], limit_transitions=1000)
    assert [same_episode(part.episodes[i], numbered_episode(number)) for i, number in enumerate((6, 2))] == [True, True]
    assert (part.limit, part.episode_metadata(0)) == ({"transitions": 1000}, {"map": "x"})
    assert check(part.path) == []


def test_a_join_that_fails_leaves_nothing_behind(tmp_path):
    store = numbered(tmp_path / "a", range(2))
    other = EpisodeStore.create(tmp_path / "b", Schema(Field("float32", (3,)), Field("float32", (1,))))
    with pytest.raises(InvalidSchema, match="other fields"):
        concat(tmp_path / "j", [store, other])
    with pytest.raises(InvalidInput):
        concat(tmp_path / "j", [])
    with pytest.raises(InvalidInput):
        copy(store, tmp_path / "j", episodes=[2])
    with pytest.raises(DiskFull), Disk(3, "once"):
        concat(tmp_path / "j", [store])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(StoreExists):
        copy(store, other.path)


def test_a_store_can_be_removed_unless_a_writer_has_it(tmp_path):
    store = numbered(tmp_path / "s", range(2))
    with store.writer(), pytest.raises(StoreLocked):
        store.remove()
    store.remove()
    assert not store.path.exists()


# --- Flat arrays ------------------------------------------------------------------------------------------------------------------------


def flat(count=10):
    observations, actions = np.arange(count * 2, dtype="f4").reshape(count, 2), np.linspace(-1, 1, count)[:, None].astype("f4")
    return observations, actions, np.arange(count, dtype="f4")


def test_flat_arrays_are_cut_at_terminals_and_timeouts_and_dropping_the_tail_is_reported():
    observations, actions, rewards = flat()
    terminals, timeouts = np.zeros(10), np.zeros(10)
    terminals[3], timeouts[6] = 1, 1
    with pytest.warns(UserWarning, match="the last 3 of 10 rows"):
        store = MDPDataset(observations, actions, rewards, terminals, timeouts)
    assert store.episode_table["steps"].tolist() == [4, 3]
    assert [episode.terminated for episode in store.episodes] == [True, False]
    assert store.transition_count == 4 + 2  # the last of a truncated episode has no next observation
    assert store.metadata["dropped_rows"] == 3
    assert store.episodes[1].observation.tolist() == observations[4:7].tolist()
    assert store.returns.tolist() == [6, 15]
    assert MDPDataset(observations, actions, rewards, terminals, timeouts, tail="truncate").episode_table["steps"].tolist() == [4, 3, 3]
    with pytest.raises(InvalidEpisode, match="the last 3 rows"):
        MDPDataset(observations, actions, rewards, terminals, timeouts, tail="error")
    path = store.path
    assert path.exists()
    del store
    assert not path.exists()


def test_episode_terminals_are_an_older_form_of_the_same(tmp_path):
    observations, actions, rewards = flat()
    terminals, timeouts, ends = np.zeros(10), np.zeros(10), np.zeros(10)
    terminals[3] = ends[3] = timeouts[9] = ends[9] = 1
    store = MDPDataset(observations, actions, rewards, terminals, episode_terminals=ends, path=tmp_path / "s")
    assert store.snapshot() == MDPDataset(observations, actions, rewards, terminals, timeouts).snapshot()
    assert check(tmp_path / "s") == []
    with pytest.raises(InvalidInput, match="both"):
        MDPDataset(observations, actions, rewards, terminals, timeouts, episode_terminals=ends)


@pytest.mark.parametrize(
    ("actions", "flag", "found"),
    [
        (np.arange(10) % 3, None, 3),
        ((np.arange(10) % 3).astype("f4")[:, None], None, 3),
        (np.linspace(0, 1, 10), None, None),
        (np.arange(10.0), False, None),
        (np.arange(10) % 4, False, None),
    ],
)
def test_the_kind_of_action_is_inferred_or_declared(actions, flag, found):
    observations, _, rewards = flat()
    store = MDPDataset(observations, actions, rewards, np.eye(10)[9], discrete_action=flag)
    assert store.schema.action.discrete == (found is not None)
    if found:
        assert (store.schema.action.n, store.schema.action.shape) == (found, ())
    else:
        assert store.schema.action.shape == (1,)


def test_pixels_stay_bytes_and_wide_floats_stay_wide():
    _, actions, rewards = flat()
    pixels = MDPDataset(np.zeros((10, 1, 4, 4), np.uint8), actions, rewards, np.eye(10)[9])
    assert pixels.schema.observation == Field("uint8", (1, 4, 4))
    assert MDPDataset(np.zeros((10, 2)), actions, rewards, np.eye(10)[9]).schema.observation.dtype == np.float64


@pytest.mark.parametrize(
    "change",
    [
        {"observations": np.zeros((9, 2))},
        {"actions": np.full((10, 1), np.nan)},
        {"timeouts": np.zeros(3)},
        {"discrete_action": True},
        {"tail": "keep"},
        {"terminals": np.zeros(4)},
    ],
)
def test_flat_arrays_that_do_not_fit_are_refused(tmp_path, change):
    observations, actions, rewards = flat()
    arguments = {"observations": observations, "actions": actions, "rewards": rewards, "terminals": np.eye(10)[9], **change}
    with pytest.raises(InvalidInput):
        MDPDataset(**arguments, path=tmp_path / "s")
    assert not (tmp_path / "s").exists()


# --- Metadata of episodes -----------------------------------------------------------------------------------------------------------------


def test_metadata_is_stored_with_its_episode_and_dropped_with_an_unfinished_one(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer() as writer:
        writer.append(numbered_episode(0), metadata={"seed": 5, "name": "ä\nb"})
        writer.append(numbered_episode(1))
        writer.begin(np.zeros(3, np.float32))
        writer.step(1, 0.5, np.ones(3, np.float32), extra={"row": 1})
        writer.end(terminated=True, metadata={"seed": 6})
    assert [store.episode_metadata(i) for i in range(3)] == [{"seed": 5, "name": "ä\nb"}, {}, {"seed": 6}]
    writer = store.writer()
    writer.append(numbered_episode(3), metadata={"seed": 7})
    writer._meta.write()  # dies before the record
    writer._release()
    with store.writer() as writer:
        with pytest.raises(InvalidInput, match="JSON"):
            writer.append(numbered_episode(3), metadata={"seed": float("nan")})
        writer.append(numbered_episode(3))
    assert len(store) == 4
    assert [store.episode_metadata(i) for i in (2, 3)] == [{"seed": 6}, {}]
    with pytest.raises(InvalidInput):
        store.episode_metadata(4)
    assert check(store.path) == []


def test_metadata_goes_with_episodes_that_a_failed_sync_lost(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer() as writer:
        writer.append(numbered_episode(0), metadata={"number": 0})
        with Disk(1, "once", names=["fdatasync"]), pytest.raises(DiskFull):
            writer.commit()
        writer.append(numbered_episode(2))
    assert (len(store), store.episode_metadata(0)) == (1, {})


@pytest.mark.parametrize("failure", ["kill", "power", "full", "once"])
def test_a_death_at_every_system_call_mixes_up_no_metadata(tmp_path, failure):
    at, reached = 0, True
    while reached:
        at += 1
        store = EpisodeStore.create(tmp_path / str(at), SIMPLE)
        acknowledged = 0
        try:
            with Disk(at, failure, seed=at) as disk, store.writer() as writer:
                for number in range(6):
                    writer.append(numbered_episode(number), metadata={"number": number} if number % 2 else None)
                    if number % 3 == 2:
                        acknowledged = writer.commit().count
        except DiskFull:
            pass
        reached = disk.reached
        opened = EpisodeStore.open(store.path)
        assert len(opened) >= acknowledged
        count = len(opened)
        with opened.writer() as writer:
            writer.append(numbered_episode(count))
        for i in range(count):
            number = int(opened.episodes[i].extra["row"][0]) // 1000
            assert opened.episode_metadata(i) == ({"number": number} if number % 2 else {})
        assert opened.episode_metadata(count) == {}
        assert check(store.path) == []
    assert (store.path / META_FILE).exists() and at > 15


def test_a_store_describes_its_content(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=900)
    assert "episodes=0" in repr(store) and "limit_transitions=900" in repr(store)
    with store.writer() as writer:
        writer.append(numbered_episode(0))
    assert "episodes=1" in repr(store) and f"returns={numbered_episode(0).ret:.6g}.." in repr(store)
