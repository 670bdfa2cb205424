"""Random schemas, episodes and arguments, for what the samplers' own property tests leave out: bounded stores, lists of rows, mixes and
epochs of random stores, and views. The oracle is a plain Python loop over the episodes that were written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, Oracle, drawn, same, same_episode, stores, using, write

from offrl_store import Episode, EpisodeStore, check, concat, from_episodes, mix, to_arrays
from offrl_store.errors import EmptyStore
from offrl_store.rng import permutation, stream_id
from offrl_store.sampler import ORDER_STREAM, STREAM

PARTS = ("observation", "next_observation", "action", "next_action", "extra")


def agree(batch, place: int, one: dict) -> None:
    """Sample ``place`` of a batch is what the oracle says."""
    for name in PARTS:
        got = getattr(batch, name)
        for key in () if got is None else got if isinstance(got, Mapping) else (None,):
            array, due = (got[place], one[name]) if key is None else (got[key][place], one[name][key])
            np.testing.assert_array_equal(array, due, err_msg=f"{name} of sample {place}")
            assert array.shape == np.shape(due)
    assert batch.terminal[place] == one["terminal"]
    np.testing.assert_allclose(batch.reward[place], one["reward"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch.discount[place], one["discount"], rtol=1e-6)


OPTIONS = st.fixed_dictionaries(
    {
        "n_steps": st.integers(1, 12),
        "gamma": st.sampled_from([0.0, 0.9, 1.0]),
        "frame_stack": st.integers(1, 4),
        "stack_pad": st.sampled_from(["zero", "first"]),
        "next_action": st.booleans(),
    }
)


@pytest.mark.parametrize("kernel", KERNELS)
@given(case=stores(), options=OPTIONS, limit=st.integers(1, 40), commits=st.integers(1, 4), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=80, deadline=None)
def test_a_bounded_store_samples_what_it_still_holds(kernel, case, options, limit, commits, seed):
    schema, episodes = case
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = EpisodeStore.create(Path(folder) / "s", schema, limit_transitions=limit)
        with store.writer() as writer:
            for number, episode in enumerate(episodes):
                writer.append(episode)
                if number % commits == 0:
                    writer.commit()
        kept = episodes[store.first :]
        assert len(kept) == len(store) >= 1 and all(same_episode(a, b) for a, b in zip(kept, store.episodes, strict=True))
        counts = [e.steps - (e.final_missing and not e.terminated) for e in episodes]
        assert sum(counts[store.first :]) <= limit or len(kept) == 1
        assert not store.first or sum(counts[store.first - 1 :]) > limit  # not one more than needed was given back
        oracle = Oracle(kept, chosen=None, **options)
        if not oracle.transitions:
            with pytest.raises(EmptyStore):
                store.transitions(5, seed, **options)
            return
        batch = store.transitions(5, seed, extra=tuple(schema.extra), **options).sample()
        for place, number in enumerate(drawn(seed, 0, STREAM, len(oracle.transitions), 5)):
            agree(batch, place, oracle.one(*oracle.transitions[number]))
        assert check(store.path) == []


@pytest.mark.parametrize("kernel", KERNELS)
@given(case=stores(), options=OPTIONS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_chosen_rows_are_sampled_in_their_order(kernel, case, options, data):
    """Random draws and epochs over a list of rows, given in any order and with repetitions."""
    schema, episodes = case
    oracle = Oracle(episodes, chosen=None, **options)
    by_row = {row: (episode, t, limit, row) for episode, t, limit, row in oracle.transitions}
    if not by_row:
        return
    rows = data.draw(st.lists(st.sampled_from(sorted(by_row)), min_size=1, max_size=12))
    seed, step, size = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**64 - 2)), data.draw(st.integers(1, 12))
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", schema, episodes)
        sampler = store.transitions(size, seed, rows=rows, extra=tuple(schema.extra), **options)
        sampler.seek(step)
        batch = sampler.sample()
        due = [rows[number] for number in drawn(seed, step, STREAM, len(rows), size)]
        assert batch.index.tolist() == due
        for place, row in enumerate(due):
            agree(batch, place, oracle.one(*by_row[row]))
        epochs = store.transitions(size, seed, rows=rows, replacement=False, drop_last=False, **options)
        for epoch in range(2):
            order = permutation(seed, epoch, ORDER_STREAM, len(rows), len(rows))
            due, at = [rows[number] for number in order], 0
            for batch in epochs:
                for place, row in enumerate(batch.index.tolist()):
                    assert row == due[at]
                    agree(batch, place, oracle.one(*by_row[row]))
                    at += 1
            assert at == len(rows)


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    case=stores(),
    options=OPTIONS,
    cut=st.integers(1, 7),
    replacement=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 1000),
    size=st.integers(2, 40),
    share=st.floats(0.3, 0.7),
)
@settings(max_examples=100, deadline=None)
def test_mixes_of_random_stores_give_each_one_s_own_transitions(kernel, case, options, cut, replacement, seed, step, size, share):
    schema, episodes = case
    parts = [episodes[:cut], episodes[cut:]]
    oracles = [Oracle(part, chosen=None, **options) for part in parts]
    if not all(oracle.transitions for oracle in oracles):
        return
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        made = [write(Path(folder) / str(i), schema, part) for i, part in enumerate(parts)]
        sampler = mix([(made[0], share), (made[1], 1 - share)]).transitions(
            size, seed, replacement=replacement, extra=tuple(schema.extra), **options
        )
        sampler.seek(step)
        batch, at = sampler.sample(), 0
        for place, oracle in enumerate(oracles):
            count, total = sampler.counts[place], len(oracle.transitions)
            if replacement:
                numbers = drawn(seed, step, stream_id(f"transitions/{place}"), total, count)
            else:
                stream = stream_id(f"transitions/{place}/epochs")
                numbers = [
                    int(permutation(seed, n // total, stream, total, 1, n % total)[0]) for n in range(step * count, (step + 1) * count)
                ]
            for number in numbers:
                assert batch.dataset[at] == place
                agree(batch, at, oracle.one(*oracle.transitions[number]))
                at += 1
        assert at == size


def row(arrays, at: int):
    """Row ``at`` of an array, or of every array of a dict."""
    return Oracle.each(arrays, lambda rows: rows[at])


@given(case=stores(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_views_show_what_was_written(case, data):
    """Flat arrays, transitions, joins and stores made of the episodes of another, for any schema."""
    schema, episodes = case
    chosen = data.draw(st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=5))
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", schema, episodes)
        arrays = to_arrays(store, chosen, next_observations=True)
        at = 0
        for number in chosen:
            episode = episodes[number]
            for t in range(episode.steps):
                assert same(row(arrays["observations"], at), row(episode.observation, t))
                assert same(row(arrays["actions"], at), row(episode.action, t))
                assert arrays["rewards"][at] == episode.reward[t]
                last = t == episode.steps - 1
                assert arrays["terminals"][at] == (last and episode.terminated)
                assert arrays["timeouts"][at] == (last and not episode.terminated)
                if not (last and episode.final_missing):
                    assert same(row(arrays["next_observations"], at), row(episode.observation, t + 1))
                at += 1
        assert at == len(arrays["rewards"])
        due = [
            (number, t)
            for number in chosen
            for t in range(episodes[number].steps - (episodes[number].final_missing and not episodes[number].terminated))
        ]
        transitions = store.episodes.take(chosen).transitions
        assert [(one.number, one.t) for one in transitions] == due
        assert list(zip(transitions.numbers.tolist(), transitions.steps.tolist(), strict=True)) == due
        joined = concat(Path(folder) / "j", [store.episodes.take(chosen), store])
        assert all(same_episode(joined.episodes[i], episodes[n]) for i, n in enumerate([*chosen, *range(len(episodes))]))
        again = from_episodes(Path(folder) / "f", episodes)
        assert all(same_episode(a, b) for a, b in zip(again.episodes, episodes, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=5), length=st.integers(4, 40), n=st.integers(4, 50), stack=st.integers(4, 9)
)
@settings(max_examples=60, deadline=None)
def test_arguments_longer_than_every_episode_stop_at_its_ends(kernel, lengths, length, n, stack):
    """Windows, returns and stacks that are all longer than any episode never take in a neighbour's rows."""
    episodes = [
        Episode(
            np.full((t + 1, 1), 10.0 * i + 1, np.float32), np.full((t, 1), i + 1, np.float32), np.full(t, i + 1, np.float32), bool(i % 2)
        )
        for i, t in enumerate(lengths)
    ]
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = from_episodes(Path(folder) / "s", episodes)
        owner = np.repeat(np.arange(len(lengths)), np.array(lengths) + 1)
        batch = store.transitions(60, 0, n_steps=n, gamma=1.0, frame_stack=stack).sample()
        e = owner[batch.index]
        left = np.cumsum(np.array(lengths) + 1)[e] - 1 - batch.index
        assert np.array_equal(batch.reward, left * (e + 1))
        assert np.array_equal(batch.terminal, e % 2)
        assert ((batch.observation == 0) | (batch.observation == (10.0 * e + 1)[:, None])).all()
        assert ((batch.next_observation == 0) | (batch.next_observation == (10.0 * e + 1)[:, None])).all()
        windows = store.windows(60, length, 0).sample()
        e = owner[windows.index]
        assert np.array_equal(windows.reward, windows.mask * (e + 1)[:, None])
        assert (windows.mask.sum(1) <= np.array(lengths)[e]).all()
        assert np.array_equal(windows.observation[..., 0], windows.mask * (10.0 * e + 1)[:, None])
