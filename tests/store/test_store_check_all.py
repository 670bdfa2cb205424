"""check() over every file of a store's folder: damage is named, or at least never read as data."""

from __future__ import annotations

import random

import numpy as np
import pytest
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore, check
from offrl_store.errors import OffrlError


@pytest.fixture
def full(tmp_path):
    """A store with everything: evicted episodes, metadata, cached statistics, open episodes in their files."""
    store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=100)
    with store.writer() as writer:
        for i in range(12):
            writer.append(numbered_episode(i), metadata={"number": i})
        for env in (0, 3):
            writer.begin(np.zeros(3, np.float32), env=env)
            for t in range(20):
                writer.step(t % 5, float(t), np.full(3, t, np.float32), env=env, extra={"row": t})
                if t % 7 == 0:
                    writer.sync()
    store.stats()
    assert store.first > 0
    assert check(store.path) == []
    return store


def kept_rows(store, name):
    """The bytes of a file that hold something."""
    if not name.endswith(".bin"):
        return 0
    column = next(c for c in store.schema.columns if f"{c.name}.bin" == name)
    return int(store.episode_table["first_row"][0]) * column.field.row_bytes


def test_a_changed_byte_in_any_file_is_named_by_check(full):
    chance = random.Random(2)
    files = [file for file in full.path.rglob("*") if file.is_file()]
    assert {"0.1", "3.2", "episodes.meta", "stats.json", "schema.json", "episodes.log", "reward.bin"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        for _ in range(25):
            changed = bytearray(content)
            changed[chance.randrange(kept_rows(full, file.name), len(changed))] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            problems = check(full.path)
            if file.suffix != ".json" or changed.split() != content.split():
                named = any(file.name in problem for problem in problems) or (file.suffix == ".bin" and "do not fit" in problems[0])
                assert named or (file.suffix == ".json" and not problems), (file, problems)
        file.write_bytes(content)
    assert check(full.path) == []


def test_a_truncation_of_any_file_is_named_by_check_and_never_ignored(full):
    chance = random.Random(3)
    for file in [file for file in full.path.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        for _ in range(12):
            size = chance.randrange(len(content))
            file.write_bytes(content[:size])
            whole_lines = file.name == "episodes.meta" and content[:size].endswith(b"\n")
            assert check(full.path) or whole_lines or (file.parent.name == "open"), (file, size)
            try:
                assert [e.ret for e in EpisodeStore.open(full.path).episodes] == [e.ret for e in full.episodes]
            except OffrlError as error:
                assert error.code == "store_corrupt"
        file.write_bytes(content)
    assert check(full.path) == []


def test_a_damaged_open_episode_is_recovered_up_to_the_damage(full):
    file = full.path / "open" / "3.2"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "can be recovered" in check(full.path)[0]
    with full.writer() as writer:
        left = writer.open_episodes
        assert left[0] == 20 and 0 < left[3] < 20
        writer.end(env=3)
        writer.discard(0)
    assert full.episodes[len(full) - 1].reward.tolist() == list(range(left[3]))
    assert check(full.path) == []
