"""The device's random numbers are those of the store, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offrl_store import rng
from offrld.engine.batches.philox import Philox

SEEDS = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))
STEPS = st.one_of(st.integers(0, 5), st.integers(0, 2**63 - 1))
STREAMS = st.integers(0, 2**32 - 1)
TOTALS = st.one_of(st.integers(1, 100), st.integers(1, 2**32 + 5), st.integers(2**32 - 5, 2**62 - 1))
many = settings(max_examples=150, deadline=None)


def same_bits(tensor, array):
    assert tensor.shape == array.shape
    wide = np.int64 if array.dtype.itemsize == 8 else np.int32
    assert np.array_equal(tensor.numpy().view(wide), array.view(wide))


@many
@given(SEEDS, STEPS, STREAMS, st.integers(1, 2**63 - 1) | TOTALS, st.integers(0, 70))
def test_integers_are_the_stores(seed, step, stream, total, count):
    same_bits(Philox(seed).integers(step, stream, total, count), rng.integers(seed, step, stream, total, count))


@many
@given(SEEDS, STEPS, STREAMS, st.integers(0, 1500), st.sampled_from(["uniform", "normal"]))
def test_uniform_and_normal_numbers_are_the_stores(seed, step, stream, count, name):
    expected = getattr(rng, name)(seed, step, stream, np.empty(count, np.float32))
    same_bits(getattr(Philox(seed), name)(step, stream, count), expected)


def test_a_million_normal_numbers_are_the_stores():
    same_bits(Philox(3).normal(7, 11, 1_000_003), rng.normal(3, 7, 11, np.empty(1_000_003, np.float32)))


@many
@given(SEEDS, STEPS, STREAMS, TOTALS, st.integers(0, 60), st.integers(0, 2**62))
def test_permutations_are_the_stores(seed, step, stream, total, count, first):
    count = min(count, total)
    first %= total - count + 1
    same_bits(Philox(seed).permutation(step, stream, total, count, first), rng.permutation(seed, step, stream, total, count, first))


@pytest.mark.parametrize("total", [1, 2, 3, 5, 7, 17, 101, 1000, 4097, 100_001])
def test_the_whole_order_is_the_stores(total):
    """Totals just above a square send most numbers through the network several times."""
    same_bits(Philox(9).permutation(4, 2, total, total), rng.permutation(9, 4, 2, total, total))


@settings(max_examples=30, deadline=None)
@given(st.lists(SEEDS, min_size=1, max_size=4), st.lists(STEPS, min_size=1, max_size=3), STREAMS, TOTALS, st.integers(1, 9))
def test_axes_are_steps_then_seeds(seeds, steps, stream, total, count):
    philox, step = Philox(seeds), torch.tensor(steps)
    numbers, normal = philox.integers(step, stream, total, count), philox.normal(step, stream, count)
    first = torch.arange(len(steps)) % (total - min(count, total) + 1)
    order = philox.permutation(step, stream, total, min(count, total), first)
    assert numbers.shape == normal.shape == (len(steps), len(seeds), count)
    for k, one_step in enumerate(steps):
        for s, seed in enumerate(seeds):
            same_bits(numbers[k, s], rng.integers(seed, one_step, stream, total, count))
            same_bits(normal[k, s], rng.normal(seed, one_step, stream, np.empty(count, np.float32)))
            same_bits(order[k, s], rng.permutation(seed, one_step, stream, total, order.shape[-1], int(first[k])))


def test_a_step_without_axes_adds_none():
    same_bits(Philox(3).uniform(torch.tensor(5), 1, 10), rng.uniform(3, 5, 1, np.empty(10, np.float32)))
    assert Philox([3]).uniform(torch.tensor(5), 1, 10).shape == (1, 10)
