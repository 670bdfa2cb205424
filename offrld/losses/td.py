"""Temporal-difference learning: Bellman targets and the errors of an ensemble of Q functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.engine import Batch


def bellman(batch: Batch, value: Tensor) -> Tensor:
    """``r + gamma^n (1 - d) value``: all ``[B]``; n and d are those of the batch's n-step transitions."""
    return batch.reward + batch.discount * (1 - batch.terminal) * value


def squared_error(q: Tensor, target: Tensor) -> Tensor:
    """Sum over members of the batch mean of squared errors: q ``[N, B]``, target ``[B]``."""
    return ((q - target) ** 2).mean(-1).sum(0)


def huber_error(q: Tensor, target: Tensor) -> Tensor:
    """Sum over members of the batch mean of Huber errors with threshold 1: q ``[N, B]``, target ``[B]``."""
    return F.huber_loss(q, target.expand_as(q), reduction="none").mean(-1).sum(0)


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Values of the actions taken: q ``[..., B, n]``, action ``[B]`` int64, result ``[..., B]``."""
    index = action.expand(q.shape[:-1]).unsqueeze(-1)
    return torch.gather(q, -1, index).squeeze(-1)
