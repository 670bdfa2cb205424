"""Temporal-difference learning: Bellman targets. Errors against them are those of `offrld.nets.values.Values`."""

from __future__ import annotations

from torch import Tensor

from offrld.engine import Batch
from offrld.nets import taken


def bellman(batch: Batch, value: Tensor) -> Tensor:
    """``r + gamma^n (1 - d) value`` for ``value [B]`` or quantiles ``[B, M]``; n and d are those of the batch's n-step transitions."""
    reward, kept = batch.reward, batch.discount * (1 - batch.terminal)
    if value.dim() > reward.dim():
        reward, kept = reward.unsqueeze(-1), kept.unsqueeze(-1)
    return reward + kept * value


__all__ = ["bellman", "taken"]
