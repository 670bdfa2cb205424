"""Every sampler with a bounded store, with lists of episodes, and with the caller's arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import KERNELS, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore, mix
from offrl_store.errors import InvalidInput, SnapshotEvicted

MAKERS: dict[str, Callable[..., Any]] = {
    "transitions": lambda store, **options: store.transitions(8, 0, **options),
    "epochs": lambda store, **options: store.transitions(8, 0, replacement=False, **options),
    "windows": lambda store, **options: store.windows(8, 4, 0, **options),
    "prioritized": lambda store, **options: store.prioritized(8, **options),
    "mix": lambda store, **options: mix([(store, 1), (store, 1)]).transitions(
        8, 0, **{name: [value, value] if name == "episodes" else value for name, value in options.items()}
    ),
}


def bounded(path: Path) -> EpisodeStore:
    store = EpisodeStore.create(path, SIMPLE, limit_transitions=200)
    with store.writer() as writer:
        for i in range(6):
            writer.append(numbered_episode(i))
    return store


def fill(store: EpisodeStore, numbers: range) -> None:
    with EpisodeStore.open(store.path).writer() as writer:
        for i in numbers:
            writer.append(numbered_episode(i))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_sampler_says_when_its_episodes_were_evicted(tmp_path, kernel, name):
    with using(kernel):
        store = bounded(tmp_path / "s")
        sampler = MAKERS[name](store)
        sampler.sample()
        fill(store, range(6, 30))
        with pytest.raises(SnapshotEvicted):
            sampler.sample()
        store.refresh()
        assert store.first > 0
        batch = MAKERS[name](store).sample()
        observation = batch.observation[:, -1] if name == "windows" else batch.observation
        assert np.array_equal(observation, store.column("observation")[batch.index])


@pytest.mark.parametrize("name", ["transitions", "windows", "prioritized"])
def test_only_the_episodes_of_the_sampler_count(tmp_path, name):
    store = bounded(tmp_path / "s")
    before = EpisodeStore.open(store.path)
    late = MAKERS[name](store, episodes=[5])
    everything = MAKERS[name](store)
    number = 6
    while EpisodeStore.open(store.path).first == before.first:
        fill(store, range(number, number + 1))
        number += 1
    late.sample()
    with pytest.raises(SnapshotEvicted):
        everything.sample()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_prioritized_sampler_forgets_what_the_store_dropped_and_keeps_the_rest(tmp_path, kernel):
    with using(kernel):
        store = bounded(tmp_path / "s")
        sampler = store.prioritized(8, alpha=1.0)
        total = sampler.transition_count
        sampler.update(np.arange(total), np.arange(total) + 1.0, numbers=True)
        rows = store.transitions(total, 0).gather(np.arange(total)).index.copy()
        number, before = 6, store.first
        while store.first == before:
            fill(store, range(number, number + 1))
            number += 1
            store.refresh()
        came = sampler.refresh()
        now = store.transitions(sampler.transition_count, 0).gather(np.arange(sampler.transition_count)).index
        kept = np.isin(now, rows)
        assert came == np.count_nonzero(~kept) > 0
        assert kept[: len(now) - came].all()
        np.testing.assert_allclose(sampler.priorities[kept], np.searchsorted(rows, now[kept]) + 1.0, rtol=1e-4)
        np.testing.assert_allclose(sampler.priorities[~kept], total, rtol=1e-4)
        batch = sampler.sample()
        assert np.array_equal(batch.observation, store.column("observation")[batch.index])


@pytest.mark.parametrize("name", MAKERS)
def test_a_list_of_episodes_goes_where_numbers_go(tmp_path, name):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(8)])
    by_list, by_number = (MAKERS[name](store, episodes=episodes).sample() for episodes in (store.episodes[2:6], [2, 3, 4, 5]))
    assert np.array_equal(by_list.index, by_number.index)
    other = write(tmp_path / "o", SIMPLE, [numbered_episode(i) for i in range(8)])
    with pytest.raises(InvalidInput, match="episodes given are of"):
        MAKERS[name](store, episodes=other.episodes[2:6])


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_is_written_into_the_memory_of_tensors(tmp_path, name):
    torch = pytest.importorskip("torch")
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(8)])
    shape = (8, 4) if name == "windows" else (8,)
    tensors = {
        "observation": torch.zeros((*shape, 3)),
        "action": torch.zeros(shape, dtype=torch.int64),
        "reward": torch.zeros(shape),
        "terminal": torch.zeros(shape),
        "index": torch.zeros(8, dtype=torch.int64),
    }
    batch = MAKERS[name](store, out={key: tensor.numpy() for key, tensor in tensors.items()}).sample()
    fresh = MAKERS[name](store).sample()
    for key, tensor in tensors.items():
        assert np.shares_memory(tensor.numpy(), getattr(batch, key))
        assert np.array_equal(tensor.numpy(), getattr(fresh, key)), key
