"""A vector encoder with an output layer."""

from __future__ import annotations

import torch
from torch import Tensor

from offrld.nets.encoders.settings import Encoder
from offrld.nets.encoders.vector import VectorEncoder
from offrld.nets.linear import Linear, Params


class Mlp:
    """``inputs -> encoder.units -> outputs`` with the parameters ``NAME.i.weight``, ``NAME.i.bias`` (and ``NAME.i.norm.*``)."""

    def __init__(self, name: str, inputs: int, outputs: int, encoder: Encoder) -> None:
        self._trunk = VectorEncoder(name, inputs, encoder, dense=encoder.type == "dense")
        self._head = Linear(f"{name}.{len(encoder.units)}", self._trunk.feature_size, outputs)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._trunk.init(generator, dtype) | self._head.init(generator, dtype)

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return self._head(params, self._trunk(params, x))
