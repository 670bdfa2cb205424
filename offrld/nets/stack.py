"""Linear layers with relu between them as one operation with one backward pass; many rows are processed in blocks.

It saves memory traffic and kernels. CQL's penalty sends 7,680 rows through 256 x 256: with separate layers, 8 MB stream through every
kernel, and relu takes 2,500 us for all rows; in blocks of 1,024 rows, relu runs in place at 13 us per block. Only the needed gradients are
computed, and the gradient of a weight with few inputs in the fast order (23 inputs, 256 rows: 50 us instead of 89). This is also the only
module that uses oneDNN's product. For few rows with torch's product it gains nothing: its Python overhead, 75 us for three layers, costs
what it saves.

Only for plain eager code on the CPU (see `eager`); other code uses torch's layers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets import onednn
from offrld.nets.aligned import aligned, linear

ROWS = 1024  # rows per block: with 256 units its activations take 1 MB, which fits the second-level cache
FEW = 64  # with fewer inputs, a weight's gradient is computed as inputs x outputs and transposed

Pair = tuple[Tensor, Tensor | None]  # weight [O, I] and bias [O]


def stack(shared: Tensor | None, own: Tensor, layers: Sequence[Pair], *, relu: bool, through_onednn: bool = False) -> Tensor:
    """Pass ``own [..., I]`` through the layers, with relu after each but the last: ``[..., O]``. Twice differentiable.

    Args:
        shared: a first part of every input, ``[B, J]`` with ``own [K, B, I]``; it is multiplied once, not ``K`` times.
        relu: apply relu after the last layer too.
        through_onednn: multiply through oneDNN if that is faster (see `onednn.gains`).
    """
    params = [value for pair in layers for value in pair]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (shared, own, *params)):
        return _Stack.apply(shared, own, relu, through_onednn, *params)
    return _evaluate(shared, own, params, relu, through_onednn)[0]


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor | None, own: Tensor, relu: bool, through: bool, *params: Tensor | None) -> Tensor:
        out, ctx.hidden = _evaluate(shared, own, params, relu, through)
        ctx.save_for_backward(shared, own, out if relu else None, *params)
        ctx.relu, ctx.through = relu, through
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shared, own, out, *params = ctx.saved_tensors
        hidden, ctx.hidden = ctx.hidden, None  # so that each block's memory is freed after use, while it is still in the cache
        if hidden is None or torch.is_grad_enabled():  # the second time, or for a second derivative
            inputs = [t for t, needed in zip((shared, own, *params), _without_options(ctx), strict=True) if needed]
            gradients = torch.autograd.grad(_plain(shared, own, params, ctx.relu), inputs, grad, create_graph=torch.is_grad_enabled())
            remaining = iter(gradients)
            first, second, *others = (next(remaining) if needed else None for needed in _without_options(ctx))
            return first, second, None, None, *others
        first, second, *others = _gradients(shared, own, params, hidden, out, grad, _without_options(ctx), ctx.through)
        return first, second, None, None, *others


def _without_options(ctx: Any) -> tuple[bool, ...]:
    shared, own, _, _, *params = ctx.needs_input_grad
    return shared, own, *params


def _plain(shared: Tensor | None, own: Tensor, params: Sequence[Tensor | None], relu: bool) -> Tensor:
    """Compute the same with torch's operations, which have derivatives of any order."""
    with torch.enable_grad():
        x = own if shared is None else torch.cat([shared.expand(*own.shape[:-1], -1), own], dim=-1)
        *inner, (weight, bias) = zip(_weights(params), params[1::2], strict=True)
        for inner_weight, inner_bias in inner:
            x = F.relu(linear(x, inner_weight, inner_bias))
        x = linear(x, weight, bias)
        return F.relu(x) if relu else x


