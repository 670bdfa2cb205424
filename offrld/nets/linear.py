"""Fully connected layers: the linear operation of all networks, chains of it as one operation, and initialisation."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets import aligned, stack
from offrld.nets.eager import eager

Params = dict[str, Tensor]
_ONEDNN: contextvars.ContextVar[bool] = contextvars.ContextVar("offrl_onednn", default=False)


@contextlib.contextmanager
def products(*, through_onednn: bool) -> Iterator[None]:
    """Make linear layers within the context multiply through oneDNN if `onednn.gains`; otherwise they use torch's operation."""
    token = _ONEDNN.set(through_onednn)
    try:
        yield
    finally:
        _ONEDNN.reset(token)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Return ``x [..., I]`` times ``weight [O, I]`` transposed, plus ``bias [O]``, after relu if ``relu``: ``[..., O]``."""
    plain = eager(x)
    if plain and _fused(x):
        return stack.stack(None, x, ((weight, bias),), relu=relu, through_onednn=_ONEDNN.get())
    out = aligned.linear(x, weight, bias) if plain else F.linear(x, weight, bias)
    return F.relu(out) if relu else out


def layers(parts: Sequence[Tensor], pairs: Sequence[stack.Pair], *, relu: bool = False) -> Tensor:
    """Pass ``parts``, concatenated along their last axis, through linear layers with relu after each but the last.

    The parts' leading axes broadcast. If they differ, each part is multiplied at its own size and the products are added: an observation
    ``[B, D]`` with actions ``[K, B, A]`` is multiplied once, not ``K`` times.

    Args:
        pairs: weight ``[O, I]`` and bias ``[O]`` of each layer.
        relu: apply relu after the last layer too.
    """
    if eager(parts[-1]) and _fused(parts[-1]) and (inputs := _shared_and_own(parts)) is not None:
        return stack.stack(*inputs, pairs, relu=relu, through_onednn=_ONEDNN.get())
    (weight, bias), *others = pairs
    x = _joined(parts, weight, bias)
    for weight, bias in others:
        x = linear(F.relu(x), weight, bias)
    return F.relu(x) if relu else x


def _fused(x: Tensor) -> bool:
    """Return whether `stack` is worth its cost for layers on ``x [..., I]``: for oneDNN's product, or for processing in blocks.

    Call it only from eager code: Dynamo would add a guard on the context variable.
    """
    return _ONEDNN.get() or x.numel() > 2 * stack.ROWS * x.shape[-1]


def _shared_and_own(parts: Sequence[Tensor]) -> tuple[Tensor | None, Tensor] | None:
    """Return the parts as the arguments of `stack.stack`; None if they are not in its order."""
    leading = parts[-1].shape[:-1]
    count = sum(part.shape[:-1] != leading for part in parts)
    shared, own = parts[:count], parts[count:]
    if any(part.shape[:-1] != leading for part in own) or any(part.shape[:-1] != leading[-1:] for part in shared):
        return None
    return _cat(shared) if shared else None, _cat(own)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=-1)


def _joined(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply one linear layer to the concatenated parts."""
    if all(part.shape[:-1] == parts[0].shape[:-1] for part in parts):
        return linear(_cat(parts), weight, bias)
    first, *others = parts
    start = first.shape[-1]
    total = linear(first, weight[:, :start], bias)
    for part in others:
        end = start + part.shape[-1]
        total = total + linear(part, weight[:, start:end])
        start = end
    return total


def uniform_init(shapes: dict[str, tuple[int, ...]], fan_in: int, generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Initialise as torch does for linear and convolution layers: weights and biases uniform within +-1/sqrt(fan-in)."""
    bound = 1.0 / math.sqrt(fan_in)
    params: Params = {}
    for name, shape in shapes.items():
        # Draw in float64, so that float32 and float64 runs start from the same numbers.
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * (2 * bound) - bound
        params[name] = values.to(dtype)
    return params


def xavier_init(name: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Initialise ``NAME.weight [O, I, ...]`` uniform within +-sqrt(6 / (fan-in + fan-out)) (Glorot & Bengio 2010), ``NAME.bias`` zero."""
    field = math.prod(shape[2:])
    bound = math.sqrt(6.0 / ((shape[0] + shape[1]) * field))
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) * (2 * bound) - bound
    return {f"{name}.weight": weight.to(dtype), f"{name}.bias": torch.zeros(shape[0], dtype=dtype)}


def orthogonal_init(name: str, shape: tuple[int, ...], gain: float, generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Initialise ``NAME.weight [O, I]`` with orthonormal rows or columns (Saxe et al. 2014) times ``gain``, ``NAME.bias`` zero."""
    rows, columns = max(shape), min(shape)
    basis, triangle = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    basis = basis * triangle.diagonal().sign()  # makes the distribution uniform over all such matrices
    weight = gain * (basis if shape[0] >= shape[1] else basis.T)
    return {f"{name}.weight": weight.to(dtype).contiguous(), f"{name}.bias": torch.zeros(shape[0], dtype=dtype)}


class Linear:
    """``inputs -> outputs`` with the parameters ``NAME.weight`` and ``NAME.bias``."""

    def __init__(self, name: str, inputs: int, outputs: int) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._weight, self._bias = f"{name}.weight", f"{name}.bias"

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        shapes = {self._weight: (self.outputs, self.inputs), self._bias: (self.outputs,)}
        return uniform_init(shapes, max(self.inputs, 1), generator, dtype)

    def pair(self, params: Params) -> stack.Pair:
        """Return the layer's weight and bias."""
        return params[self._weight], params[self._bias]

    def __call__(self, params: Params, *parts: Tensor, relu: bool = False) -> Tensor:
        """Apply the layer to the concatenation of ``parts [..., I_i]``, with relu if ``relu``: ``[..., O]`` (see `layers`)."""
        return layers(parts, (self.pair(params),), relu=relu)
