"""Bounded stores: the oldest episodes go, their space goes back, and no reader is handed a row of a hole."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from store_cases import same_episode
from store_faults import Disk
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema, check, eviction
from offrl_store import format as layout
from offrl_store.errors import DiskFull, InvalidInput, SnapshotEvicted, StoreCorrupt

WIDE = Schema(Field("float32", (256,)), Field("int32", (), 0, 9))


def wide(number, steps=50):
    return Episode(np.full((steps + 1, 256), number, np.float32), [number % 10] * steps, np.full(steps, number, np.float32), True)


def fill(store, numbers, make=wide, **options):
    with store.writer(**options) as writer:
        for number in numbers:
            writer.append(make(number))
            writer.commit()
    return store


def check_kept(store, make=wide):
    """What the store holds are its latest episodes, whole."""
    for i, episode in enumerate(store.episodes):
        assert same_episode(episode, make(store.first + i)), i


def disk_bytes(store):
    return sum(os.stat(layout.column_path(store.path, column.name)).st_blocks * 512 for column in store.schema.columns)


def test_the_oldest_episodes_go_and_their_space_goes_back(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=520), range(60))
    assert (store.first, len(store), store.transition_count) == (50, 10, 500)
    check_kept(store)
    assert check(store.path) == []
    if eviction._fallocate() is not None:
        assert disk_bytes(store) < 2 * 520 * WIDE.row_bytes
    assert layout.column_path(store.path, "observation").stat().st_size == 60 * 51 * 1024
    opened = EpisodeStore.open(store.path)
    assert (opened.limit, opened.first, len(opened)) == ({"transitions": 520}, 50, 10)
    fill(opened, range(60, 63))
    assert (opened.first, len(opened)) == (53, 10)
    check_kept(opened)
    assert set(opened.transitions(64, 0).sample().observation[:, 0].astype(int)) <= set(range(53, 63))


def test_a_limit_in_bytes_counts_rows_and_records(tmp_path):
    size = 51 * WIDE.row_bytes + 64
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_bytes=3 * size), range(9))
    assert (store.first, len(store)) == (6, 3)
    assert store.nbytes <= 3 * size + 64
    fill(store, [9], lambda number: wide(number, 400))
    assert (store.first, len(store)) == (9, 1)  # the newest stays, however large


def test_many_episodes_go_at_once(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=100)
    with store.writer() as writer:
        for number in range(2000):
            writer.append(numbered_episode(number))
    assert 60 < store.transition_count <= 100
    assert store.first + len(store) == 2000
    check_kept(store, numbered_episode)


@pytest.mark.parametrize("limits", [{"limit_transitions": 0}, {"limit_bytes": -1}, {"limit_transitions": 1.5},
                                    {"limit_transitions": 5, "limit_bytes": 5}])
def test_a_limit_that_makes_no_sense_is_refused(tmp_path, limits):
    with pytest.raises(InvalidInput, match="limit_"):
        EpisodeStore.create(tmp_path / "s", WIDE, **limits)


def test_a_store_without_a_limit_is_never_evicted(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE), range(5))
    reader = EpisodeStore.open(store.path, store.snapshot())
    fill(store, range(5, 9))
    reader.check_alive()
    assert (store.limit, store.first, reader.refresh()) == ({}, 0, 0)


def test_a_reader_whose_episodes_went_is_told(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(10))
    snapshot = store.snapshot()
    pinned, loose = EpisodeStore.open(store.path, snapshot), EpisodeStore.open(store.path)
    pinned.check_alive()
    fill(EpisodeStore.open(store.path), range(10, 15))
    for attempt in (pinned.refresh, pinned.check_alive, loose.check_alive, lambda: pinned.episodes[4],
                    lambda: EpisodeStore.open(store.path, snapshot)):
        with pytest.raises(SnapshotEvicted, match=r"episodes \d to 4") as caught:
            attempt()
        assert (caught.value.code, isinstance(caught.value, StoreCorrupt)) == ("snapshot_evicted", True)
    assert pinned.episodes[5].ret == wide(5).ret  # those that are left can be read
    assert loose.refresh() == 5
    assert (loose.first, len(loose)) == (5, 10)
    loose.check_alive()
    with pytest.raises(SnapshotEvicted):
        loose.check_alive(4)  # as a sampler made before the refresh asks
    check_kept(loose)


def test_a_snapshot_that_is_kept_stays_until_it_is_let_go(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(12))
    snapshot = store.snapshot()
    assert store.first == 2
    pinned = EpisodeStore.open(store.path, snapshot)
    fill(store, range(12, 30), keep=[snapshot, str(store.snapshot())])
    assert (store.first, len(store)) == (2, 28)
    assert pinned.refresh() == 0
    check_kept(pinned)
    store.writer().close()  # without keeping it
    assert (store.first, len(store)) == (20, 10)
    with pytest.raises(SnapshotEvicted):
        pinned.refresh()
    with pytest.raises(SnapshotEvicted, match="begins at episode 2"):
        store.writer(keep=[snapshot])
    assert check(store.path) == []


def test_a_snapshot_of_a_bounded_store_is_of_the_episodes_that_were_there(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(15))
    snapshot = str(store.snapshot())
    assert snapshot.startswith("5:15:")
    opened = EpisodeStore.open(store.path, snapshot)
    assert (opened.first, len(opened), str(opened.snapshot())) == (5, 10, snapshot)
    assert opened.transitions(32, 1).sample().index.tolist() == store.transitions(32, 1).sample().index.tolist()


@pytest.mark.parametrize("failure", ["kill", "power", "full"])
def test_a_death_at_every_system_call_of_an_eviction_loses_nothing_that_is_kept(tmp_path, failure):
    base = EpisodeStore.create(tmp_path / "base", SIMPLE, limit_transitions=90)
    with base.writer() as writer:
        for number in range(8):
            writer.append(numbered_episode(number))
    at, reached = 0, True
    while reached:
        at += 1
        path = tmp_path / str(at)
        shutil.copytree(base.path, path)
        acknowledged = base.snapshot()
        try:
            with Disk(at, failure, seed=at) as disk, EpisodeStore.open(path).writer() as writer:
                for number in range(8, 14):
                    writer.append(numbered_episode(number))
                    if number % 2:
                        acknowledged = writer.commit()
        except DiskFull:
            assert failure == "full"
        reached = disk.reached
        store = EpisodeStore.open(path)
        snapshot = store.snapshot()
        assert snapshot.count >= acknowledged.count
        held = sum(numbered_episode(i).steps for i in range(snapshot.first, snapshot.count))
        assert held > 90 - 40 and snapshot.first < snapshot.count  # no more was evicted than the newest episodes ask for
        check_kept(store, numbered_episode)
        with store.writer() as writer:
            writer.append(numbered_episode(snapshot.count))
        assert store.transition_count <= 90
        check_kept(store, numbered_episode)
        assert check(path) == []
    assert at > 20


def test_readers_are_told_before_the_first_row_goes(tmp_path, monkeypatch):
    store, holes, real = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), 0, eviction._punch

    def punch(descriptor, offset, length):
        nonlocal holes
        file = store.path / layout.LOG_FILE
        with open(file, "rb") as log:
            first = layout.read_first(log.fileno(), file)
            row = layout.read_log(log.fileno(), file, WIDE).table["first_row"][first]
        column = os.readlink(f"/proc/self/fd/{descriptor}")
        assert offset + length <= row * (1024 if "observation" in column else 4)
        holes += 1
        return real(descriptor, offset, length)

    monkeypatch.setattr(eviction, "_punch", punch)
    fill(store, range(30))
    assert holes >= 20


def test_holes_that_a_dead_writer_did_not_make_are_made_by_the_next(tmp_path, monkeypatch):
    store = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500)
    with monkeypatch.context() as patch:
        patch.setattr(eviction, "_punch", lambda *_: True)  # dies after the header
        fill(store, range(40))
    if eviction._fallocate() is None:
        pytest.skip("this system punches no holes")
    before = disk_bytes(store)
    store.writer().close()
    assert disk_bytes(store) < before / 2
    check_kept(store)


def test_a_reader_never_sees_a_wrong_row_while_a_writer_evicts(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(10))
    reader, chance, told = EpisodeStore.open(store.path), random.Random(0), 0
    with store.writer() as writer:
        for number in range(10, 200):
            writer.append(wide(number))
            writer.commit()
            for _ in range(3):
                try:
                    i = chance.randrange(len(reader))
                    expected = reader.first + i
                    assert (reader.episodes[i].observation == expected).all()
                except SnapshotEvicted:
                    told += 1
                    reader.refresh()
    assert told > 5


def test_a_file_system_without_holes_keeps_the_bytes_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(eviction, "_fallocate", lambda: None)
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(20))
    assert (store.first, len(store)) == (10, 10)
    check_kept(store)
    assert check(store.path) == []


def test_the_example_reader_passes_over_what_is_gone(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(15))
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        from read_store import read_store
    finally:
        sys.path.pop(0)
    assert [float(columns["reward"][0]) for columns, _ in read_store(store.path)] == list(range(5, 15))


def test_a_damaged_limit_is_an_error(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500)
    file = store.path / layout.SCHEMA_FILE
    file.write_bytes(layout.dump_schema(WIDE, {"seconds": 5}))
    with pytest.raises(StoreCorrupt, match=re.escape("limit")):
        EpisodeStore.open(store.path)
