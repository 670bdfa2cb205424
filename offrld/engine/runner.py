"""Runners: how a step's loss is evaluated and differentiated. Eager always works; compiled is faster where the processor gains.

A runner maps a loss to ``gradients(leaves, state, batch) -> (gradients, metrics)``. On the CPU each seed is differentiated by itself
(separate small matrix products are faster there than batched ones); on a GPU one `torch.func.vmap` over the loss trains all seeds
as one tensor program. A compiled runner is taken by ``auto`` only after its first gradients agreed with eager ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from offrld.engine.algorithm import Batch, Loss, State
from offrld.nets import Params

Gradients = Callable[[Params, State, Batch], tuple[tuple[Tensor, ...], dict[str, Tensor]]]
AGREEMENT = 1e-3   # largest relative difference between compiled and eager gradients (float32 sums in another order)


def gradients(loss: Loss, config: Any, nets: SimpleNamespace, *, compiled: bool, stacked: bool) -> Gradients:
    """Differentiate ``loss`` with respect to the leaves it is given.

    Args:
        compiled: run the loss through `torch.compile` (as one graph, no fall-back to Python inside).
        stacked: the tensors carry a leading seed axis; the loss, which sees one seed, is mapped over it.
    """

    def single(leaves: Params, params: Params, target: Params, data: Params, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return loss({**params, **leaves}, config, nets, State(params, target, data), Batch(**batch))

    function: Callable[..., tuple[Tensor, dict[str, Tensor]]] = single
    if stacked:
        mapped = torch.func.vmap(single, in_dims=(0, 0, 0, None, 0))

        def function(*arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
            value, metrics = mapped(*arguments)
            return value.sum(), metrics  # seeds share nothing, so the gradient of the sum is each seed's own

    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=False)

    def run(leaves: Params, state: State, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        value, metrics = function(leaves, state.params, state.target, state.data, _as_dict(batch))
        return torch.autograd.grad(value, list(leaves.values())), metrics

    return run


def agree(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether two lists of gradients are the same but for rounding: relative to each tensor's largest element."""
    for a, b in zip(one, other, strict=True):
        scale = torch.maximum(a.abs().max(), b.abs().max())
        if not torch.isfinite(b).all() or (a - b).abs().max() > AGREEMENT * scale + 1e-7:
            return False
    return True


def _as_dict(batch: Batch) -> dict[str, Any]:
    present = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in present.items() if value is not None}
