"""Damage of any kind in any file of a store: a reader or writer gets a clear error or the right data, and `check` names what is wrong."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from store_cases import MEMORY, same_episode
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore, check
from offrl_store.errors import OffrlError, StoreCorrupt
from offrl_store.meta import META_FILE, dump_line

FILES = (
    "schema.json",
    "episodes.log",
    "episodes.meta",
    "stats.json",
    "open/0.1",
    "open/3.2",
    "columns/observation.bin",
    "columns/action.bin",
    "columns/reward.bin",
    "columns/extra.row.bin",
)


@pytest.fixture(scope="module", params=["whole", "bounded"])
def pristine(request, tmp_path_factory):
    """A store with everything in it, and what its episodes and metadata are: a bounded one has lost its oldest episodes."""
    path = tmp_path_factory.mktemp("pristine") / "s"
    store = EpisodeStore.create(path, SIMPLE, limit_transitions=100 if request.param == "bounded" else None)
    with store.writer() as writer:
        for i in range(12):
            writer.append(numbered_episode(i), metadata={"number": i} if i != 10 else None)
        for env in (0, 3):
            writer.begin(np.zeros(3, np.float32), env=env)
            for t in range(20):
                writer.step(t % 5, float(t), np.full(3, t, np.float32), env=env, extra={"row": t})
                if t % 7 == 0:
                    writer.sync()
    store.stats()
    assert sorted(FILES) == sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert check(path) == [] and (store.first > 0) == (request.param == "bounded")
    return store


def damages(content: bytes, chance: random.Random, start: int):
    """The same bytes with something wrong, in every way that a disk, a copy or a person makes it; ``start``: what lies before is a hole."""
    size = len(content)
    for _ in range(10):
        at, bit = chance.randrange(start, size), 1 << chance.randrange(8)
        yield f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    for _ in range(5):
        at = chance.randrange(start, size)
        yield f"cut at {at}", content[:at]
        some = chance.randbytes(min(chance.randrange(1, 64), size - at))
        yield f"{len(some)} random bytes at {at}", content[:at] + some + content[at + len(some) :]
        yield f"{len(some)} bytes more at {at}", content[:at] + some + content[at:]
        yield f"{len(some)} bytes less at {at}", content[:at] + content[at + len(some) :]
        page = content[at // 512 * 512 : at // 512 * 512 + 512]
        yield f"zeros from {at // 512 * 512}", content[: at // 512 * 512] + bytes(len(page)) + content[at // 512 * 512 + len(page) :]
    yield "empty", b""
    yield "doubled", content + content
    yield "random", chance.randbytes(size)


def read(path: Path, pristine: EpisodeStore) -> list[str]:
    """Read everything in a store; return the differences from what was written. Errors propagate."""
    store = EpisodeStore.open(path)
    wrong = [] if len(store) == len(pristine) and store.first == pristine.first else ["number of episodes"]
    for i, (ours, due) in enumerate(zip(store.episodes, pristine.episodes, strict=False)):
        wrong += [] if same_episode(ours, due) else [f"episode {i}"]
        wrong += [] if store.episode_metadata(i) == pristine.episode_metadata(i) else [f"metadata of episode {i}"]
    store.transitions(64, 0, n_steps=3, frame_stack=2).sample()
    store.windows(16, 5, 0).sample()
    wrong += [] if store.stats() == pristine.stats() or wrong else ["statistics"]
    return wrong


def block_places(content: bytes) -> list[int]:
    """Where the blocks of a staging file begin, and its end, by the layout in docs/store-format.md."""
    places, at = [], 0
    while at + 56 <= len(content):
        places.append(at)
        observations, steps = int.from_bytes(content[at + 12 : at + 16], "little"), int.from_bytes(content[at + 16 : at + 24], "little")
        at += 56 + observations * 12 + steps * (4 + 4 + 8)
    return [*places, at]


def without_padding(content: bytes, places: list[int]) -> bytes:
    """The bytes of a staging file that mean something: the last four of a block's head are padding."""
    for at in places[:-1]:
        content = content[: at + 52] + bytes(4) + content[at + 56 :]
    return content


