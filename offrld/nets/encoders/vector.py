"""The vector encoder: a multi-layer perceptron; `dense` (D2RL) also feeds the input to every layer."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from offrld.nets.encoders.layers import Stage
from offrld.nets.encoders.settings import Encoder
from offrld.nets.linear import Linear, Params, layers


class VectorEncoder:
    """Linear layers of `Encoder.units`, each followed by its `Stage`; parameters ``NAME.i.weight``, ``NAME.i.bias``, ...

    Args:
        size, action_size: widths of the observation and of the action; the input is their concatenation.
        dense: concatenate the network's input to the input of every layer but the first (Sinha et al. 2020, D2RL).
    """

    def __init__(self, name: str, size: int, encoder: Encoder, action_size: int = 0, *, dense: bool = False) -> None:
        self.name, self._dense = name, dense
        inputs, units = size + action_size, encoder.units
        self._layers: list[tuple[Linear, Stage]] = []
        for i, (before, width) in enumerate(pairwise((inputs, *units))):
            stage = Stage(f"{name}.{i}", width, encoder, activation=encoder.last_activation or i < len(units) - 1)
            self._layers.append((Linear(f"{name}.{i}", before + (inputs if dense and i else 0), stage.produced), stage))
        self.feature_size = units[-1] if units else inputs
        # All layers, if only relu follows each: they and a head after them then run as one operation (see `layers`).
        alike = all(stage.only_relu for _, stage in self._layers) and not (dense and len(units) > 1)
        self.plain = tuple(layer for layer, _ in self._layers) if alike else ()

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for layer, stage in self._layers:
            params |= layer.init(generator, dtype) | stage.init(dtype)
        return params

    def __call__(self, params: Params, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features ``[B, F]`` of observation ``[B, D]`` (and action ``[B, A]``); with actions ``[K, B, A]``, ``[K, B, F]``."""
        parts = (observation,) if action is None else (observation, action)
        if not self._layers:
            leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
            return torch.cat([part.expand(*leading, part.shape[-1]) for part in parts], dim=-1)
        if self.plain:
            return layers(parts, [layer.pair(params) for layer in self.plain], relu=True)
        inputs = parts
        for layer, stage in self._layers:
            x = stage(params, layer(params, *inputs, relu=stage.relu), activated=stage.relu)
            inputs = (x, *parts) if self._dense else (x,)
        return x  # [..., F]
