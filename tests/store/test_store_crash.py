"""Nothing acknowledged is lost: writers killed anywhere, lost power, a full disk, and files that were cut or changed."""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_cases import check_numbered, same_episode, write
from store_faults import Disk
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema, check, rows
from offrl_store import format as layout
from offrl_store.errors import DiskFull, InvalidInput, OffrlError, StoreCorrupt, StoreLocked, StoreNotFound

CHILD = Path(__file__).with_name("store_child.py")
GROUPS = pytest.mark.parametrize("group", [1, 2000, rows.GROUP_BYTES], ids=["direct", "groups", "at the commit"])  # bytes gathered at least


def child(path: Path, count: int, *more: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(path), str(count), *map(str, more)], stdout=subprocess.PIPE, text=True, env=environment
    )


# --- Killed writers ---------------------------------------------------------------------------------------------------------------


def kill_writers(path: Path, times: int) -> None:
    """Kill a writer process at random moments, again and again on the same store."""
    chance = random.Random(0)
    acknowledged = 0
    for _ in range(times):
        process = child(path, 10**9)
        try:
            for _ in range(chance.choice([0, 1, 1, 2, 5, 9])):
                acknowledged = max(acknowledged, int(process.stdout.readline().split()[1]))
            select.select([process.stdout], [], [], chance.random() * 0.01)  # dies while it waits for the disk, computes or prints
        finally:
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.readlines()  # not communicate(), which would lose what readline() has read ahead
            process.stdout.close()
            process.wait(timeout=120)
        for line in rest:
            if line.endswith("\n"):
                acknowledged = max(acknowledged, int(line.split()[1]))
        try:
            store = EpisodeStore.open(path)
        except StoreNotFound:
            assert acknowledged == 0
            continue
        assert len(store) >= acknowledged
        check_numbered(store, max(0, len(store) - 60))
    check_numbered(EpisodeStore.open(path))
    with EpisodeStore.open(path).writer():
        pass
    assert check(path) == []


def test_every_acknowledged_episode_survives_kill_minus_nine(tmp_path):
    kill_writers(tmp_path / "s", 30)


@pytest.mark.slow
def test_every_acknowledged_episode_survives_a_thousand_kills(tmp_path):
    kill_writers(tmp_path / "s", 1000)


@GROUPS
@pytest.mark.parametrize("failure", ["kill", "power"])
def test_a_death_at_every_single_system_call_loses_nothing_acknowledged(tmp_path, monkeypatch, failure, group):
    monkeypatch.setattr(rows, "GROUP_BYTES", group)
    monkeypatch.setattr(rows, "START_BYTES", 500)
    base = write(tmp_path / "base", SIMPLE, [numbered_episode(i) for i in range(2)])
    at, reached = 0, True
    while reached:
        at += 1
        path = tmp_path / f"{failure}-{at}"
        shutil.copytree(base.path, path)
        acknowledged = 2
        with Disk(at, failure, seed=at) as disk, EpisodeStore.open(path).writer() as writer:
            for number in range(2, 9):
                writer.append(numbered_episode(number))
                if number % 3 == 0:
                    acknowledged = writer.commit().count
            writer.close()
            acknowledged = 9
        reached = disk.reached
        store = EpisodeStore.open(path)
        assert len(store) >= acknowledged
        check_numbered(store)
        with EpisodeStore.open(path).writer() as writer:
            assert writer.append(numbered_episode(len(store))) == len(store)
        check_numbered(EpisodeStore.open(path))
        assert check(path) == []
        shutil.rmtree(path)
    assert at > (45 if group == 1 else 30)


def test_a_crash_during_recovery_is_recovered_from(tmp_path):
    base = write(tmp_path / "base", SIMPLE, [numbered_episode(i) for i in range(3)])
    tear(base.path, 30)
    for at in range(1, 6):
        path = tmp_path / str(at)
        shutil.copytree(base.path, path)
        with Disk(at, "power", seed=at):
            EpisodeStore.open(path).writer().close()
        EpisodeStore.open(path).writer().close()
        assert check(path) == []
        check_numbered(EpisodeStore.open(path))
        assert len(EpisodeStore.open(path)) == 3


# --- A full disk ------------------------------------------------------------------------------------------------------------------


