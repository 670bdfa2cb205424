"""Runners: how a step's loss is evaluated and differentiated. Eager always works; compiled is faster where the processor gains.

A runner maps a loss to ``gradients(leaves, state, batch) -> Result``. On the CPU each seed is differentiated by itself
(separate small matrix products are faster there than batched ones); on a GPU one `torch.func.vmap` over the loss trains all seeds
as one tensor program. A compiled runner is taken by ``auto`` only after its first gradients agreed with eager ones.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrld.engine.definition.algorithm import Batch, Rollout, State, Step, Windows
from offrld.nets import Params, onednn
from offrld.nets.context import CONTEXT, Context
from offrld.nets.tracing import one_graph

LINEARS = ("auto", "torch", "onednn")
LINEAR_VARIABLE = "OFFRL_LINEAR"  # of the environment; stands in for `auto`
AGREEMENT = 1e-3  # largest relative difference between compiled and eager gradients (float32 sums in another order)


@dataclass(frozen=True)
class Result:
    """The result of evaluating a loss: gradients of its leaves, metrics, and new values of buffers and carry."""

    gradients: tuple[Tensor, ...]
    metrics: dict[str, Tensor]
    updates: dict[str, Tensor]


Gradients = Callable[[Params, State, Batch | Windows | Rollout], Result]


def gradients(step: Step, config: Any, nets: Any, *, kind: type, compiled: bool, stacked: bool) -> Gradients:
    """Differentiate a step's loss with respect to its leaves.

    Args:
        kind: `Batch`, `Windows` or `Rollout`.
        compiled: run the loss through `torch.compile` (as one graph, no fall-back to Python inside).
        stacked: the tensors carry a leading seed axis; the loss, which sees one seed, is mapped over it.
    """
    loss = step.loss
    if loss is None:
        raise ValueError(f"step {step.name!r} has no loss")
    salt = zlib.crc32(step.name.encode())  # two steps of one update draw different numbers

    def single(
        leaves: Params, params: Params, target: Params, carry: Params, data: Params, batch: dict[str, Any]
    ) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        key = batch["key"] ^ salt
        context = Context(key, training=True)
        trained: dict[str, Any] = {**params, **leaves, CONTEXT: context}
        targets: dict[str, Any] = {**target, CONTEXT: Context(key, training=False)}
        value, metrics = loss(trained, config, nets, State(params, targets, data, carry), kind(**batch))
        return value, (metrics, context.updates)

    function: Callable[..., tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]] = single
    if stacked:
        mapped = torch.func.vmap(single, in_dims=(0, 0, 0, 0, None, 0))

        def function(*arguments: Any) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
            value, others = mapped(*arguments)
            return value.sum(), others  # seeds share nothing, so the gradient of the sum is each seed's own

    if compiled:
        function = one_graph(function)

    def run(leaves: Params, state: State, batch: Batch | Windows | Rollout) -> Result:
        value, (metrics, updates) = function(leaves, state.params, state.target, state.carry, state.data, _as_dict(batch))
        # A layer that a setting switches off (the head of an encoder that another step trains, say) has no gradient: zeros.
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return Result(grads, metrics, updates)

    return run


def choose_linear(
    asked: str, *, device: torch.device, dtype: torch.dtype, plain: bool, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[str, str]:
    """The product of linear layers, ``torch`` or ``onednn`` (see `offrld.nets.onednn`), and the reason.

    Args:
        asked: one of `LINEARS`.
        plain: losses run in eager code, seed by seed.
        cache_dir: where ``auto`` keeps its choice between runs (see `offrld.nets.onednn.faster`).

    Raises:
        InvalidInput: an unknown choice.
    """
    asked = os.environ.get(LINEAR_VARIABLE, "auto") if asked == "auto" else asked
    if asked not in LINEARS:
        raise InvalidInput(f"linear {asked!r} is unknown", hint="use " + ", ".join(LINEARS))
    if asked == "torch":
        return "torch", "as asked"
    if device.type != "cpu" or dtype is not torch.float32 or not plain:
        return "torch", "because oneDNN is called from eager float32 code on the CPU only"
    if asked == "onednn" and onednn.present():
        return "onednn", "as asked"
    faster, seen = onednn.faster(torch.get_num_threads(), None if cache_dir is None else Path(cache_dir))
    return ("onednn" if faster else "torch"), f"because of {seen}"


def agree(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether two lists of gradients are the same but for rounding: relative to each tensor's largest element."""
    for a, b in zip(one, other, strict=True):
        scale = torch.maximum(a.abs().max(), b.abs().max())
        if not torch.isfinite(b).all() or (a - b).abs().max() > AGREEMENT * scale + 1e-7:
            return False
    return True


def _as_dict(batch: Batch | Windows | Rollout) -> dict[str, Any]:
    present = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in present.items() if value is not None}
