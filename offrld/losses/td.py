"""Temporal-difference learning: Bellman targets. `offrld.nets.values.Values` computes the errors against them."""

from __future__ import annotations

from torch import Tensor

from offrld.engine import Batch
from offrld.nets import taken


def bellman(batch: Batch, value: Tensor) -> Tensor:
    """Return ``r + gamma^n (1 - d) value`` for ``value [B]`` or quantiles ``[B, M]``; n and d are those of the n-step transitions."""
    reward, discount = batch.reward, batch.discount * (1 - batch.terminal)
    if value.dim() > reward.dim():
        reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
    return reward + discount * value


__all__ = ["bellman", "taken"]
