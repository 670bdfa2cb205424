"""Sampling without replacement: every epoch is an order of all transitions, computed without a table."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, philox, using, write
from store_numbered import SIMPLE, numbered_episode

from offrl_store import rng
from offrl_store.errors import InvalidInput
from offrl_store.sampler import ORDER_STREAM


def ordered(seed: int, epoch: int, stream: int, total: int, number: int) -> int:
    """Element ``number`` of the order, in plain Python."""
    if total == 1:
        return 0
    mask, a = 0xFFFFFFFF, math.isqrt(total - 1) + 1
    b = -(-total // a)
    words = [word for block in range(5) for word in philox(seed, (block, epoch & mask, epoch >> 32, stream))]

    def mixed(x: int, key: int, other: int, size: int) -> int:
        h = (x ^ key) * 0x9E3779B1 & mask
        h = ((h ^ h >> 15) + other & mask) * 0x85EBCA6B & mask
        h = (h ^ h >> 13) * 0xC2B2AE35 & mask
        return (h ^ h >> 16) * size >> 32

    while True:
        left, right = divmod(number, b)
        for r in range(10):
            if r % 2:
                right = (right + mixed(left, words[2 * r], words[2 * r + 1], b)) % b
            else:
                left = (left + mixed(right, words[2 * r], words[2 * r + 1], a)) % a
        number = left * b + right
        if number < total:
            return number


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    total=st.one_of(st.integers(1, 400), st.integers(1, 2**62 - 1)),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_an_order_equals_the_oracle(kernel, total, seed, epoch, data):
    count = min(total, data.draw(st.integers(1, 200)))
    first = data.draw(st.integers(0, total - count))
    with using(kernel):
        found = rng.permutation(seed, epoch, 5, total, count, first)
    for i in {0, count // 2, count - 1}:
        assert found[i] == ordered(seed, epoch, 5, total, first + i)
    assert len(np.unique(found)) == count


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 64, 65, 127, 1000, 4097])
def test_an_order_holds_every_number_once(kernel, total):
    with using(kernel):
        for seed in range(3):
            assert np.array_equal(np.sort(rng.permutation(seed, 1, 0, total, total)), np.arange(total))


@pytest.mark.parametrize("total", [2, 3, 4, 5])
def test_all_orders_of_a_few_are_about_equally_frequent(total):
    keys = 4000 * total
    found = [tuple(rng.permutation(seed, 0, 0, total, total)) for seed in range(keys)]
    counts = (
        [found.count(order) for order in itertools.permutations(range(total))]
        if total < 5
        else np.unique(found, axis=0, return_counts=True)[1]
    )
    mean = keys / math.factorial(total)
    assert len(counts) == math.factorial(total)
    assert max(abs(count - mean) for count in counts) < 6 * math.sqrt(mean)


def test_neighbours_in_an_order_have_nothing_to_do_with_each_other():
    order = rng.permutation(3, 0, 0, 100_000, 100_000)
    for lag in (1, 2, 316, 317):  # 317 is the side of the network's square
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.02


@pytest.mark.parametrize("kernel", KERNELS)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), drop_last=st.booleans())
@settings(max_examples=30, deadline=None)
def test_an_epoch_gives_each_transition_once_in_the_order_of_its_number(tmp_path_factory, kernel, size, seed, drop_last):
    with using(kernel):
        store = write(tmp_path_factory.mktemp("epochs") / "s", SIMPLE, [numbered_episode(i) for i in range(4)])
        sampler = store.transitions(size, seed, replacement=False, drop_last=drop_last)
        total = sampler.transition_count
        assert sampler.batches_per_epoch == (total // size if drop_last else -(-total // size))
        for epoch in range(2):
            rows = []
            for _ in range(sampler.batches_per_epoch):
                assert sampler.epoch == epoch
                batch = sampler.sample()
                assert np.array_equal(batch.observation, store.column("observation")[batch.index])
                assert np.array_equal(batch.action, store.column("action")[batch.index])
                rows.append(batch.index.copy())
            rows = np.concatenate(rows)
            assert len(np.unique(rows)) == len(rows) == (total // size * size if drop_last else total)
            order = [ordered(seed, epoch, ORDER_STREAM, total, i) for i in range(min(total, 5))]
            numbered = store.transitions(total, 0)
            assert np.array_equal(numbered.gather(np.arange(total)).index[order][: len(rows)], rows[:5])


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_batch_of_any_epoch_can_be_reached_directly(tmp_path, kernel):
    with using(kernel):
        store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(6)])
        walked = store.transitions(32, 4, replacement=False, drop_last=False, frame_stack=2)
        jumped = store.transitions(32, 4, replacement=False, drop_last=False, frame_stack=2)
        batches = []
        for _ in range(3 * walked.batches_per_epoch):
            batch = walked.sample()
            batches.append((batch.index.copy(), batch.observation.copy(), batch.reward.copy()))
        for k in (len(batches) - 1, 0, walked.batches_per_epoch, walked.batches_per_epoch - 1):
            jumped.seek(k)
            batch = jumped.sample()
            for left, right in zip(batches[k], (batch.index, batch.observation, batch.reward), strict=True):
                assert np.array_equal(left, right)
        assert not np.array_equal(batches[0][0], batches[walked.batches_per_epoch][0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"replacement": "no"}, "replacement 'no'"),
        ({"replacement": False, "drop_last": 1}, "drop_last 1"),
        ({"replacement": False, "batch_size": 5000}, "batch_size 5000 is more than the"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, message):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(i) for i in range(3)])
    with pytest.raises(InvalidInput, match=message):
        store.transitions(**{"batch_size": 4, "seed": 0, **arguments})


def test_a_batch_larger_than_the_store_is_an_epoch_of_its_own(tmp_path):
    store = write(tmp_path / "s", SIMPLE, [numbered_episode(0)])
    sampler = store.transitions(5000, 0, replacement=False, drop_last=False)
    assert len(sampler.sample().index) == sampler.transition_count
    with pytest.raises(InvalidInput):
        rng.permutation(0, 0, 0, 10, 5, 6)
