"""Random numbers: the published Philox values, and the same bits from both kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import KERNELS, drawn, philox, using

from offrl_store import rng
from offrl_store.errors import InvalidInput

WORDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_known_answers_of_random123(kernel):
    ones = 2**32 - 1
    with using(kernel):
        assert rng.philox4x32(0, 0, 0, 1)[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
        assert rng.philox4x32(2**64 - 1, 2**64 - 1, ones, 1, first=ones)[0].tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
        answer = rng.philox4x32(0x299F31D0_A4093822, 0x13198A2E_85A308D3, 0x03707344, 1, first=0x243F6A88)[0]
        assert answer.tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("kernel", KERNELS)
@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**64 - 1), stream=WORDS, count=st.integers(1, 150), total=st.integers(1, 2**62))
@settings(max_examples=50, deadline=None)
def test_blocks_and_draws_equal_plain_python(kernel, seed, step, stream, count, total):
    with using(kernel):
        blocks = rng.philox4x32(seed, step, stream, count)
        for i in (0, count - 1):
            assert blocks[i].tolist() == philox(seed, (i, step & 0xFFFFFFFF, step >> 32, stream))
        assert rng.integers(seed, step, stream, total, count).tolist() == drawn(seed, step, stream, total, count)


@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**64 - 1), stream=WORDS, count=st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_uniform_and_normal_numbers_are_equal_bit_for_bit_in_both_kernels(seed, step, stream, count):
    for fill in (rng.uniform, rng.normal):
        found = []
        for kernel in KERNELS:
            with using(kernel):
                found.append(fill(seed, step, stream, np.empty(count, np.float32)).view(np.uint32))
        assert np.array_equal(*found)


def test_normal_numbers_follow_box_muller_in_float64():
    words = rng.philox4x32(5, 6, 7, 10_000).reshape(-1, 2).astype(np.float64)
    uniform = (np.floor(words[:, 0] / 2) + 0.5).astype(np.float32).astype(np.float64) / 2**31
    radius = np.sqrt(-2 * np.log(uniform))
    quarter, rest = np.divmod(words[:, 1], 2.0**30)
    angle = np.pi / 2 * (quarter + np.where(rest >= 2**29, rest - 2**30, rest) / 2**30)
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
    np.testing.assert_allclose(rng.normal(5, 6, 7, np.empty(40_000, np.float32)), expected, rtol=1e-6, atol=1e-6)


def test_the_moments_and_tails_are_those_of_the_distributions():
    z = rng.normal(1, 2, 3, np.empty(1_000_000, np.float32)).astype(np.float64)
    assert abs(z.mean()) < 5e-3
    assert abs(z.std() - 1) < 5e-3
    assert abs((z**4).mean() - 3) < 0.05
    assert abs((np.abs(z) > 3).mean() - 0.0027) < 0.0003
    assert abs(np.corrcoef(z[::2], z[1::2])[0, 1]) < 5e-3
    u = rng.uniform(1, 2, 3, np.empty(1_000_000, np.float32))
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 2e-3
    assert np.abs(np.histogram(u, 20, (0, 1))[0] - 50_000).max() < 6 * 50_000**0.5


def test_a_shorter_array_is_a_prefix_and_any_shape_is_filled():
    long, short = np.empty((7, 300), np.float32), np.empty(33, np.float32)
    assert np.array_equal(rng.normal(1, 1, 1, long).reshape(-1)[:33], rng.normal(1, 1, 1, short))


def test_streams_steps_and_seeds_differ():
    base = rng.uniform(1, 2, 3, np.empty(64, np.float32)).copy()
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1 + 2**32, 2, 3), (1, 2 + 2**32, 3)):
        assert not np.array_equal(base, rng.uniform(*other, np.empty(64, np.float32)))


def test_a_stream_is_the_crc_of_its_name():
    assert rng.stream_id("123456789") == 0xCBF43926


def test_wrong_arguments_are_named():
    for arguments in ((-1, 0, 0), (0, 2**64, 0), (0, 0, 2**32)):
        with pytest.raises(InvalidInput):
            rng.uniform(*arguments, np.empty(4, np.float32))
    for out in (np.empty(4), np.empty((4, 4), np.float32)[:, 0], [0.0]):
        with pytest.raises(InvalidInput, match="float32"):
            rng.normal(0, 0, 0, out)
