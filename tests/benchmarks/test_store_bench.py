"""The store's benchmark measures what it says: the limits move the same bytes as ours, the sparse store is one, the cold cache is cold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import offrl_store
from benchmarks import store as bench
from benchmarks import store_growth, store_limits, store_works
from benchmarks.peers.store_data import ENVIRONMENTS, EPISODE, Data
from offrl_store import EpisodeStore

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = Data(16_000, 500)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return store_works.vectors(tmp_path_factory.mktemp("bench") / "vectors", DATA)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    found = store_limits.compile_limits(tmp_path_factory.mktemp("limits"))
    if found is None:
        pytest.skip("needs a C compiler")
    return found


@pytest.mark.parametrize("compiled", [True, False])
def test_the_limit_copies_the_rows_of_a_transition(vectors, request, compiled):
    rows = store_works.drawn(vectors, 3, 64, 4)
    library = request.getfixturevalue("library") if compiled else None
    limit = store_limits.Rows(library, rows, store_works.transition_parts(vectors, n_steps=3))
    limit(2)
    observation, action, reward = (vectors.column(name) for name in ("observation", "action", "reward"))
    due = [observation[rows[2]], action[rows[2]], *(reward[rows[2] + i] for i in range(3)), observation[rows[2] + 3]]
    assert len(limit.outs) == len(due)
    for out, values in zip(limit.outs, due, strict=True):
        assert np.array_equal(out[:, 0], values)


def test_the_limit_of_a_prioritized_batch_keeps_a_sum_tree(library):
    noise = np.random.default_rng(0)
    rows, values = noise.integers(0, 1000, (2, 256)), noise.random(256)
    tree = store_limits.Tree(library, rows, 1000, values)
    tree(0)
    tree(1)
    leaves = np.zeros(1000)
    leaves[rows[0]] = values
    leaves[rows[1]] = values
    assert np.array_equal(tree.nodes[:1000], leaves)
    assert tree.nodes[-1] == pytest.approx(leaves.sum())


def test_plain_writes_take_the_bytes_that_the_store_writes(vectors):
    for column, array in zip(vectors.schema.columns, store_works.column_bytes(DATA), strict=True):
        assert (vectors.path / "columns" / f"{column.name}.bin").read_bytes() == array.tobytes()


@pytest.mark.parametrize("batch", [False, True])
def test_steps_are_played_into_the_episodes_they_come_from(tmp_path, batch):
    store = EpisodeStore.create(tmp_path / "played", store_works.SCHEMA)
    (store_works.play_batches if batch else store_works.play)(store, DATA.batches(8000) if batch else DATA.steps(8000))
    assert store.transition_count == 8000 and len(store) == 8 == ENVIRONMENTS
    for number, episode in enumerate(store.episodes):
        assert np.array_equal(episode.observation, DATA.observation[number])
        assert np.array_equal(episode.action, DATA.action[number])
        assert np.array_equal(episode.reward, DATA.reward[number])


def test_the_sparse_store_is_a_whole_store_that_takes_no_space(tmp_path):
    store = store_growth.sparse_store(tmp_path / "sparse", 20)
    assert (len(store), store.transition_count) == (20, 20 * EPISODE)
    assert sum(file.stat().st_blocks for file in (store.path / "columns").iterdir()) == 0
    assert offrl_store.check(store.path) == []
    batch = store.transitions(256, seed=0).sample()
    assert batch.index.max() > 19 * EPISODE and not batch.observation.any()


def test_a_forgotten_store_is_cold_and_a_touched_one_warm(tmp_path):
    store = store_works.vectors(tmp_path / "vectors", DATA)
    store_works.touch(store)
    assert store_growth.resident(store.path) == 1.0
    path = store.path
    del store
    store_growth.forget(path)
    if subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip() in ("tmpfs", "ramfs"):
        pytest.skip("a file system in memory keeps its pages")
    assert store_growth.resident(path) < 0.01


def test_the_ratio_is_that_of_rounds_not_of_medians():
    found = store_works.medians({"ours": [1.0, 20.0, 3.0], "limit": [1.0, 10.0, 1.0]})
    assert found == {"ours": 3.0, "limit": 1.0, "ratio": 2.0}
    assert store_works.scaled(found, 10.0) == {"ours": 30.0, "limit": 10.0, "ratio": 2.0}


def test_the_table_has_every_work_and_a_dash_for_what_a_peer_cannot_do():
    results = {name: {"ours": 10.0, "limit": 5.0, "ratio": 2.0} for name in bench.WORKS}
    del results["normals"]["limit"], results["normals"]["ratio"]
    text = bench.works_table(results, {"cpprb": {"figures": {"write": 24e6, "sample 256": 1234.5}, "notes": []}})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == [work.label for work in bench.WORKS.values()]
    assert rows[2] == ["256 transitions", "us", "10", "5", "2.00", "1,234", "-", "-", "-", "16", "1.28"]
    by_label = {row[0]: row for row in rows}
    assert by_label["write whole episodes"][5] == "24"
    assert by_label["1,536 normal numbers"][2:5] == ["10", "-", "-"]


def test_a_peer_that_is_missing_is_left_out_with_a_reason(tmp_path):
    script = ROOT / "benchmarks" / "peers" / "store_peer.py"
    run = subprocess.run([sys.executable, script, "nobody", "1000", "500", tmp_path], capture_output=True, text=True, check=True)
    answer = json.loads(run.stdout)
    assert answer["figures"] == {} and "No module named 'store_nobody'" in answer["notes"][0]
