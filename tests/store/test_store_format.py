"""The format: version 1's sample stays readable, even by NumPy alone, and the kernels are chosen as documented."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import make_sample
import numpy as np
import pytest
from store_cases import KERNELS, same, same_episode, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore, check
from offrl_store import format as layout

SAMPLE = Path(__file__).parent / "data" / "format-1"
READER = Path(__file__).parents[2] / "examples" / "read_store.py"


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_sample_of_format_1_is_read(kernel):
    with using(kernel):
        store = EpisodeStore.open(SAMPLE)
        assert str(store.snapshot()) == "0:4:4567a4c773b6d872a7baa58e04755bfe"
        assert store.schema == make_sample.SCHEMA
        assert store.metadata == {"env_id": "Sample-v0", "note": "grüße"}
        assert all(same_episode(*pair) for pair in zip(store.episodes, make_sample.EPISODES, strict=True))
        assert store.returns.tolist() == [8.0, 4.5, 0.5, 2.0]
        assert (store.transition_count, store.step_count) == (9, 10)
        assert check(SAMPLE) == []
        assert store.transitions(8, 0).sample().index.tolist() == [5, 11, 6, 5, 5, 6, 11, 12]


def test_the_same_episodes_are_written_to_the_same_bytes(tmp_path):
    store = write(tmp_path / "s", make_sample.SCHEMA, make_sample.EPISODES)
    files = [file.relative_to(SAMPLE) for file in SAMPLE.rglob("*") if file.is_file()]
    assert len(files) == 8
    for file in files:
        assert (store.path / file).read_bytes() == (SAMPLE / file).read_bytes(), file


def test_a_later_writer_appends_to_the_sample(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "s")
    store = EpisodeStore.open(tmp_path / "s")
    with store.writer() as writer:
        writer.append(make_sample.EPISODES[1])
    assert len(store) == 5
    assert check(store.path) == []


def test_the_numpy_only_reader_sees_the_same(tmp_path):
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("read_store", READER))
    spec.loader.exec_module(module)
    assert "offrl_store" not in READER.read_text()
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(9)])
    for path in (SAMPLE, store.path):
        expected = EpisodeStore.open(path)
        found = list(module.read_store(path))
        assert len(found) == len(expected)
        for (columns, terminated), episode in zip(found, expected.episodes, strict=True):
            assert terminated == episode.terminated
            for column in expected.schema.columns:
                part = getattr(episode, column.role)
                assert same(columns[column.name], part if column.key is None else part[column.key])
    assert list(module.read_store(EpisodeStore.create(tmp_path / "empty", SIMPLE).path)) == []
    output = subprocess.run([sys.executable, str(READER), str(SAMPLE)], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[1] == "1 3 4.5 truncated"


def test_header_and_record_are_64_bytes():
    assert layout.HEADER.itemsize == layout.RECORD.itemsize == len(layout.dump_header()) == layout.SIZE == 64


@pytest.mark.parametrize("kernel", KERNELS)
def test_checksums_of_rows_are_those_of_zlib(kernel):
    rows = np.random.default_rng(0).integers(0, 256, (40, 64), dtype=np.uint8)
    out = np.empty(40, np.uint32)
    with using(kernel):
        from offrl_store.kernels import kernels

        kernels().crc32_rows(rows, 60, out)
    assert out.tolist() == [zlib.crc32(row[:60]) for row in rows]


def test_without_compiled_kernels_it_warns_once_and_continues(tmp_path):
    package = Path(layout.__file__).parent
    shutil.copytree(package, tmp_path / "offrl_store", ignore=shutil.ignore_patterns("*.so", "*.pyx", "*.c", "__pycache__"))
    code = f"""
import sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from offrl_store import EpisodeStore
    for _ in range(2):
        print(EpisodeStore.open({str(SAMPLE)!r}).transitions(8, 0).sample().index.tolist())
print([str(w.message)[:34] for w in caught], caught[0].category.__name__)
"""
    environment = {**os.environ, "PYTHONPATH": "", "OFFRL_STORE_KERNELS": ""}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert output.splitlines() == ["[5, 11, 6, 5, 5, 6, 11, 12]"] * 2 + ["['offrl_store samples with NumPy, ab'] RuntimeWarning"]
