"""The linear operation through oneDNN, which on some processors runs float32 products at twice the speed of torch's default library.

On an AMD EPYC with AVX-512, one thread, 256x256 by 256x256: 145 us against 303 us forward, 140 against 301 and 168 against 317 for the
two products of the backward pass. The operation is private to torch, so it is used only where `faster` has seen it present, right and
faster, and only in plain eager code: `usable` says no under vmap, compile, export and tracing, and for anything but float32 on the CPU.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH = 1 << 20        # multiplications below which a call costs more than it gains
NARROW = 16            # outputs below which torch's own products are the faster (few inputs are well: 6 of 7,680 rows gain most of all)
ROWS = 1024            # summed at a time in the gradient of a weight: 7,680 rows at once take 8.1 ms, by 1,024 4.7 ms
GAIN = 0.9             # of torch's time that the probe must not exceed
TOLERANCE = 1e-4       # of the probe, relative to the largest element
_PROBE = 256           # rows, inputs and outputs of the probe
_REPEATS = 5


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
    """``x [..., I]`` times ``weight [O, I]`` transposed plus ``bias [O]``, and relu of that; differentiable, twice too."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        return _Linear.apply(x, weight, bias, relu)
    return _forward(x, weight, bias, relu)


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether this call may go through oneDNN and is large enough to gain by it."""
    outputs, inputs = weight.shape
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.numel() * outputs >= WORTH
        and outputs >= NARROW
        and inputs > 1
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and type(x) is Tensor
        and x.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
    )


@functools.lru_cache(maxsize=1)
def present() -> bool:
    """Whether this build of torch has the operation, and it takes the arguments that are used here."""
    matrix = torch.ones(NARROW, NARROW)
    try:
        _product(matrix, matrix)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


@functools.lru_cache(maxsize=8)
def faster(threads: int) -> tuple[bool, str]:
    """Whether oneDNN is present, right and faster on this processor with so many threads, and what was seen. Takes about 10 ms."""
    generator = torch.Generator().manual_seed(0)
    shape = (_PROBE, _PROBE)
    x, weight, grad = (torch.randn(shape, generator=generator) for _ in range(3))
    bias = torch.randn(_PROBE, generator=generator)
    theirs = (lambda: F.linear(x, weight, bias), lambda: grad.mm(weight), lambda: grad.t().mm(x))
    ours = (lambda: _forward(x, weight, bias, False), lambda: _to_input(grad, weight), lambda: _to_weight(grad, x))
    if not present():
        return False, "a torch without oneDNN's product"
    with torch.no_grad():
        pairs = [(one(), other()) for one, other in zip(theirs, ours, strict=True)]
        pairs.append((torch.relu(pairs[0][0]), _forward(x, weight, bias, True)))
        if not all((one - other).abs().max() <= TOLERANCE * one.abs().max() for one, other in pairs):
            return False, "a difference between oneDNN's product and torch's"
        times = [(_seconds(theirs), _seconds(ours)) for _ in range(_REPEATS)]  # taking turns; the least is what the processor can do
    torchs, onednns = (min(column) * 1e6 for column in zip(*times, strict=True))
    return onednns <= GAIN * torchs, f"{onednns:.0f} us by oneDNN, {torchs:.0f} us by torch"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, relu):
        out = _forward(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative is wanted: products that have one
            grad = grad if out is None else grad * (out > 0)
            flat, rows = grad.flatten(0, -2), x.flatten(0, -2)
            return grad @ weight if to_x else None, flat.t() @ rows if to_weight else None, flat.sum(0) if to_bias else None, None
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        flat, rows = grad.flatten(0, -2), x.flatten(0, -2)
        return (
            _to_input(flat, weight).view(x.shape) if to_x else None,
            _to_weight(flat, rows) if to_weight else None,
            flat.sum(0) if to_bias else None,
            None,
        )


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out = _product(x.flatten(0, -2), weight, bias)
    if relu:
        out.relu_()  # not oneDNN's own, which makes 0 of NaN and would hide a run that broke
    return out if x.dim() == 2 else out.view(*x.shape[:-1], weight.shape[0])


def _to_input(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad [B, O]`` times ``weight [O, I]``. Operands are handed over as they lie: copying them straight would cost 25 us more."""
    return _product(grad, weight.t())


def _to_weight(grad: Tensor, rows: Tensor) -> Tensor:
    """``grad [B, O]`` transposed times ``rows [B, I]``."""
    if len(grad) > 2 * ROWS:
        parts = [_to_weight(g, r) for g, r in zip(grad.split(ROWS), rows.split(ROWS), strict=True)]
        for part in parts[1:]:
            parts[0].add_(part)
        return parts[0]
    if rows.shape[1] < 64:  # half the time of the other order for 23 inputs
        return _product(rows.t(), grad.t()).t().contiguous()
    return _product(grad.t(), rows.t())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps: columns cut out of a wider one would go through a reference kernel, some 100 times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _seconds(functions: tuple) -> float:
    start = time.perf_counter()
    for function in functions:
        function()
    return time.perf_counter() - start
