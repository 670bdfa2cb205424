"""Fully connected layers: the one linear operation of all networks, and the layer that draws its parameters as torch does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Params = dict[str, Tensor]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., I]`` times ``weight [O, I]`` transposed, plus ``bias [O]``: ``[..., O]``."""
    return F.linear(x, weight, bias)


def joined(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """The linear layer of ``parts`` joined along their last axis, whose other axes broadcast.

    Where they differ, each part is multiplied at its own size and the products are added: an observation ``[B, D]`` beside actions
    ``[K, B, A]`` is multiplied once, not ``K`` times.
    """
    if all(part.shape[:-1] == parts[0].shape[:-1] for part in parts):
        return linear(torch.cat(tuple(parts), dim=-1), weight, bias)
    total, start = None, 0
    for part in parts:
        end = start + part.shape[-1]
        product = linear(part, weight[:, start:end], bias if total is None else None)
        total = product if total is None else total + product
        start = end
    return total


def uniform_init(shapes: dict[str, tuple[int, ...]], fan_in: int, generator: torch.Generator, dtype: torch.dtype) -> Params:
    """Torch's own default for linear and convolution layers: uniform within 1/sqrt(fan-in), weights and biases alike."""
    bound = 1.0 / math.sqrt(fan_in)
    params: Params = {}
    for name, shape in shapes.items():
        # Drawn in float64, so that a float32 and a float64 run start from the same numbers.
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * (2 * bound) - bound
        params[name] = values.to(dtype)
    return params


class Linear:
    """``inputs -> outputs`` with the parameters ``NAME.weight`` and ``NAME.bias``."""

    def __init__(self, name: str, inputs: int, outputs: int) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._weight, self._bias = f"{name}.weight", f"{name}.bias"

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        shapes = {self._weight: (self.outputs, self.inputs), self._bias: (self.outputs,)}
        return uniform_init(shapes, max(self.inputs, 1), generator, dtype)

    def __call__(self, params: Params, *parts: Tensor) -> Tensor:
        """``parts [..., I_i]`` joined to ``[..., O]`` (see `joined`)."""
        if len(parts) == 1:  # nearly always, and a microsecond of Python counts here
            return linear(parts[0], params[self._weight], params[self._bias])
        return joined(parts, params[self._weight], params[self._bias])
