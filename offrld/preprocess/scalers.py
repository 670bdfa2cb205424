"""Scalers of observations, actions and rewards: affine maps fitted once on the pinned snapshot.

Every scaler here is ``y = (x - shift) * scale`` per element, so all of them export into a policy's graph, invert exactly, and
commute with n-step sums (`Affine.n_step_reward`). They are fitted on the rows that start a transition of the training episodes:
the last observation of a truncated episode, which starts none, is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OBSERVATION_SCALERS = ("none", "standard", "min_max")
REWARD_SCALERS = ("none", "standard", "min_max")
EPSILON = 1e-3       # added to the deviation, as d3rlpy does: a nearly constant dimension is not blown up
_BLOCK = 1 << 16     # rows read at a time


@dataclass(frozen=True)
class Affine:
    """``y = (x - shift) * scale``; both tensors have the shape of one element."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, shift: np.ndarray, scale: np.ndarray, dtype: torch.dtype, device: torch.device) -> Affine:
        return cls(*(torch.as_tensor(np.asarray(part, np.float64)).to(device, dtype) for part in (shift, scale)))

    @classmethod
    def between(cls, low: np.ndarray, high: np.ndarray, dtype: torch.dtype, device: torch.device) -> Affine:
        """The map of [low, high] onto [-1, 1]; a dimension whose ends are equal maps to 0."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        span = np.where(high > low, high - low, 1.0)
        return cls.of((low + high) / 2.0, 2.0 / span, dtype, device)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.shift) * self.scale

    def reverse(self, y: Tensor) -> Tensor:
        """The ``x`` of which ``y`` is the image."""
        return y / self.scale + self.shift

    def n_step_reward(self, total: Tensor, discount: Tensor, gamma: float) -> Tensor:
        """The n-step sum of scaled rewards, from the sum of raw ones ``[B]`` and ``discount = gamma^n [B]``.

        Every step is scaled, then summed: sum of gamma^i (r_i - shift) scale = (total - shift (1 - gamma^n) / (1 - gamma)) scale.
        """
        weight = (1 - discount) / (1 - gamma) if gamma < 1 else torch.ones_like(discount)
        return (total - self.shift * weight) * self.scale


def fit(kind: str, blocks: Iterator[np.ndarray], again: Iterator[np.ndarray], dtype: torch.dtype, device: torch.device) -> Affine | None:
    """Fit a scaler over blocks of rows; ``again`` gives the same blocks a second time (the deviation takes two passes).

    Args:
        kind: ``none`` (gives None), ``standard`` ((x - mean) / (std + 1e-3)) or ``min_max`` (onto [-1, 1]).
        blocks, again: arrays ``[n, ...]``; statistics run over the first axis in float64.
    """
    if kind == "none":
        return None
    if kind == "min_max":
        low = high = None
        for block in blocks:
            least, most = block.min(axis=0), block.max(axis=0)
            low, high = (least, most) if low is None else (np.minimum(low, least), np.maximum(high, most))
        return Affine.between(low, high, dtype, device)
    count, total = 0, 0.0
    for block in blocks:
        count, total = count + len(block), total + block.sum(axis=0, dtype=np.float64)
    mean = total / count
    square = sum(((block - mean) ** 2).sum(axis=0) for block in again)
    return Affine.of(mean, 1.0 / (np.sqrt(square / count) + EPSILON), dtype, device)


def rows(column: np.ndarray, keep: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of the rows of a (memory-mapped) column for which ``keep`` is true; memory stays flat whatever its length."""
    for start in range(0, len(keep), _BLOCK):
        chosen = keep[start : start + _BLOCK]
        if chosen.any():
            yield np.asarray(column[start : start + _BLOCK])[chosen]


def reward_column(scaler, store):
    return ((np.asarray(store.column("reward"), np.float64) - scaler.shift.item()) * scaler.scale.item()).astype(np.float32)
