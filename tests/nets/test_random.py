"""The uniform numbers of a context: distribution, independence, and the same numbers from every implementation."""

from __future__ import annotations

import zlib

import pytest
import torch

from offrld.nets import random
from offrld.nets.context import Context

N = 1 << 16


def draw(key: int, name: str = "a", call: int = 0, n: int = N, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return random.uniform(random.words(torch.tensor(key)), random.stream(name, call), (n,), torch.empty(0, dtype=dtype))


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


KEYS = [0, 1, 2, -1, 1 << 32, (7 << 40) + 12345, 2**63 - 1]


@pytest.mark.parametrize("key", KEYS)
def test_the_numbers_are_uniform_on_zero_to_one(key):
    x = draw(key)
    assert x.min() >= 0
    assert x.max() < 1
    # Five standard deviations of the mean and the variance of N uniform numbers.
    assert abs(x.mean() - 0.5) < 5 * (1 / 12 / N) ** 0.5
    assert abs(x.var() - 1 / 12) < 5 * (1 / 180 / N) ** 0.5


def chi_square(x: torch.Tensor, bins: int) -> float:
    """Return Pearson's statistic of equal bins, in standard deviations from its mean."""
    counts = torch.bincount((x * bins).long(), minlength=bins).double()
    expected = len(x) / bins
    return (((counts - expected) ** 2 / expected).sum().item() - (bins - 1)) / (2 * (bins - 1)) ** 0.5


@pytest.mark.parametrize("key", KEYS)
def test_equal_bins_of_numbers_and_of_their_low_digits_are_equally_full(key):
    x = draw(key)
    assert abs(chi_square(x, 256)) < 5
    assert abs(chi_square((x * 4096) % 1, 256)) < 5  # the low half of the 24 bits
    pairs = (x[::2] * 16).floor() * 16 + (x[1::2] * 16).floor()  # neighbours do not know of each other
    assert abs(chi_square((pairs + 0.5) / 256, 256)) < 5


def test_no_two_of_many_keys_streams_and_calls_are_correlated():
    rows = [draw(key, name, call, n=4096) for key in KEYS for name in ("actor.0.dropout", "actor.1.dropout", "b") for call in (0, 1)]
    matrix = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows), dtype=torch.float64)
    assert matrix.abs().max() < 6 / 4096**0.5
    for lag in (1, 2, 64, 256):
        assert abs(correlation(rows[0][:-lag], rows[0][lag:])) < 5 / 64


def test_the_first_number_over_many_following_keys_is_uniform_too():
    """The engine increments its keys: one position over many updates must be as random as many positions of one update."""
    keys = torch.arange(N) + (3 << 32)
    x = torch.func.vmap(lambda key: random.uniform(random.words(key), (5, 6), (2,), torch.empty(0, dtype=torch.float64)))(keys)
    for column in (x[:, 0], x[:, 1]):
        assert abs(chi_square(column, 256)) < 5
        assert abs(correlation(column[:-1], column[1:])) < 5 / 256
    assert abs(correlation(x[:, 0], x[:, 1])) < 5 / 256


def test_neighbouring_keys_do_not_give_permuted_numbers():
    first = set((draw(0, n=4096) * 2**24).long().tolist())
    for key in (1, 2, 64, 1 << 32):
        assert len(first & set((draw(key, n=4096) * 2**24).long().tolist())) < 16  # by chance: about one


def test_float32_and_float64_are_the_same_numbers():
    assert torch.equal(draw(11, dtype=torch.float32).double(), draw(11))


def test_mapping_over_keys_equals_single_calls_bit_for_bit():
    keys = torch.tensor(KEYS)

    def numbers(key: torch.Tensor) -> torch.Tensor:
        context = Context(key, True)
        return torch.stack([context.uniform("a", (3, 5), torch.empty(0)), context.uniform("a", (3, 5), torch.empty(0))])

    together = torch.func.vmap(numbers)(keys)
    assert torch.equal(together, torch.stack([numbers(key) for key in keys]))
    assert len(together.unique()) > 0.99 * together.numel()


def test_a_context_draws_new_numbers_for_each_call_name_and_mode():
    like = torch.empty(0)
    training, target = Context(torch.tensor(4), True), Context(torch.tensor(4), False)
    drawn = [context.uniform(name, (8,), like) for context, name in ((training, "a"), (training, "a"), (training, "b"), (target, "a"))]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not (one == other).any()
    again = Context(torch.tensor(4), True)
    again.uniform("b", (8,), like)  # what other networks draw does not matter
    assert torch.equal(again.uniform("a", (8,), like), drawn[0])


def test_the_numbers_equal_the_hash_in_unbounded_integers_and_never_change():
    """No operation overflows, and a run resumed from a checkpoint draws the same numbers as the version that wrote it."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x21F0AAAD % 2**32
        return x ^ x >> 16

    def number(key: int, name: str, call: int, position: int) -> int:
        low, high = key % 2**32, (key >> 32) % 2**32
        first = mix(mix(low ^ 0x3C6EF372) ^ high)
        second = mix(first ^ low)
        text = f"{name}/{call}".encode()
        x = (position ^ first ^ zlib.crc32(text)) * 0x7FEB352D % 2**32
        x = (x ^ x >> 16 ^ second ^ zlib.crc32(text, 0x5BD1E995)) * 0x21F0AAAD % 2**32
        return (x ^ x >> 15) * 0x6C9E35A9 % 2**32 >> 8

    for key in KEYS:
        assert (draw(key, "b", 3, n=500) * 2**24).long().tolist() == [number(key, "b", 3, i) for i in range(500)]
    assert (draw(7, "critic.0.0.dropout", 3, n=4) * 2**24).long().tolist() == [2716135, 874642, 13832885, 12323123]


@pytest.mark.parametrize("shape", [(3, 7), (random._BLOCK + 5,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blockwise_eager_code_draws_the_same_numbers_as_torchs_operations(shape, dtype, monkeypatch):
    like, key, stream = torch.empty(0, dtype=dtype), random.words(torch.tensor(-5)), random.stream("a", 1)
    blocks = random.uniform(key, stream, shape, like)
    monkeypatch.setattr(random, "eager", lambda x: False)
    whole = random.uniform(key, stream, shape, like)
    assert blocks.dtype == dtype
    assert torch.equal(blocks, whole)
