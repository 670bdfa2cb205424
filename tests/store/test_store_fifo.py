"""Bounded stores: the oldest episodes are evicted, their space is freed, and no reader ever sees a row of a hole."""

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

from offrl_store import Episode, EpisodeStore, Field, Schema, check, disk, meta
from offrl_store import format as layout
from offrl_store.errors import DiskFull, InvalidInput, SnapshotEvicted, StoreCorrupt

HOLES = sys.platform.startswith("linux")
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
    if HOLES:
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


def test_many_episodes_are_evicted_at_once(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=100)
    with store.writer() as writer:
        for number in range(2000):
            writer.append(numbered_episode(number))
    assert 60 < store.transition_count <= 100
    assert store.first + len(store) == 2000
    check_kept(store, numbered_episode)


@pytest.mark.parametrize(
    "limits", [{"limit_transitions": 0}, {"limit_bytes": -1}, {"limit_transitions": 1.5}, {"limit_transitions": 5, "limit_bytes": 5}]
)
def test_a_limit_that_makes_no_sense_is_refused(tmp_path, limits):
    with pytest.raises(InvalidInput, match="limit_"):
        EpisodeStore.create(tmp_path / "s", WIDE, **limits)


def test_a_store_without_a_limit_is_never_evicted(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE), range(5))
    reader = EpisodeStore.open(store.path, store.snapshot())
    fill(store, range(5, 9))
    reader.check_alive()
    assert (store.limit, store.first, reader.refresh()) == ({}, 0, 0)


def test_a_reader_of_evicted_episodes_gets_an_error(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(10))
    snapshot = store.snapshot()
    pinned, loose = EpisodeStore.open(store.path, snapshot), EpisodeStore.open(store.path)
    pinned.check_alive()
    fill(EpisodeStore.open(store.path), range(10, 15))
    for attempt in (
        pinned.refresh,
        pinned.check_alive,
        loose.check_alive,
        lambda: pinned.episodes[4],
        lambda: EpisodeStore.open(store.path, snapshot),
    ):
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


def test_a_pinned_snapshot_stays_until_it_is_released(tmp_path):
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
    with pytest.raises(SnapshotEvicted, match="starts at episode 2"):
        store.writer(keep=[snapshot])
    assert check(store.path) == []


def test_a_snapshot_of_a_bounded_store_covers_the_episodes_of_its_time(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(15))
    snapshot = str(store.snapshot())
    assert snapshot.startswith("5:15:")
    opened = EpisodeStore.open(store.path, snapshot)
    assert (opened.first, len(opened), str(opened.snapshot())) == (5, 10, snapshot)
    assert opened.transitions(32, 1).sample().index.tolist() == store.transitions(32, 1).sample().index.tolist()


@pytest.mark.parametrize("failure", ["kill", "power", "full"])
def test_a_crash_at_any_system_call_of_an_eviction_loses_no_kept_episode(tmp_path, monkeypatch, failure):
    monkeypatch.setattr(layout, "PAGE", 128)  # holes in the log, and metadata left out, in so small a store
    monkeypatch.setattr(meta, "COMPACT_BYTES", 100)
    base = EpisodeStore.create(tmp_path / "base", SIMPLE, limit_transitions=90)
    with base.writer() as writer:
        for number in range(8):
            writer.append(numbered_episode(number), metadata={"number": number})
    at, reached, given_back = 0, True, 0
    while reached:
        at += 1
        path = tmp_path / str(at)
        shutil.copytree(base.path, path)
        acknowledged = base.snapshot()
        try:
            with Disk(at, failure, seed=at) as faulty, EpisodeStore.open(path).writer() as writer:
                for number in range(8, 14):
                    writer.append(numbered_episode(number), metadata={"number": number})
                    if number % 2:
                        acknowledged = writer.commit()
        except DiskFull:
            assert failure == "full"
        reached = faulty.reached
        store = EpisodeStore.open(path)
        snapshot = store.snapshot()
        assert snapshot.count >= acknowledged.count
        held = sum(numbered_episode(i).steps for i in range(snapshot.first, snapshot.count))
        assert held > 90 - 40 and snapshot.first < snapshot.count  # no more was evicted than the newest episodes ask for
        check_kept(store, numbered_episode)
        assert [store.episode_metadata(i)["number"] for i in range(len(store))] == list(range(snapshot.first, snapshot.count))
        assert str(EpisodeStore.open(path, snapshot).snapshot()) == str(snapshot)
        with store.writer() as writer:
            writer.append(numbered_episode(snapshot.count))
        assert store.transition_count <= 90
        check_kept(store, numbered_episode)
        assert check(path) == []
        assert not (path / meta.NEW_FILE).exists()
        given_back += (path / layout.LOG_FILE).read_bytes()[128:256] == bytes(128)
    assert at > 30
    assert not HOLES or given_back > at / 2