# --- Forward ---
def _evaluate(
    shared: Tensor | None, own: Tensor, params: Sequence[Tensor | None], relu: bool, through: bool
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return the result, and for each block the outputs of all layers but the last."""
    weights, biases = _weights(params), list(params[1::2])
    base: Tensor | None = None
    outs: list[Tensor] = []
    hidden: list[list[Tensor]] = []
    if shared is not None:
        width = shared.shape[-1]
        base = _product(shared, weights[0][:, :width], biases[0], through)  # [B, H]
        weights[0], biases[0] = weights[0][:, width:], None
    last = len(weights) - 1
    for x in _blocks(shared, own, len(weights)):
        before: list[Tensor] = []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = _product(x, weight, bias, through)
            if i == 0 and base is not None:
                x.view(-1, *base.shape).add_(base)
            if i < last or relu:
                x.relu_()  # not oneDNN's relu, which turns NaN into 0 and would hide a diverged run
            if i < last:
                before.append(x)
        outs.append(x)
        hidden.append(before)
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out if own.dim() == 2 else out.view(*own.shape[:-1], -1), hidden


def _blocks(shared: Tensor | None, own: Tensor, count: int) -> tuple[Tensor, ...]:
    """Split the rows ``[..., I]`` into blocks of about `ROWS`, multiples of ``B`` with a shared part; do not split for one layer."""
    rows = own if own.dim() == 2 else own.flatten(0, -2)
    if rows.shape[0] <= 2 * ROWS or count == 1:
        return (rows,)
    return rows.split(ROWS if shared is None else max(1, ROWS // len(shared)) * len(shared))


# --- Backward ---
def _gradients(
    shared: Tensor | None,
    own: Tensor,
    params: Sequence[Tensor | None],
    hidden: list[list[Tensor]],
    out: Tensor | None,
    grad: Tensor,
    needed: Sequence[bool],
    through: bool,
) -> list[Tensor | None]:
    """Return the needed gradients of shared part, own part and parameters; None for the others."""
    blocks = _blocks(shared, own, len(params) // 2)
    sizes = [block.shape[0] for block in blocks]
    grads = grad.flatten(0, -2).split(sizes)
    outs: Sequence[Tensor | None] = [None] * len(blocks) if out is None else out.flatten(0, -2).split(sizes)
    to_shared, to_own, *to_params = needed
    weights = _weights(params)
    whole_first = weights[0]
    totals: list[Tensor | None] = [None] * len(params)
    if shared is not None:
        weights[0] = weights[0][:, shared.shape[-1] :]
    # The lowest layer that needs a gradient.
    lowest = 0 if to_shared or to_own else next(i for i, is_needed in enumerate(to_params) if is_needed) // 2
    base: Tensor | None = None
    own_grads: list[Tensor] = []
    for rows, grad, out in zip(reversed(blocks), reversed(grads), reversed(outs), strict=True):  # the last block is still in the cache
        inputs = [rows, *hidden.pop()]
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        for i in range(len(weights) - 1, lowest - 1, -1):
            x = inputs.pop()
            beside = shared if i == 0 else None  # the shared part of this layer's input
            if to_params[2 * i]:
                totals[2 * i] = _plus(totals[2 * i], _to_weight(grad, x, through))
            if to_params[2 * i + 1] and beside is None:
                totals[2 * i + 1] = _plus(totals[2 * i + 1], grad.sum(0))
            if beside is not None:
                base = _plus(base, grad.view(-1, len(beside), grad.shape[-1]).sum(0))
            if i > lowest:
                grad = _to_input(grad, weights[i], through)
                torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)  # in place: nobody else holds grad
            elif to_own:
                own_grads.append(_to_input(grad, weights[0], through))
    shared_grad = None
    if base is not None and shared is not None:
        if to_params[0]:
            totals[0] = torch.cat([_to_weight(base, shared, through), cast("Tensor", totals[0])], dim=1)
        if to_params[1]:
            totals[1] = base.sum(0)
        if to_shared:
            shared_grad = _to_input(base, whole_first[:, : shared.shape[-1]], through)
    own_grad = torch.cat(own_grads[::-1]).view(own.shape) if to_own else None
    return [shared_grad, own_grad, *totals]


def _weights(params: Sequence[Tensor | None]) -> list[Tensor]:
    """Select the weights from weight, bias, weight, bias, ...: a bias may be None, a weight never is."""
    return cast("list[Tensor]", list(params[::2]))


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total.add_(value)


# --- Products ---
def _product(x: Tensor, weight: Tensor, bias: Tensor | None, through: bool) -> Tensor:
    """Return ``x [R, I]`` times ``weight [O, I]`` transposed, plus the bias."""
    if through and onednn.gains(x, weight):
        return onednn.product(aligned(x), aligned(weight), bias)
    return linear(x, weight, bias)


def _to_input(grad: Tensor, weight: Tensor, through: bool) -> Tensor:
    """Return ``grad [R, O]`` times ``weight [O, I]``."""
    if weight.shape[0] == 1:  # not len(weight), which costs a microsecond more
        return grad * weight
    grad, weight = aligned(grad), aligned(weight)
    if through and onednn.gains(grad, weight.t()):
        return onednn.product(grad, weight.t())
    return grad.mm(weight)


def _to_weight(grad: Tensor, rows: Tensor, through: bool) -> Tensor:
    """Return ``grad [R, O]`` transposed times ``rows [R, I]``."""
    few = rows.shape[1] < FEW
    one, other = (rows, grad) if few else (grad, rows)
    if through and grad.shape[0] > 2 * ROWS:  # 7,680 rows take 8.1 ms at once, 4.7 ms in blocks of 1,024
        return functools.reduce(Tensor.add_, (_to_weight(g, r, through) for g, r in zip(grad.split(ROWS), rows.split(ROWS), strict=True)))
    one, other = aligned(one), aligned(other)
    if through and onednn.gains(one.t(), other.t()):
        product = onednn.product(one.t(), other.t())
    else:
        product = one.t().mm(other)
    return product.t().contiguous() if few else product