@pytest.mark.parametrize("name", FILES)
def test_no_damage_passes_for_data(pristine, tmp_path, name):
    chance = random.Random(name)
    path = tmp_path / "s"
    shutil.copytree(pristine.path, path)
    file = path / name
    content = file.read_bytes()
    start = 0
    if file.suffix == ".bin":
        column = next(c for c in SIMPLE.columns if f"{c.name}.bin" == file.name)
        start = int(pristine.episode_table["first_row"][0]) * column.field.row_bytes
    for what, damaged in damages(content, chance, start):
        if damaged[start:] == content[start:]:
            continue
        file.write_bytes(damaged)
        problems = check(path)
        try:
            wrong = read(path, pristine)
        except OffrlError as error:
            assert error.code in ("store_corrupt", "store_not_found"), (what, error)
            assert problems, (what, str(error))
            continue
        finally:
            (path / "stats.json").write_bytes((pristine.path / "stats.json").read_bytes())
        if problems or damaged.split() == content.split():
            continue
        # What check cannot see is what a writer that was killed leaves as well, and of one of these kinds.
        if name == "episodes.meta":
            assert damaged == b"" or damaged[-1:] == b"\n", what  # whole lines are gone or doubled
            assert all(problem.startswith("metadata") for problem in wrong), (what, wrong)
            continue
        assert not wrong, (what, wrong)
        if name.startswith("open/"):
            places = block_places(content)
            assert places[-1] == len(content)
            assert len(damaged) in places and without_padding(content, places).startswith(
                without_padding(damaged, [at for at in places if at <= len(damaged)])
            ), what
        elif file.suffix == ".bin":
            assert damaged.startswith(content), what  # rows behind the last episode: an unfinished write
        else:
            raise AssertionError((name, what, "was not seen"))
    file.write_bytes(content)
    assert check(path) == [] and read(path, pristine) == []


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("open/") and name not in ("episodes.meta", "stats.json")])
def test_a_missing_file_is_named(pristine, tmp_path, name):
    path = tmp_path / "s"
    shutil.copytree(pristine.path, path)
    (path / name).unlink()
    assert any(Path(name).name in problem or "no episode store" in problem for problem in check(path))
    with pytest.raises(OffrlError) as caught:
        EpisodeStore.open(path)
    assert caught.value.code in ("store_corrupt", "store_not_found")
    (path / name).mkdir()  # something else in its place
    problems = check(path)
    assert problems and all(isinstance(problem, str) for problem in problems)


@pytest.mark.parametrize("name", FILES)
def test_a_writer_meets_damage_with_an_error_or_keeps_what_is_whole(pristine, name):
    """Opening for writing repairs unfinished writes; it never turns damage into data nor throws committed episodes away."""
    chance = random.Random(name + "w")
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        content = (pristine.path / name).read_bytes()
        for i, (what, damaged) in enumerate(damages(content, chance, 0)):
            path = Path(folder) / str(i)
            shutil.copytree(pristine.path, path)
            (path / name).write_bytes(damaged)
            before = check(path)
            try:
                store = EpisodeStore.open(path)
                with store.writer() as writer:
                    for env in list(writer.open_episodes):
                        writer.discard(env)
                    number = writer.append(numbered_episode(12))
            except OffrlError as error:
                assert error.code in ("store_corrupt", "store_not_found"), (what, error)
                assert before, what
            else:
                opened = EpisodeStore.open(path)
                assert number >= 12 and same_episode(opened.episodes[len(opened) - 1], numbered_episode(12)), what
                if not any("do not fit" in problem for problem in check(path)):
                    for k in range(12 - opened.first):
                        assert same_episode(opened.episodes[k], numbered_episode(opened.first + k)), what
            shutil.rmtree(path)


# --- Metadata ---------------------------------------------------------------------------------------------------------------------------


def test_a_damaged_line_is_an_error_for_the_episodes_that_it_may_belong_to(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer() as writer:
        for i in range(6):
            writer.append(numbered_episode(i), metadata={"number": i} if i != 4 else None)
    file = store.path / META_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"2}", b"7}")
    file.write_bytes(b"".join(lines))
    opened = EpisodeStore.open(store.path)
    assert [opened.episode_metadata(i) for i in (0, 1, 3, 5)] == [{"number": i} for i in (0, 1, 3, 5)]
    assert opened.episode_metadata(4) == {}
    with pytest.raises(StoreCorrupt, match="line 3 is damaged"):
        opened.episode_metadata(2)
    assert any("line 3" in problem for problem in check(store.path))


def test_a_line_of_an_unfinished_write_never_becomes_that_of_a_later_episode(tmp_path):
    """A reader that saw the line of a write that a crash left, and then the line of the same length that replaced it."""
    store = EpisodeStore.create(tmp_path / "s", SIMPLE)
    with store.writer() as writer:
        writer.append(numbered_episode(0), metadata={"seed": 1})
    reader = EpisodeStore.open(store.path)
    with open(store.path / META_FILE, "ab") as file:
        file.write(dump_line(1, '{"seed":6}'))
    assert reader.episode_metadata(0) == {"seed": 1}
    with store.writer() as writer:
        writer.append(numbered_episode(1), metadata={"seed": 7})
    reader.refresh()
    assert [reader.episode_metadata(i) for i in (0, 1)] == [{"seed": 1}, {"seed": 7}]
