"""stats(): the numbers of NumPy over the same steps, computed once per snapshot."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from store_cases import stores, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore, check, stats
from offrl_store.errors import EmptyStore


@settings(max_examples=40, deadline=None)
@given(stores())
def test_stats_are_those_of_numpy_over_all_steps(tmp_path_factory, case):
    schema, episodes = case
    store = write(tmp_path_factory.mktemp("s") / "s", schema, episodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "CHUNK_BYTES", 64)
        found = store.stats()
    assert (found["episodes"], found["steps"]) == (len(episodes), sum(e.steps for e in episodes))
    assert np.isclose(found["return"]["mean"], np.mean([e.ret for e in episodes]))
    assert sum(found["length"]["histogram"]) == len(episodes)
    for column in schema.columns:
        rows = np.concatenate(
            [np.asarray(getattr(e, column.role) if column.key is None else getattr(e, column.role)[column.key]) for e in episodes]
        ).astype(np.float64)
        axis = 0 if int(np.prod(column.field.shape)) <= stats.LARGEST_ROW else None
        for name in ("mean", "std", "min", "max"):
            assert np.allclose(found["fields"][column.name][name], getattr(rows, name)(axis=axis), atol=1e-9), (column, name)
        if column.field.discrete:
            assert found["fields"][column.name]["counts"] == np.bincount(rows.astype(int), minlength=column.field.n).tolist()


def test_stats_are_computed_once_for_a_snapshot(tmp_path, monkeypatch):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(5)])
    found = store.stats()
    with monkeypatch.context() as patch:
        patch.setattr(stats, "_field", None)
        assert EpisodeStore.open(store.path).stats() == found
    with store.writer() as writer:
        writer.append(numbered_episode(5))
    assert store.stats()["episodes"] == 6
    file = store.path / stats.STATS_FILE
    file.write_text(file.read_text().replace('"episodes": 6', '"episodes": 7'))
    assert "stats.json" in check(store.path)[0]
    assert store.stats()["episodes"] == 6
    assert check(store.path) == []
    assert json.loads(file.read_text())["stats"] == store.stats()


def test_an_empty_store_has_no_stats(tmp_path):
    with pytest.raises(EmptyStore):
        EpisodeStore.create(tmp_path / "s", SIMPLE).stats()


def test_stats_of_a_bounded_store_are_of_what_it_holds(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", SIMPLE, limit_transitions=100)
    with store.writer() as writer:
        for i in range(40):
            writer.append(numbered_episode(i))
    assert store.first > 0
    rewards = np.concatenate([numbered_episode(i).reward for i in range(store.first, 40)]).astype(np.float64)
    assert np.isclose(store.stats()["fields"]["reward"]["std"], rewards.std())
