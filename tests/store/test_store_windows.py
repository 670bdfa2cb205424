"""The windows sampler equals a plain-Python oracle, with both kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, MEMORY, Oracle, drawn, stores, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore
from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.windows import STREAM

PARTS = ("observation", "action", "reward", "mask", "timesteps", "returns_to_go", "terminal", "index", "extra")


def window(oracle: Oracle, number: int, length: int):
    """The window that ends at a transition, step by step from the episode itself: one dict per step, {} before the episode."""
    episode, end, _, row = oracle.transitions[number]
    steps = []
    for t in range(end - length + 1, end + 1):
        if t < 0:
            steps.append({})
            continue
        steps.append(
            {
                "observation": oracle.each(episode.observation, lambda rows, t=t: oracle.stack(rows, t)),
                "action": oracle.each(episode.action, lambda rows, t=t: rows[t]),
                "reward": np.float32(episode.reward[t]),
                "mask": 1,
                "timesteps": t + 1,
                "returns_to_go": sum(float(r) for r in episode.reward[t:]),
                "terminal": float(episode.terminated and t == episode.steps - 1),
                "extra": oracle.each(episode.extra, lambda rows, t=t: rows[t]),
            }
        )
    return row, steps


def agree(batch, sample: int, row: int, steps: list[dict]) -> None:
    assert batch.index[sample] == row
    for name in PARTS:
        got = getattr(batch, name)
        if name == "index":
            continue
        for key in got if isinstance(got, Mapping) else [None]:
            array = (got if key is None else got[key])[sample]
            assert len(array) == len(steps)
            for i, step in enumerate(steps):
                due = 0 if not step else step[name] if key is None else step[name][key]
                if name == "returns_to_go":
                    np.testing.assert_allclose(array[i], due, rtol=1e-6, atol=1e-6)
                else:
                    np.testing.assert_array_equal(array[i], np.broadcast_to(due, array[i].shape), err_msg=f"{name} of step {i}")


@pytest.mark.parametrize("kernel", KERNELS)
@given(case=stores(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_batch_equals_the_oracle_for_any_store_and_any_arguments(kernel, case, data):
    schema, episodes = case
    stack, pad, length = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["zero", "first"])), data.draw(st.integers(1, 14))
    chosen = data.draw(st.none() | st.lists(st.integers(0, len(episodes) - 1), min_size=1, max_size=4))
    seed, step, size = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**64 - 2)), data.draw(st.sampled_from([1, 3, 140]))
    oracle = Oracle(episodes, 1, 1.0, stack, pad, False, chosen)
    options = {"frame_stack": stack, "stack_pad": pad, "episodes": chosen, "extra": tuple(schema.extra)}
    with using(kernel), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", schema, episodes)
        if not oracle.transitions:
            with pytest.raises(EmptyStore):
                store.windows(size, length, seed, **options)
            return
        sampler = store.windows(size, length, seed, **options)
        assert sampler.transition_count == len(oracle.transitions)
        sampler.seek(step)
        batch = sampler.sample()
        assert sampler.step == step + 1
        for sample, number in list(enumerate(drawn(seed, step, STREAM, len(oracle.transitions), size)))[-7:]:
            agree(batch, sample, *window(oracle, number, length))


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6), data=st.data())
@settings(max_examples=50, deadline=None)
def test_both_kernels_give_the_same_bits_for_long_episodes(lengths, data):
    length, seed = data.draw(st.integers(1, 100)), data.draw(st.integers(0, 99))
    noise = np.random.default_rng(seed)
    episodes = [
        type(numbered_episode(0))(
            noise.standard_normal((t + 1, 3), np.float32),
            noise.integers(0, 5, t),
            noise.standard_normal(t, np.float32),
            bool(t % 2),
            {"row": np.arange(t)},
        )
        for t in lengths
    ]
    batches = []
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = write(Path(folder) / "s", SIMPLE, episodes)
        for kernel in KERNELS:
            with using(kernel):
                batches.append(store.windows(150, length, seed, extra=["row"]).sample())
    for name in PARTS:
        left, right = (getattr(batch, name) for batch in batches)
        if isinstance(left, dict):
            left, right = left["row"], right["row"]
        assert np.array_equal(left, right), name


@pytest.mark.parametrize("kernel", KERNELS)
def test_batch_k_does_not_depend_on_how_it_is_reached(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(9)])
        walked, jumped = store.windows(32, 5, 11), store.windows(32, 5, 11)
        indices = [walked.sample().index.copy() for _ in range(5)]
        for k in (4, 0, 2):
            jumped.seek(k)
            assert np.array_equal(jumped.sample().index, indices[k])
        assert not np.array_equal(indices[0], indices[1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_callers_arrays_are_filled(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(5)])
        fresh = store.windows(6, 4, 0, extra=["row"]).sample()
        wide = {
            "observation": np.full((6, 5, 3), 9, np.float32),
            "mask": np.full((6, 6), 9, np.float32),
            "timesteps": np.full((6, 6), 9, np.int64),
            "action": np.full((6, 6), 9, np.int64),
        }
        out = {
            "observation": wide["observation"][:, :4],
            **{name: wide[name][:, :4] for name in ("mask", "timesteps", "action")},
            "returns_to_go": np.full((6, 4), 9, np.float32),
            "extra": {"row": np.full((6, 4), 9, np.int64)},
        }
        sampler = store.windows(6, 4, 0, extra=["row"], out=out)
        batch = sampler.sample()
        for name in ("observation", "mask", "timesteps", "action", "returns_to_go", "reward"):
            assert np.array_equal(getattr(batch, name), getattr(fresh, name)), name
        assert np.array_equal(batch.extra["row"], fresh.extra["row"])
        for name, array in wide.items():
            assert np.shares_memory(array, getattr(batch, name))
            assert (array[:, 4:] == 9).all()
        assert sampler.sample() is batch


@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_support_epochs_too(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(5)])
        sampler = store.windows(7, 3, 0, replacement=False, drop_last=False)
        seen = np.concatenate([sampler.sample().index.copy() for _ in range(sampler.batches_per_epoch)])
        assert len(seen) == len(np.unique(seen)) == sampler.transition_count


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"length": 0}, "length 0"),
        ({"length": 2.0}, "length 2.0"),
        ({"seed": -1}, "seed -1"),
        ({"frame_stack": 0}, "frame_stack 0"),
        ({"stack_pad": "last"}, "stack_pad 'last'"),
        ({"episodes": [99]}, "episode 99"),
        ({"episodes": "all"}, "episode numbers"),
        ({"extra": ["none"]}, "'none'"),
        ({"out": {"masks": np.zeros(4)}}, "'masks'"),
        ({"out": {"mask": np.zeros((4, 3))}}, r"float64\[4, 3\]"),
        ({"out": {"mask": np.zeros((4, 6), np.float32)[:, ::2]}}, "contiguous"),
        ({"out": [np.zeros(4)]}, "out is list"),
        ({"replacement": 1}, "replacement 1"),
        ({"drop_last": None}, "drop_last None"),
        ({"replacement": False, "batch_size": 10_000}, "batch_size 10000 is more"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, message):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    with pytest.raises(InvalidInput, match=message):
        store.windows(**{"batch_size": 4, "length": 3, "seed": 0, **arguments})


def test_an_empty_store_is_an_error(tmp_path):
    with pytest.raises(EmptyStore):
        EpisodeStore.create(tmp_path / "s", SIMPLE).windows(4, 3, 0)