def test_records_and_metadata_of_evicted_episodes_go_and_opening_reads_the_kept_ones_only(tmp_path, monkeypatch):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=200)
    early = None
    with store.writer() as writer:
        for number in range(6000):
            writer.append(numbered_episode(number % 50), metadata={"number": number, "text": "x" * 50})
            if number % 20 == 19:
                writer.commit()
            if number == 2000:
                early = EpisodeStore.open(store.path)
    log = store.path / layout.LOG_FILE
    assert log.stat().st_size == 64 * 6001
    assert (store.path / meta.META_FILE).stat().st_size < 3 * meta.COMPACT_BYTES
    assert len(store._log.table.base) < 1000  # the writer's own store forgets them, too
    if HOLES:
        assert log.stat().st_blocks * 512 <= 4 * 4096
    read, real = [], layout._read
    with monkeypatch.context() as patch:
        patch.setattr(layout, "_read", lambda descriptor, size, offset: read.append(size) or real(descriptor, size, offset))
        opened = EpisodeStore.open(store.path)
    assert sum(read) == 64 * (len(opened) + 1)
    assert (opened.first, len(opened)) == (store.first, len(store)) and opened.first > 5900
    assert [opened.episode_metadata(i)["number"] for i in range(len(opened))] == list(range(opened.first, 6000))
    assert all(same_episode(episode, numbered_episode((opened.first + i) % 50)) for i, episode in enumerate(opened.episodes))
    assert str(opened.snapshot()) == str(store.snapshot())
    assert check(store.path) == []
    # A reader that slept through it all: nothing that it knew is left.
    known = early.snapshot().count
    assert known < opened.first - 1
    with pytest.raises(SnapshotEvicted):
        early.check_alive()
    with pytest.raises(SnapshotEvicted):
        EpisodeStore.open(store.path, early.snapshot())
    assert early.refresh() == 6000 - known
    assert early.snapshot() == opened.snapshot()
    assert early.episode_table.tobytes() == opened.episode_table.tobytes()
    assert early.episode_metadata(0) == opened.episode_metadata(0)
    fill(opened, range(6000, 6003), numbered_episode)
    assert early.refresh() == 3


def test_a_reader_that_meets_a_writer_freeing_records_reads_again(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "PAGE", 128)
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(30))
    snapshot, real, times, number = store.snapshot(), layout._read, 0, 30

    def read(descriptor, size, offset):
        nonlocal times, number
        times += 1
        if times == 1:  # between the header and the records
            with monkeypatch.context() as patch:
                patch.setattr(layout, "_read", real)
                fill(EpisodeStore.open(store.path), range(number, number + 30))
            number += 30
        return real(descriptor, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(layout, "_read", read)
        opened = EpisodeStore.open(store.path)
        assert times == (2 if HOLES else 1)
        assert opened.refresh() == 0
        assert (opened.first, len(opened)) == (50, 10)
        check_kept(opened)
        times = 0
        with pytest.raises(SnapshotEvicted):
            EpisodeStore.open(store.path, snapshot)
    assert opened.refresh() == 30
    assert (opened.first, len(opened)) == (80, 10)
    check_kept(opened)


def test_damage_to_a_kept_record_or_the_first_one_is_an_error(tmp_path):
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(90))
    log = store.path / layout.LOG_FILE
    content = log.read_bytes()
    assert content[64 * 70 : 64 * 71] != bytes(64)
    for number, expected in ((0, "record 0 is damaged"), (79, "record 79"), (80, "record 80"), (85, "record 85"), (70, None)):
        changed = bytearray(content)
        changed[64 * (1 + number) + 9] ^= 4
        log.write_bytes(changed)
        if expected is None:  # an evicted one: of no use to a reader
            check_kept(EpisodeStore.open(store.path))
            assert check(store.path) == ["episodes.log: 1 records of evicted episodes do not fit their checksum"]
            continue
        for attempt in (lambda: EpisodeStore.open(store.path), store.writer):
            with pytest.raises(StoreCorrupt, match=expected):
                attempt()
    log.write_bytes(content)
    assert check(store.path) == []
    snapshot = str(store.snapshot())
    with pytest.raises(StoreCorrupt, match="snapshot"):
        EpisodeStore.open(store.path, snapshot[:-1] + ("0" if snapshot[-1] != "0" else "1"))


