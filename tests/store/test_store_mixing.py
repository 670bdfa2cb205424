"""Mixed batches hold each store's share of its own transitions; selections hold the episodes that meet the conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, drawn, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore, Field, Schema, mix
from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.mixing import STREAM
from offrl_store.rng import stream_id


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[EpisodeStore]:
    folder = tmp_path_factory.mktemp("mix")
    return [write(folder / str(i), SIMPLE, [numbered_episode(n) for n in range(20 * i, 20 * i + 4 + 3 * i)]) for i in range(3)]


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    weights=st.lists(st.floats(0.05, 5), min_size=1, max_size=3),
    size=st.integers(60, 200),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 2),
    exact=st.booleans(),
    n_steps=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_each_store_contributes_its_share_of_its_own_transitions(three, kernel, weights, size, seed, step, exact, n_steps):
    due = [weight / sum(weights) * size for weight in weights]
    with using(kernel):
        mixed = mix(zip(three, weights, strict=False))
        if exact and min(due) < 1:
            return
        sampler = mixed.transitions(size, seed, exact=exact, n_steps=n_steps, extra=["row"])
        sampler.seek(step)
        batch = sampler.sample()
        if exact:
            assert all(abs(count - value) < 1 + 1e-6 for count, value in zip(sampler.counts, due, strict=True))
        else:
            borders = np.round(np.cumsum(due)[:-1] / size * 2**53)
            assert sampler.counts == tuple(
                np.bincount(np.searchsorted(borders, drawn(seed, step, STREAM, 2**53, size), side="right"), minlength=len(weights))
            )
        assert sum(sampler.counts) == size
        start = 0
        for place, count in enumerate(sampler.counts):
            part = slice(start, start + count)
            assert (batch.dataset[part] == place).all()
            alone = three[place].transitions(max(count, 1), seed, n_steps=n_steps, extra=["row"])
            numbers = drawn(seed, step, stream_id(f"transitions/{place}"), alone.transition_count, count)
            if count:
                expected = alone.gather(np.array(numbers))
                for name in ("observation", "action", "reward", "next_observation", "terminal", "discount", "index"):
                    assert np.array_equal(getattr(batch, name)[part], getattr(expected, name)), name
                assert np.array_equal(batch.extra["row"][part], expected.extra["row"])
            start += count


def test_drawn_shares_are_right_on_average(three):
    sampler = mix([(three[0], 1), (three[1], 2), (three[2], 5)]).transitions(1000, 0, exact=False)
    counts = np.sum([(sampler.sample(), sampler.counts)[1] for _ in range(100)], axis=0)
    assert np.abs(counts - np.array([12_500, 25_000, 62_500])).max() < 800


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("exact", [True, False])
def test_windows_mix_too_and_batch_k_does_not_depend_on_how_it_is_reached(three, kernel, exact):
    with using(kernel):
        mixed = mix([(three[0], 0.25), (three[2], 0.75)])
        walked, jumped = (mixed.windows(16, 5, 3, exact=exact, episodes=[[0, 2], None]) for _ in range(2))
        batches = [(walked.sample(), walked._batch.index.copy(), walked._batch.observation.copy())[1:] for _ in range(4)]
        for k in (3, 0, 2):
            jumped.seek(k)
            batch = jumped.sample()
            assert np.array_equal(batch.index, batches[k][0])
            assert np.array_equal(batch.observation, batches[k][1])
        count = jumped.counts[0]
        assert count == 4 or not exact
        assert np.isin(batch.index[:count], three[0].windows(500, 1, 0, episodes=[0, 2]).sample().index).all()
        for place, part in ((0, slice(0, count)), (2, slice(count, None))):
            assert np.array_equal(batch.observation[part, -1], three[place].column("observation")[batch.index[part]])


@pytest.mark.parametrize("kernel", KERNELS)
def test_stacked_pixels_mix_in_one_block(tmp_path, kernel):
    with using(kernel):
        schema, noise = Schema(Field("uint8", (1, 40, 40)), Field("int32", (), 0, 3)), np.random.default_rng(0)
        parts = [
            write(
                tmp_path / str(i),
                schema,
                [
                    Episode(noise.integers(0, 255, (t + 1, 1, 40, 40), np.uint8), noise.integers(0, 4, t), np.ones(t, np.float32))
                    for t in (1, 5, 9)
                ],
            )
            for i in range(2)
        ]
        sampler = mix([(part, 1) for part in parts]).transitions(20, 4, frame_stack=3)
        batch = sampler.sample()
        for place in range(2):
            alone = parts[place].transitions(10, 4, frame_stack=3)
            expected = alone.gather(np.array(drawn(4, 0, stream_id(f"transitions/{place}"), alone.transition_count, 10)))
            assert np.array_equal(batch.observation[10 * place : 10 * place + 10], expected.observation)
            assert np.array_equal(batch.next_observation[10 * place : 10 * place + 10], expected.next_observation)


def test_the_callers_arrays_are_filled(three):
    out = {"observation": np.zeros((8, 3), np.float32), "dataset": np.full(8, 9)}
    batch = mix([(three[0], 1), (three[1], 1)]).transitions(8, 0, out=out).sample()
    assert batch.observation is out["observation"]
    assert batch.dataset is out["dataset"]
    assert out["dataset"].tolist() == [0] * 4 + [1] * 4
    assert set(out) == {"observation", "dataset"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
        ({"exact": 1}, "exact 1"),
        ({"rows": [0]}, "'rows'"),
        ({"replacement": False, "exact": False}, "replacement=False needs exact=True"),
        ({"replacement": 1}, "replacement 1"),
        ({"episodes": [[0]]}, "list of 2"),
        ({"episodes": [[0], [99]]}, "episode 99"),
        ({"size": 3}, "size"),
        ({"batch_size": 1}, "store 1 would get"),
        ({"out": {"nothing": np.zeros(4)}}, "'nothing'"),
        ({"out": {"dataset": np.zeros(4, np.int32)}}, "dataset is int32"),
    ],
)
def test_a_wrong_argument_is_named(three, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        mix([(three[0], 1), (three[1], 1)]).transitions(**{"batch_size": 4, "seed": 0, **arguments})


def test_a_wrong_mix_is_named(three, tmp_path):
    other = write(
        tmp_path / "o", Schema(Field("float32", (3,)), Field("int32", (), 0, 4)), [Episode(np.zeros((2, 3), np.float32), [0], [0.0])]
    )
    for pairs, message in (
        ([], "no store"),
        ([three[0]], "pairs"),
        ([(three[0], 0)], "weight of store 0"),
        ([(three[0], -1)], "weight -1"),
        ([(three[0], float("nan"))], "weight nan"),
        ([("x", 1)], "str"),
        ([(three[0], 1), (other, 1)], "store 1 has other fields"),
    ):
        with pytest.raises(InvalidInput, match=message):
            mix(pairs)
    with pytest.raises(EmptyStore):
        mix([(three[0], 1), (EpisodeStore.create(tmp_path / "e", SIMPLE), 1)]).transitions(4, 0)


# --- Selecting episodes ---------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_selection_holds_what_meets_every_condition(three, data):
    store = three[2]
    returns, steps = store.returns.tolist(), store.episode_table["steps"].tolist()
    options = {
        "min_return": data.draw(st.none() | st.sampled_from(returns)),
        "max_return": data.draw(st.none() | st.sampled_from(returns)),
        "min_steps": data.draw(st.none() | st.integers(0, 40)),
        "max_steps": data.draw(st.none() | st.sampled_from(steps)),
        "terminated": data.draw(st.none() | st.booleans()),
    }
    fraction = data.draw(st.none() | st.floats(0.01, 1))
    met = {
        "min_return": lambda e, limit: e.ret >= limit,
        "max_return": lambda e, limit: e.ret <= limit,
        "min_steps": lambda e, limit: e.steps >= limit,
        "max_steps": lambda e, limit: e.steps <= limit,
        "terminated": lambda e, end: e.terminated == end,
    }
    due = [
        i for i, episode in enumerate(store.episodes) if all(value is None or met[name](episode, value) for name, value in options.items())
    ]
    if fraction is not None:
        due = sorted(sorted(due, key=lambda i: -returns[i])[: math.ceil(fraction * len(due) - 1e-9)])
    found = store.select(**options, top_fraction=fraction)
    assert found.tolist() == due
    if due:
        assert store.transitions(4, 0, episodes=found).transition_count <= sum(steps[i] for i in due)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"top_fraction": 0.0}, "top_fraction 0"),
        ({"top_fraction": 1.5}, "top_fraction 1.5"),
        ({"min_return": "x"}, "min_return 'x'"),
        ({"max_return": float("nan")}, "max_return nan"),
        ({"min_steps": 1.5}, "min_steps 1.5"),
        ({"max_steps": -1}, "max_steps -1"),
        ({"terminated": 1}, "terminated 1"),
    ],
)
def test_a_wrong_condition_is_named(three, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        three[0].select(**arguments)
