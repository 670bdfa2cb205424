"""The transitions sampler equals a plain-Python oracle, with both kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, Oracle, drawn, rows, stores, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema
from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.sampler import STREAM


def agree(batch, expected) -> None:
    """Every part of the batch equals the oracle's, value for value."""
    for i, one in enumerate(expected):
        for name in ("observation", "next_observation", "action", "next_action", "extra"):
            got = getattr(batch, name)
            if got is None:
                continue
            pairs = [(got[key][i], one[name][key]) for key in got] if isinstance(got, dict) else [(got[i], one[name])]
            for left, right in pairs:
                np.testing.assert_array_equal(left, right, err_msg=f"{name} of sample {i}")
                assert left.shape == np.shape(right)
        assert batch.index[i] == one["index"]
        assert batch.terminal[i] == one["terminal"]
        np.testing.assert_allclose(batch.reward[i], one["reward"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.discount[i], one["discount"], rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@given(case=stores(), data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_batch_equals_the_oracle_for_any_store_and_any_arguments(kernel, case, data):
    schema, episodes = case
    options = {
        "n_steps": data.draw(st.integers(1, 12)),
        "gamma": data.draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])),
        "frame_stack": data.draw(st.integers(1, 5)),
        "stack_pad": data.draw(st.sampled_from(["zero", "first"])),
        "next_action": data.draw(st.booleans()),
    }
    chosen = data.draw(st.none() | st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=4))
    seed, step, size = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**64 - 2)), data.draw(st.sampled_from([1, 3, 150]))
    oracle = Oracle(episodes, chosen=chosen, **options)
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", schema, episodes)
        if not oracle.transitions:
            with pytest.raises(EmptyStore):
                store.transitions(size, seed, episodes=chosen, **options)
            return
        sampler = store.transitions(size, seed, episodes=chosen, extra=tuple(schema.extra), **options)
        assert sampler.transition_count == len(oracle.transitions)
        sampler.seek(step)
        agree(sampler.sample(), oracle.batch(seed, step, size))
        assert sampler.step == step + 1


def test_both_kernels_give_the_same_bits(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(30)])
    batches = []
    for kernel in KERNELS:
        with using(kernel):
            sampler = store.transitions(500, 3, n_steps=4, frame_stack=2)
            sampler.seek(7)
            batches.append(sampler.sample())
    for name in ("observation", "action", "reward", "next_observation", "terminal", "discount", "index"):
        assert np.array_equal(getattr(batches[0], name), getattr(batches[1], name)), name


@pytest.mark.parametrize("kernel", KERNELS)
def test_pixels_stack_in_one_block_and_into_given_arrays_alike(tmp_path, kernel):
    noise = np.random.default_rng(0)
    schema = Schema(Field("uint8", (1, 40, 40)), Field("int32", (), 0, 3))
    episodes = [
        Episode(rows(schema.observation, t + 1, noise), noise.integers(0, 4, t), np.ones(t, np.float32), t % 2 == 0) for t in (1, 2, 9, 30)
    ]
    with using(kernel):
        store = write(tmp_path / "s", schema, episodes)
        for pad in ("zero", "first"):
            oracle = Oracle(episodes, 1, 0.99, 4, pad, False, None).batch(5, 0, 64)
            shared = store.transitions(64, 5, frame_stack=4, stack_pad=pad).sample()
            assert np.shares_memory(shared.observation, shared.next_observation)
            agree(shared, oracle)
            out = {name: np.full((64, 4, 40, 40), 7, np.uint8) for name in ("observation", "next_observation")}
            given_out = store.transitions(64, 5, frame_stack=4, stack_pad=pad, out=out).sample()
            assert given_out.observation is out["observation"]
            agree(given_out, oracle)


