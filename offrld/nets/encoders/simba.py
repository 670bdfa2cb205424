"""The SimBa encoder for vectors (Lee et al. 2025, SimBa: Simplicity Bias for Scaling Up Parameters in Deep Reinforcement Learning)."""

from __future__ import annotations

import torch
from torch import Tensor

from offrld.nets.encoders.layers import Stage, init_norm, layer_norm
from offrld.nets.encoders.settings import Encoder
from offrld.nets.linear import Linear, Params

FEATURES = 256


class SimbaEncoder:
    """``x = W s``; in each block ``x + W2 act(W1 LN(x))``; finally ``LN(x)``.

    Parameters: ``NAME.input.*``, per block ``NAME.block_i.norm.*``, ``.hidden.*``, ``.output.*``, and ``NAME.norm.*``. Inside the blocks,
    dropout follows the activation.
    """

    def __init__(self, name: str, size: int, encoder: Encoder, action_size: int = 0) -> None:
        self.name = name
        self.feature_size = encoder.feature_size or FEATURES
        self._input = Linear(f"{name}.input", size + action_size, self.feature_size)
        self._blocks = []
        for i in range(encoder.blocks):
            start = f"{name}.block_{i}"
            stage = Stage(f"{start}.hidden", encoder.hidden_size, encoder, norms=False)
            hidden = Linear(f"{start}.hidden", self.feature_size, stage.produced)
            self._blocks.append((f"{start}.norm", hidden, stage, Linear(f"{start}.output", encoder.hidden_size, self.feature_size)))

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params = self._input.init(generator, dtype)
        for norm, hidden, _, output in self._blocks:
            params |= init_norm(norm, self.feature_size, dtype) | hidden.init(generator, dtype) | output.init(generator, dtype)
        return params | init_norm(f"{self.name}.norm", self.feature_size, dtype)

    def __call__(self, params: Params, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features ``[B, F]`` of observation ``[B, D]`` (and action ``[B, A]``); with actions ``[K, B, A]``, ``[K, B, F]``."""
        x = self._input(params, observation) if action is None else self._input(params, observation, action)
        for norm, hidden, stage, output in self._blocks:
            x = x + output(params, stage(params, hidden(params, layer_norm(params, norm, x))))
        return layer_norm(params, f"{self.name}.norm", x)  # [..., F]