@GROUPS
@pytest.mark.parametrize("failure", ["full", "once"])
def test_a_disk_that_fills_up_at_any_call_keeps_what_was_acknowledged(tmp_path, monkeypatch, failure, group):
    monkeypatch.setattr(rows, "GROUP_BYTES", group)
    base = write(tmp_path / "base", SIMPLE, [numbered_episode(i) for i in range(2)])
    at, reached = 0, True
    while reached:
        at += 1
        path = tmp_path / f"{failure}-{at}"
        shutil.copytree(base.path, path)
        acknowledged = 2
        try:
            with Disk(at, failure) as disk, EpisodeStore.open(path).writer() as writer:
                for number in range(2, 6):
                    writer.append(numbered_episode(number))
                    if number % 2:
                        acknowledged = writer.commit().count
        except DiskFull as error:
            assert "free some space" in error.hint
        reached = disk.reached
        store = EpisodeStore.open(path)
        assert len(store) >= acknowledged
        check_numbered(store)
        EpisodeStore.open(path).writer().close()
        assert check(path) == []
        shutil.rmtree(path)
    assert at > 20


def test_the_writer_goes_on_after_space_was_freed(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "GROUP_BYTES", 1)  # rows go to the files as they come
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer() as writer:
        writer.append(numbered_episode(0))
        with Disk(3, "full"), pytest.raises(DiskFull):
            writer.append(numbered_episode(1))
        due = numbered_episode(0).steps + 1
        assert layout.column_path(store.path, "observation").stat().st_size == due * 12  # the half-written rows were given back
        assert writer.append(numbered_episode(1)) == 1
    assert len(store) == 2
    check_numbered(store)
    assert check(store.path) == []


def test_gathered_episodes_wait_in_memory_for_space(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "GROUP_BYTES", 2500)
    store, taken = EpisodeStore.create(tmp_path / "s", SIMPLE), 0
    with store.writer() as writer:
        with Disk(2, "full"):
            with pytest.raises(DiskFull):
                while True:
                    assert writer.append(numbered_episode(taken)) == taken
                    taken += 1
            for _ in range(2):
                with pytest.raises(DiskFull):
                    writer.commit()
        assert taken > 2
        assert {file.stat().st_size for file in (store.path / "columns").iterdir()} == {0}
        assert writer.append(numbered_episode(taken)) == taken
        assert writer.commit().count == taken + 1
        with Disk(2, "full"):
            writer.append(numbered_episode(taken + 1))
            with pytest.raises(DiskFull):
                writer.commit()
        writer.abort()
    assert len(EpisodeStore.open(store.path)) == taken + 1
    check_numbered(EpisodeStore.open(store.path))
    assert check(store.path) == []


