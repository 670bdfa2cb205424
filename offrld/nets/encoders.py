"""Encoders: settings of a network's trunk, and the multi-layer perceptron that they describe.

A network here is a description, not a container: it knows its name, makes its initial parameters, and computes from a dict of
parameters that it is given. So one description serves the online and the target parameters, one seed and many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.settings import setting

Params = dict[str, Tensor]
ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "swish": F.silu, "gelu": F.gelu}


@dataclass(frozen=True)
class Encoder:
    """A trunk of fully connected layers: linear, activation, then (optional) layer norm."""

    units: tuple[int, ...] = setting((256, 256), "width of each hidden layer", unit="units", low=1, probe=(24,))
    activation: str = setting("relu", "activation after each hidden layer", choices=tuple(ACTIVATIONS))
    layer_norm: bool = setting(False, "layer norm after each hidden layer's activation")


@dataclass(frozen=True)
class Mlp:
    """``inputs -> encoder.units -> outputs`` with the parameters ``NAME.i.weight``, ``NAME.i.bias`` (and ``NAME.i.norm.*``)."""

    name: str
    inputs: int
    outputs: int
    encoder: Encoder

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        """Initial parameters: uniform within 1/sqrt(fan-in), which is torch's own default for linear layers."""
        params: Params = {}
        widths = (self.inputs, *self.encoder.units, self.outputs)
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            bound = 1.0 / math.sqrt(fan_in)
            for part, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                # Drawn in float64, so that a float32 and a float64 run start from the same numbers.
                values = torch.rand(shape, generator=generator, dtype=torch.float64) * (2 * bound) - bound
                params[f"{self.name}.{i}.{part}"] = values.to(dtype)
            if self.encoder.layer_norm and i < len(self.encoder.units):
                params[f"{self.name}.{i}.norm.weight"] = torch.ones(fan_out, dtype=dtype)
                params[f"{self.name}.{i}.norm.bias"] = torch.zeros(fan_out, dtype=dtype)
        return params

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.encoder.activation]
        last = len(self.encoder.units)
        for i in range(last):
            x = activation(F.linear(x, params[f"{self.name}.{i}.weight"], params[f"{self.name}.{i}.bias"]))
            if self.encoder.layer_norm:
                x = F.layer_norm(x, x.shape[-1:], params[f"{self.name}.{i}.norm.weight"], params[f"{self.name}.{i}.norm.bias"])
        return F.linear(x, params[f"{self.name}.{last}.weight"], params[f"{self.name}.{last}.bias"])
