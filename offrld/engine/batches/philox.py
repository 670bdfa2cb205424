"""Philox4x32-10 in torch: the random numbers of `offrl_store.rng` made on the training device, bit for bit.

Words of 32 bits are carried in int64, where the low 64 bits of their products are exact. Nothing is read back from the device and no
size depends on a tensor's value, so a CUDA graph can replay every method with a step counter kept on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offrl_store._random_py import COS, LN2, LOG, ROUNDS, SIN, sides

MASK = 0xFFFFFFFF
PHILOX_ROUNDS = 10
Counter = int | Tensor  # a tensor is int64, of any shape, and two's complement where it is meant to be above 2^63


class Philox:
    """The generator of some seeds on one device.

    Numbers have the shape ``[*step.shape, *seeds, n]``: a step that is a number, or a tensor without axes, adds none; one seed given as a
    number adds none, a sequence of seeds its axis. Each is what `offrl_store.rng` gives for that seed and step: `integers`, `uniform` and
    `permutation` on every device; `normal` on the CPU. On CUDA, `normal` may differ in the last bit where a compiler fuses a product
    with a sum.

    Args:
        seeds: below 2^64.
    """

    def __init__(self, seeds: int | Sequence[int], device: torch.device | str = "cpu") -> None:
        many = [seeds] if isinstance(seeds, int) else list(seeds)
        low, high = torch.tensor([[seed & MASK for seed in many], [seed >> 32 for seed in many]])
        turn = torch.arange(PHILOX_ROUNDS)[:, None]
        keys = torch.stack([low + turn * 0x9E3779B9, high + turn * 0xBB67AE85], 1) & MASK  # [10, 2, S]
        self.lead = () if isinstance(seeds, int) else (len(many),)
        self.device = torch.device(device)
        self._keys = keys.reshape(PHILOX_ROUNDS, 2, *self.lead, 1).to(device)
        self._multipliers = torch.tensor([0xD2511F53, 0xCD9E8D57]).to(device)

    def words(self, step: Counter, stream: int, blocks: int) -> Tensor:
        """The first ``blocks`` blocks of a stream at a step: int64 below 2^32, ``[*step, *seeds, blocks, 4]``."""
        axes = step.shape if isinstance(step, Tensor) else ()
        shape = (*axes, *self.lead, blocks)
        even = torch.empty((2, *shape), dtype=torch.int64, device=self.device)  # words 0 and 2 of the counter
        odd = torch.empty_like(even)  # words 1 and 3
        even[0].copy_(torch.arange(blocks, device=self.device))
        if isinstance(step, Tensor):
            wide = step.reshape(*axes, *(1 for _ in self.lead), 1)
            odd[0].copy_(wide & MASK)
            even[1].copy_((wide >> 32) & MASK)
        else:
            odd[0].fill_(step & MASK)
            even[1].fill_(step >> 32)
        odd[1].fill_(stream)
        multipliers = self._multipliers.view(2, *(1 for _ in shape))
        keys = self._keys.view(PHILOX_ROUNDS, 2, *(1 for _ in axes), *self._keys.shape[2:])
        for turn in range(PHILOX_ROUNDS):
            product = (even * multipliers).flip(0)
            even = ((product >> 32) & MASK) ^ odd ^ keys[turn]
            odd = product & MASK
        return torch.stack((even[0], odd[0], even[1], odd[1]), -1)

    def integers(self, step: Counter, stream: int, total: int, count: int) -> Tensor:
        """``count`` whole numbers below ``total`` (at most 2^63): int64 ``[*step, *seeds, count]``."""
        words = self.words(step, stream, (count + 1) // 2)
        low, high = words.reshape(*words.shape[:-2], -1, 2)[..., :count, :].unbind(-1)
        # The high 64 bits of (high, low) * total, from products of 32-bit halves; the shifts are made logical by the mask.
        total_low, total_high = total & MASK, total >> 32
        low_low, high_low = low * total_low, high * total_low
        middle = ((low_low >> 32) & MASK) + (high_low & MASK)
        result = (high_low >> 32) & MASK
        if total_high:
            low_high = low * total_high
            middle = middle + (low_high & MASK)
            result = result + high * total_high + ((low_high >> 32) & MASK)
        return result + (middle >> 32)

    def uniform(self, step: Counter, stream: int, count: int) -> Tensor:
        """``count`` multiples of 2^-24 in [0, 1): float32 ``[*step, *seeds, count]``."""
        words = self.words(step, stream, (count + 3) // 4)
        return (words >> 8).to(torch.float32).flatten(-2)[..., :count] * 2.0**-24

    def normal(self, step: Counter, stream: int, count: int) -> Tensor:
        """``count`` standard normal numbers: float32 ``[*step, *seeds, count]``. The operations are those of the store's kernels."""
        words = self.words(step, stream, (count + 3) // 4)
        radii, angles = words.reshape(*words.shape[:-1], 2, 2).unbind(-1)
        # radius: u = (word // 2 + 1/2) / 2^31 in (0, 1], ln u by exponent and polynomial
        u = (radii >> 1).to(torch.float32) + 0.5
        bits = u.view(torch.int32)
        exponent = (bits - 0x3F3504F3) >> 23
        t = (bits - (exponent << 23)).view(torch.float32) - 1.0
        tail = t * t * (t * _polynomial(LOG, t) - 0.5) + t
        log = (exponent - 31).to(torch.float32) * float(LN2) + tail
        # The float32 root of a processor's vector library is not always the nearest number (15 of 100 are not); by float64 it is.
        radius = torch.where(log < 0.0, log * -2.0, 0.0).double().sqrt().to(torch.float32)
        # angle: the two high bits choose the quarter, the rest the place in it, -1/2 <= f < 1/2
        quarter = angles >> 30
        place = (angles << 2) & MASK
        f = (place - ((place >> 31) << 32)).to(torch.float32) * 2.0**-32
        square = f * f
        sine, cosine = f * _polynomial(SIN, square), _polynomial(COS, square)
        swap = (quarter & 1) != 0
        x, y = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
        x = torch.where(((quarter + 1) & 2) != 0, -x, x) * radius
        y = torch.where((quarter & 2) != 0, -y, y) * radius
        return torch.stack((x, y), -1).flatten(-3)[..., :count]

    def permutation(self, step: Counter, stream: int, total: int, count: int, first: int | Tensor = 0) -> Tensor:
        """Elements first .. first+count-1 of the order of 0 .. total-1 that (seed, step, stream) choose: int64 ``[*step, *seeds, count]``.

        ``first`` may be a tensor of the step's shape. The store's kernels send a number beyond ``total`` through the network until it is
        below; here every number may take as many turns as it needs in the worst case, or as many as leave it outside with a chance
        below 2^-64, whichever is less.
        """
        axes = step.shape if isinstance(step, Tensor) else ()
        numbers = torch.arange(count, device=self.device).expand(*axes, *self.lead, count)
        if isinstance(first, Tensor):
            numbers = numbers + first.reshape(*axes, *(1 for _ in self.lead), 1)
        else:
            numbers = numbers + first
        if total == 1:
            return torch.zeros_like(numbers)
        keys = self.words(step, stream, ROUNDS // 2).flatten(-2).unsqueeze(-1).unbind(-2)  # 2 * ROUNDS of [*step, *seeds, 1]
        a, b = sides(total)
        excess = a * b - total
        for walk in range(_walks(excess, a * b)):
            left, right = torch.div(numbers, b, rounding_mode="floor"), numbers % b
            for turn in range(ROUNDS):
                key, other = keys[2 * turn], keys[2 * turn + 1]
                if turn % 2:
                    right = right + _reduced(left, key, other, b)
                    right = torch.where(right >= b, right - b, right)
                else:
                    left = left + _reduced(right, key, other, a)
                    left = torch.where(left >= a, left - a, left)
            moved = left * b + right
            numbers = moved if walk == 0 else torch.where(numbers >= total, moved, numbers)
        return numbers


def _walks(excess: int, domain: int) -> int:
    """Turns through the network: at most one for each number beyond the total, and one."""
    return 1 if excess == 0 else 1 + min(excess, math.ceil(64 / math.log2(domain / excess)))


def _reduced(x: Tensor, key: Tensor, other: Tensor, size: int) -> Tensor:
    """A hash of ``x`` below ``size``, as in the store's kernels."""
    h = (x ^ key) * 0x9E3779B1 & MASK
    h = (h ^ (h >> 15)) + other & MASK
    h = h * 0x85EBCA6B & MASK
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & MASK
    h = h ^ (h >> 16)
    return ((h * size) >> 32) & MASK


def _polynomial(coefficients: tuple[np.float32, ...], x: Tensor) -> Tensor:
    """The polynomial by Horner's rule, from the last coefficient to the first."""
    value = x * float(coefficients[-1]) + float(coefficients[-2])
    for coefficient in coefficients[-3::-1]:
        value = value * x + float(coefficient)
    return value