def test_a_damaged_line_of_a_kept_episode_is_not_left_out_with_the_evicted_ones(tmp_path, monkeypatch):
    store = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500)
    with store.writer() as writer:
        for number in range(20):
            writer.append(wide(number), metadata={"number": number})
    file = store.path / meta.META_FILE
    file.write_bytes(file.read_bytes().replace(b'{"number":17}', b'{"number":71}'))
    monkeypatch.setattr(meta, "COMPACT_BYTES", 200)
    fill(store, range(20, 23))
    assert file.read_bytes().count(b"\n") < 12
    opened = EpisodeStore.open(store.path)
    assert opened.first == 13 and opened.episode_metadata(3) == {"number": 16}
    with pytest.raises(StoreCorrupt, match="is damaged"):
        opened.episode_metadata(4)
    assert any(meta.META_FILE in problem for problem in check(store.path))


def test_metadata_left_out_leaves_readers_and_an_interrupted_writer_right(tmp_path, monkeypatch):
    monkeypatch.setattr(meta, "COMPACT_BYTES", 200)
    store = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500)
    interrupted, real = 0, os.replace

    def replace(*names):
        nonlocal interrupted
        real(*names)
        interrupted += 1
        if interrupted == 2:
            raise KeyboardInterrupt  # done, but the writer does not come to know

    with monkeypatch.context() as patch, store.writer() as writer:
        patch.setattr(os, "replace", replace)
        for number in range(40):
            writer.append(wide(number), metadata={"number": number})
            try:
                writer.commit()
            except KeyboardInterrupt:
                continue
            now = EpisodeStore.open(store.path)
            assert now.episode_metadata(len(now) - 1) == {"number": number}
            if number == 12:
                reader, late, pinned = EpisodeStore.open(store.path), EpisodeStore.open(store.path), store.snapshot()
                assert reader.episode_metadata(0) == {"number": reader.first}
    assert interrupted > 3
    with pytest.raises(SnapshotEvicted):
        EpisodeStore.open(store.path, pinned).episode_metadata(0)
    with pytest.raises(SnapshotEvicted):
        late.episode_metadata(0)  # which has not looked at the file before
    reader.refresh()
    assert [reader.episode_metadata(i)["number"] for i in range(10)] == list(range(30, 40))
    assert (store.path / meta.META_FILE).stat().st_size < 1000
    assert check(store.path) == []


def test_readers_learn_of_an_eviction_before_the_first_row_is_freed(tmp_path, monkeypatch):
    store, holes, real = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), 0, disk.punch

    def punch(descriptor, offset, length):
        nonlocal holes
        file = store.path / layout.LOG_FILE
        with open(file, "rb") as log:
            first = layout.read_first(log.fileno(), file)
            row = layout.read_log(log.fileno(), file, WIDE).since(first)["first_row"][0]
        column = os.readlink(f"/proc/self/fd/{descriptor}")
        assert offset + length <= row * (1024 if "observation" in column else 4)
        holes += 1
        return real(descriptor, offset, length)

    monkeypatch.setattr(disk, "punch", punch)
    fill(store, range(30))
    assert holes >= 20


def test_the_next_writer_punches_the_holes_that_a_crashed_one_left_out(tmp_path, monkeypatch):
    store = EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "punch", lambda *_: True)  # dies after the header
        fill(store, range(40))
    if not HOLES:
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
    monkeypatch.setattr(disk, "punch", lambda *_: False)
    store = fill(EpisodeStore.create(tmp_path / "s", WIDE, limit_transitions=500), range(20))
    assert (store.first, len(store)) == (10, 10)
    check_kept(store)
    assert check(store.path) == []


def test_the_example_reader_skips_evicted_episodes(tmp_path):
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
