"""Rows on their way into a store: every checksum implementation equals zlib's, and both kernels check and gather alike."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, same_episode, stores, using, write

from offrl_store import Episode, EpisodeStore, Field, Schema, rows
from offrl_store import format as layout
from offrl_store.errors import InvalidEpisode
from offrl_store.kernels import kernels
from offrl_store.schema import DTYPES, Column
from offrl_store.validate import CheckedEpisode

START = st.sampled_from([0, 1, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("kernel", KERNELS)
@given(size=st.integers(0, 200) | st.integers(0, 70_000), offset=st.integers(0, 40), start=START, seed=st.integers(0, 2**32))
@example(size=63, offset=1, start=5, seed=0)
@example(size=64, offset=3, start=5, seed=0)
@example(size=127, offset=0, start=0, seed=1)
@settings(max_examples=300, deadline=None)
def test_every_implementation_of_the_checksum_equals_zlibs(kernel, size, offset, start, seed):
    data = np.frombuffer(np.random.default_rng(seed).bytes(size + offset), np.uint8)[offset:]
    with using(kernel):
        module = kernels()
        for portable in (False, True):
            assert module.crc32(data, start, portable) == zlib.crc32(data, start)
            cut = size // 3
            assert module.crc32(data[cut:], module.crc32(data[:cut], start, portable), portable) == zlib.crc32(data, start)
    assert module.crc32(memoryview(b"")) == 0


def test_a_checksum_of_non_contiguous_memory_is_refused():
    for kernel in KERNELS:
        with using(kernel), pytest.raises((ValueError, BufferError)):
            kernels().crc32(np.zeros((4, 4))[:, 1])


def values(dtype: np.dtype, count: int, seed: int) -> np.ndarray:
    """Numbers of all sizes, the largest ones, zeros of both signs, infinities and NaN among them."""
    noise = np.random.default_rng(seed)
    if dtype.kind == "b":
        return noise.integers(0, 2, count).astype(bool)
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return noise.integers(limits.min, limits.max, count, dtype, endpoint=True)
    limits = np.finfo(dtype)
    array = (noise.standard_normal(count) * 10.0 ** noise.integers(-5, 4, count)).astype(dtype)
    odd = noise.random(count) < 0.01
    array[odd] = noise.choice([0.0, -0.0, limits.max, limits.min, limits.tiny, np.inf, -np.inf, np.nan], odd.sum())
    return array


@given(
    dtype=st.sampled_from(DTYPES),
    steps=st.integers(1, 40) | st.integers(3000, 9000),
    width=st.sampled_from([1, 3]),
    role=st.sampled_from(["observation", "action", "extra"]),
    bounded=st.booleans(),
    seed=st.integers(0, 2**32),
    clean=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_both_kernels_refuse_the_same_numbers_and_gather_the_same_rows(dtype, steps, width, role, bounded, seed, clean):
    dtype = np.dtype(dtype)
    array = values(dtype, steps * width, seed).reshape(steps, width)
    if clean and dtype.kind == "f":
        array = np.nan_to_num(array, nan=0, posinf=1, neginf=-1)
    limits = {"low": np.sort(array, axis=None)[seed % array.size], "high": array.max()} if bounded and dtype.kind in "iu" else {}
    if bounded and dtype.kind == "f":
        limits = {"low": -1.0, "high": 1000.0}
    column = Column("x", role, None, Field(dtype, (width,), **limits))
    bounds = rows.allowed(column)
    low, high = (None, None) if bounds is None else bounds
    fits = bounds is None or bool(((array >= low) & (array <= high)).all())
    if role != "action":
        assert fits == (role == "extra" or dtype.kind != "f" or bool(np.isfinite(array).all()))
    found = []
    for kernel in KERNELS:
        with using(kernel):
            buffer = np.full((steps + 5, column.field.row_bytes), 0x55, np.uint8)
            taker = kernels().RowBuffer([(buffer, dtype, bounds)])
            checksum = taker.take((array,), steps + 1, 3, True)
            assert (checksum < 0) == (not fits)
            if fits:
                assert checksum == zlib.crc32(bytes(column.field.row_bytes), zlib.crc32(array))
                assert taker.take((array,), steps + 1, -1, True) == checksum
                assert buffer[3 : 3 + steps].tobytes() == array.tobytes()
                assert not buffer[3 + steps].any()
                assert (buffer[:3] == 0x55).all() and (buffer[steps + 4 :] == 0x55).all()
            else:
                assert checksum == -1
                assert taker.take((array,), steps + 1, 3, False) == zlib.crc32(bytes(column.field.row_bytes), zlib.crc32(array))
            found.append(checksum)
            for arguments in (
                ((array,), steps - 1, 0, True),
                ((array,), steps + 1, 5, True),
                ((array, array), steps, 0, True),
                ((array.tobytes()[:-1],), steps, 0, True) if kernel == "cython" and column.field.row_bytes > 1 else None,
            ):
                if arguments is not None:
                    with pytest.raises(ValueError):
                        taker.take(*arguments)
    assert found[0] == found[1]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", [1, 300, 5000])
@given(case=stores())
@settings(max_examples=20, deadline=None)
def test_the_files_do_not_depend_on_how_much_is_gathered_at_once(kernel, group, case):
    schema, episodes = case
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "GROUP_BYTES", group)
            patch.setattr(rows, "START_BYTES", 1)
            store = write(Path(folder) / "s", schema, episodes)
        whole = write(Path(folder) / "t", schema, episodes)
        assert all(same_episode(*pair) for pair in zip(store.episodes, episodes, strict=True))
        assert store.snapshot() == whole.snapshot()
        for column in schema.columns:
            assert layout.column_path(store.path, column.name).read_bytes() == layout.column_path(whole.path, column.name).read_bytes()


@pytest.mark.parametrize("group", [1, rows.GROUP_BYTES])
def test_bounds_can_differ_between_elements(tmp_path, monkeypatch, group):
    monkeypatch.setattr(rows, "GROUP_BYTES", group)
    store = EpisodeStore.create(tmp_path / "s", Schema(Field("float32", (1,)), Field("float32", (2,), low=[-1, -20], high=[1, 20])))
    good, bad = np.float32([[0.5, -15], [1, 20]]), np.float32([[0.5, -15], [1.5, 20]])
    with store.writer() as writer:
        writer.append(Episode(np.zeros((3, 1), np.float32), good, [0, 0]))
        with pytest.raises(InvalidEpisode, match=r"episode 1, field action, row 1: 1\.5 is outside the bounds -1\.0 to 1\.0"):
            writer.append(Episode(np.zeros((3, 1), np.float32), bad, [0, 0]))
    assert store.episodes[0].action.tolist() == good.tolist()
    assert len(store) == 1


def test_an_interrupt_between_an_episode_s_rows_and_its_noting_leaves_no_trace(tmp_path, monkeypatch):
    for group in (1, 400, 1 << 20):  # the longer ones go straight to the files where 400 bytes are gathered
        monkeypatch.setattr(rows, "GROUP_BYTES", group)
        store = EpisodeStore.create(tmp_path / str(group), Schema(Field("float32", (2,)), Field("float32", (1,))))
        episodes = [
            Episode(np.full((t + 2, 2), t, np.float32), np.full((t + 1, 1), t, np.float32), np.full(t + 1, t, np.float32))
            for t in range(12)
        ]
        with store.writer() as writer:
            for number, episode in enumerate(episodes):
                steps = 30 + number
                arrays = (np.full((steps + 1, 2), 99, np.float32), np.full((steps, 1), 99, np.float32), np.full(steps, 99, np.float32))
                writer._rows.put(CheckedEpisode(steps, True, False, arrays), writer._row, "interrupted")  # and nothing after it
                writer.append(episode)
        assert all(same_episode(*pair) for pair in zip(store.episodes, episodes, strict=True))