def test_the_callers_arrays_may_change_after_an_append(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer() as writer:
        for number in range(3):
            episode = numbered_episode(number)
            writer.append(episode)
            for array in (episode.observation, episode.action, episode.reward, episode.extra["row"]):
                array[:] = 0
    check_numbered(store)
    assert check(store.path) == []


def test_an_episode_whose_commit_failed_is_not_seen_before_a_commit_succeeds(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    with store.writer() as writer:
        writer.append(numbered_episode(1))
        for names, at in (("pwrite", 1), ("fdatasync", 5)):  # the record; its sync after those of the four columns
            with Disk(at, "once", names=[names]), pytest.raises(DiskFull):
                writer.commit()
            assert len(EpisodeStore.open(store.path)) == 1
        assert writer.commit().count == 2
        assert len(EpisodeStore.open(store.path)) == 2
    check_numbered(store)


def test_rows_whose_sync_failed_are_written_again(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    with store.writer() as writer:
        writer.append(numbered_episode(2))
        with Disk(2, "once", names=["fdatasync"]), pytest.raises(DiskFull):
            writer.commit()
        assert writer.append(numbered_episode(1)) == 1
    assert len(store) == 2
    check_numbered(store)
    assert check(store.path) == []


def test_a_file_system_without_space_is_the_error_disk_full(tmp_path):
    process = child(tmp_path / "s", 10**9, 20_000)
    output, _ = process.communicate(timeout=180)
    lines = output.splitlines()
    assert process.returncode == 0
    assert lines[-1] == "full disk_full"
    store = EpisodeStore.open(tmp_path / "s")
    assert len(store) >= int(lines[-2].split()[1]) > 0
    check_numbered(store)
    assert check(store.path) == []


# --- Torn, cut and changed files ----------------------------------------------------------------------------------------------------


def tear(path: Path, size: int) -> None:
    """Leave an unfinished write behind: garbage after the last record and rows after the last episode."""
    with open(path / layout.LOG_FILE, "ab") as file:
        file.write(b"\x5a" * size)
    with open(layout.column_path(path, "action"), "ab") as file:
        file.write(b"\x5a" * 4000)


@pytest.mark.parametrize("size", [1, 63, 64, 200])
def test_a_torn_tail_is_left_out_by_readers_and_cut_by_the_writer_only(tmp_path, size):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    tear(store.path, size)
    before = (store.path / layout.LOG_FILE).read_bytes()
    assert len(EpisodeStore.open(store.path)) == 3
    assert "unfinished write" in check(store.path)[0]
    assert (store.path / layout.LOG_FILE).read_bytes() == before
    with store.writer() as writer:
        writer.append(numbered_episode(3))
    assert len(store) == 4
    check_numbered(store)
    assert check(store.path) == []


@pytest.mark.parametrize("column", ["observation", "action", "reward", "extra.row"])
def test_a_cut_column_is_an_error_at_open_at_refresh_and_for_the_writer(tmp_path, column):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    file = layout.column_path(store.path, column)
    os.truncate(file, file.stat().st_size - 1)
    for attempt in (lambda: EpisodeStore.open(store.path), store.refresh, store.writer):
        with pytest.raises(StoreCorrupt, match=re.escape(f"{column}.bin is cut")):
            attempt()
    os.unlink(file)
    for attempt in (lambda: EpisodeStore.open(store.path), store.refresh, store.writer):
        with pytest.raises(StoreCorrupt, match=re.escape(f"{column}.bin is missing")):
            attempt()


def test_a_cut_log_is_an_error(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(5)])
    log = store.path / layout.LOG_FILE
    for size in (64 * 5, 64 * 3 + 10, 64, 10, 0):
        os.truncate(log, size)
        for attempt in (lambda: EpisodeStore.open(store.path), store.refresh):
            with pytest.raises(StoreCorrupt, match=r"episodes[.]log"):
                attempt()


def test_a_changed_byte_anywhere_is_an_error_or_found_by_check(tmp_path):
    episodes = [numbered_episode(i) for i in range(4)]
    store = write(tmp_path / "s", SIMPLE, episodes)
    chance = random.Random(1)
    files = [file for file in store.path.rglob("*") if file.is_file()]
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        for _ in range(60):
            changed = bytearray(content)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            if file.name == layout.SCHEMA_FILE and changed.split() == content.split():
                continue
            file.write_bytes(changed)
            problems = check(store.path)
            if not problems:  # a change that means the same, such as a space in the JSON
                assert file.name == layout.SCHEMA_FILE
                assert EpisodeStore.open(store.path).schema == SIMPLE
            try:
                opened = EpisodeStore.open(store.path)
                sum(episode.ret for episode in opened.episodes)
                assert len(opened) == 4
            except OffrlError as error:
                assert error.code == "store_corrupt"
        file.write_bytes(content)
    assert check(store.path) == []


def test_check_names_the_episode_that_changed(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(4)])
    row = int(store.episode_table["first_row"][2])
    with open(layout.column_path(store.path, "reward"), "r+b") as file:
        file.seek(4 * row)
        file.write(b"\x01\x02\x03\x04")
    assert [line.split(":")[0] for line in check(store.path)] == ["episode 2"]


def test_another_version_is_refused(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    file = store.path / layout.SCHEMA_FILE
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreCorrupt, match="version 2"):
        EpisodeStore.open(store.path)


def test_a_schema_of_another_store_does_not_fit_the_log(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    other = EpisodeStore.create(tmp_path / "o", Schema(Field("float32", (3,)), Field("int32", (), 0, 5), extra={"row": Field("int64")}))
    shutil.copy(other.path / layout.SCHEMA_FILE, store.path / layout.SCHEMA_FILE)
    with pytest.raises(StoreCorrupt, match="does not belong"):
        EpisodeStore.open(store.path)


# --- One writer, many readers -------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer(), pytest.raises(StoreLocked):
        EpisodeStore.open(store.path).writer()
    process = child(store.path, 10**9)
    try:
        assert process.stdout.readline().startswith("open")
        with pytest.raises(StoreLocked, match=re.escape(str(store.path))):
            store.writer()
    finally:
        process.kill()
        process.communicate(timeout=120)
    with store.writer() as writer:
        writer.append(numbered_episode(len(store)))
    check_numbered(store)


def test_a_reader_sees_whole_episodes_only_while_a_writer_writes(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    process = child(store.path, 120)
    deadline, seen, refreshes = time.monotonic() + 60, 0, 0
    try:
        while len(store) < 120:
            assert time.monotonic() < deadline
            if store.refresh():
                check_numbered(store, seen)
                seen, refreshes = len(store), refreshes + 1
                assert store.transitions(16, 0).sample().index.max() < len(store.column("reward"))
    finally:
        process.kill()
        process.communicate(timeout=120)
    assert refreshes > 1
    check_numbered(store)


def test_an_exception_in_the_block_commits_the_whole_episodes_before_it(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with pytest.raises(ZeroDivisionError), store.writer() as writer:
        writer.append(numbered_episode(0))
        writer.append(numbered_episode(1))
        raise ZeroDivisionError
    assert len(EpisodeStore.open(store.path)) == len(store) == 2
    with pytest.raises(OffrlError), store.writer() as writer:
        writer.append(numbered_episode(2))
        writer.append(Episode(np.zeros((2, 9), np.float32), [0], [0.0]))
    check_numbered(EpisodeStore.open(store.path))
    assert len(store) == 3
    with pytest.raises(InvalidInput, match="closed"):
        writer.append(numbered_episode(3))


def test_a_writer_that_is_dropped_promises_nothing(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    writer = store.writer()
    writer.append(numbered_episode(0))
    del writer
    assert len(EpisodeStore.open(store.path)) == 0
    with store.writer() as writer:
        writer.append(numbered_episode(0))
    assert check(store.path) == []


def test_a_snapshot_stays_as_it_was_while_the_store_grows(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    snapshot = str(store.snapshot())
    indices = store.transitions(64, 5).sample().index.copy()
    with store.writer() as writer:
        for number in range(3, 8):
            writer.append(numbered_episode(number))
        assert writer.commit().count == 8
    pinned = EpisodeStore.open(store.path, snapshot)
    assert len(pinned) == 3
    assert pinned.refresh() == 0
    assert str(pinned.snapshot()) == snapshot != str(store.snapshot())
    assert np.array_equal(pinned.transitions(64, 5).sample().index, indices)
    assert not np.array_equal(store.transitions(64, 5).sample().index, indices)
    with pytest.raises(InvalidInput, match="snapshot"):
        pinned.writer()
    again = write(tmp_path / "again", SIMPLE, [numbered_episode(i) for i in range(3)])
    assert str(again.snapshot()) == snapshot
    other = write(tmp_path / "other", SIMPLE, [numbered_episode(i) for i in (0, 2, 1)])
    for wrong in (str(other.snapshot()), f"0:99:{snapshot[-32:]}", f"0:2:{snapshot[-32:]}"):
        with pytest.raises(StoreCorrupt, match="snapshot"):
            EpisodeStore.open(store.path, wrong)
    for malformed in ("", "0:3", "a:b:c", snapshot + ":1", snapshot[:-2]):
        with pytest.raises(InvalidInput, match="snapshot"):
            EpisodeStore.open(store.path, malformed)


def test_an_older_reader_keeps_its_rows_while_the_columns_are_mapped_anew(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    reader = EpisodeStore.open(store.path)
    episode, sampler = reader.episodes[2], reader.transitions(32, 1)
    indices = sampler.sample().index.copy()
    with store.writer() as writer:
        for number in range(3, 30):
            writer.append(numbered_episode(number))
    assert reader.refresh() == 27
    sampler.seek(0)
    assert np.array_equal(sampler.sample().index, indices)
    assert same_episode(episode, numbered_episode(2))
