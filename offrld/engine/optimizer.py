"""Optimisers that move parameters in place, with their moments in the training state rather than in an object of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from offrld.engine.algorithm import Adam


def adam_step(
    spec: Adam, params: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], counts: list[Tensor]
) -> None:
    """One step of Adam on all ``params`` in place; ``counts`` holds one 0-d float32 tensor per parameter.

    The fused kernel is the fastest on the CPU and on CUDA.
    """
    # The fused CPU kernel reads gradients as if they were laid out like the parameters; those of a batched product are not.
    grads = [grad.contiguous() for grad in grads]
    adam(
        params, grads, first, second, [], counts,
        fused=True, foreach=False, amsgrad=False, maximize=False,
        beta1=spec.beta1, beta2=spec.beta2, lr=spec.learning_rate, weight_decay=spec.weight_decay, eps=spec.eps,
    )  # fmt: skip


def polyak(targets: list[Tensor], online: list[Tensor], rate: float) -> None:
    """``target += rate * (online - target)`` in place; a rate of 1 copies exactly."""
    with torch.no_grad():
        if rate == 1.0:
            torch._foreach_copy_(targets, online)
        else:
            torch._foreach_lerp_(targets, online, rate)