@pytest.mark.parametrize("kernel", KERNELS)
def test_batch_k_does_not_depend_on_how_it_is_reached(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(9)])
        walked, jumped = store.transitions(32, 11), store.transitions(32, 11)
        indices = [walked.sample().index.copy() for _ in range(5)]
        for k in (4, 0, 2):
            jumped.seek(k)
            assert np.array_equal(jumped.sample().index, indices[k])
        assert not np.array_equal(indices[0], indices[1])
        assert not np.array_equal(store.transitions(32, 12).sample().index, indices[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_batch_size_prefix_draws_the_same_transitions(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(9)])
        assert np.array_equal(store.transitions(1000, 1).sample().index[:77], store.transitions(77, 1).sample().index)


def test_arrays_are_reused_and_the_callers_are_filled(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(5)])
    buffer = np.zeros((8, 5), np.float32)
    sampler = store.transitions(8, 0, out={"observation": buffer[:, 1:4], "reward": np.zeros(8, np.float32)})
    first, second = sampler.sample(), sampler.sample()
    assert first is second
    assert np.array_equal(buffer[:, 1:4], store.column("observation")[second.index])
    assert not buffer[:, [0, 4]].any()


def test_every_transition_is_drawn_about_equally_often(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(6)])
    sampler = store.transitions(10_000, 0)
    counts = np.unique(np.concatenate([sampler.sample().index.copy() for _ in range(20)]), return_counts=True)[1]
    assert len(counts) == sampler.transition_count == store.transition_count
    mean = 200_000 / sampler.transition_count
    assert np.abs(counts - mean).max() < 6 * np.sqrt(mean)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gather_returns_the_named_transitions(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(7)])
        sampler = store.transitions(32, 4)
        expected = sampler.sample().index.copy()
        numbers = np.array(drawn(4, 0, STREAM, sampler.transition_count, 32))
        assert np.array_equal(sampler.gather(numbers).index, expected)
        for bad in (-1, sampler.transition_count):
            numbers[3] = bad
            with pytest.raises(InvalidInput, match="transition numbers"):
                sampler.gather(numbers)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 2.5}, "batch_size 2.5"),
        ({"seed": -1}, "seed -1"),
        ({"n_steps": 0}, "n_steps 0"),
        ({"gamma": 1.5}, "gamma 1.5"),
        ({"gamma": float("nan")}, "gamma nan"),
        ({"frame_stack": 0}, "frame_stack 0"),
        ({"stack_pad": "last"}, "stack_pad 'last'"),
        ({"episodes": [99]}, "episode 99"),
        ({"episodes": [-1]}, "episode -1"),
        ({"episodes": [0.5]}, "episode numbers"),
        ({"extra": ["none"]}, "'none'"),
        ({"out": {"observations": np.zeros(4)}}, "'observations'"),
        ({"out": {"observation": np.zeros((4, 3))}}, r"float64\[4, 3\]"),
        ({"out": {"reward": np.zeros(8, np.float32)[::2]}}, "contiguous"),
        ({"out": {"observation": {"a": np.zeros((4, 3), np.float32)}}}, "observation is dict"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, message):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    with pytest.raises(InvalidInput, match=message):
        store.transitions(**{"batch_size": 4, "seed": 0, **arguments})


def test_an_empty_store_is_an_error(tmp_path):
    with pytest.raises(EmptyStore):
        EpisodeStore.create(tmp_path / "s", SIMPLE).transitions(4, 0)


def test_a_huge_n_step_stops_at_the_end_of_the_episode(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(4)])
    batch = store.transitions(64, 0, n_steps=2**40, gamma=1.0, episodes=[3]).sample()
    assert (batch.terminal == 1).all()
    assert (batch.discount == 1).all()


def test_a_store_of_many_uneven_episodes_finds_the_right_rows(tmp_path):
    lengths = [1] * 500 + [700] + [1] * 300 + [5] * 100
    numbers = [1000 * i + np.arange(t) for i, t in enumerate(lengths)]
    store = write(
        tmp_path / "s",
        SIMPLE,
        [
            Episode(
                np.zeros((len(row) + 1, 3), np.float32), np.zeros(len(row), np.int32), np.zeros(len(row), np.float32), True, {"row": row}
            )
            for row in numbers
        ],
    )
    number = np.concatenate(numbers)
    for kernel in KERNELS:
        with using(kernel):
            sampler = store.transitions(len(number), 0, extra=["row"])
            assert np.array_equal(sampler.gather(np.arange(len(number))).extra["row"], number)
