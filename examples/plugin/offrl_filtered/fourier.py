"""An encoder of vectors by sines and cosines of learned directions: `--set encoder=fourier --set encoder.options.features=64`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrld.nets import Encoder, Params
from offrld.nets.linear import Linear


class Fourier:
    """``[sin(W x + b), cos(W x + b)]`` of the observation joined with the action: ``features`` of each."""

    def __init__(self, name: str, inputs: int, features: int) -> None:
        self.feature_size = 2 * features
        self._linear = Linear(name, inputs, features)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._linear.init(generator, dtype)

    def __call__(self, params: Params, observation: Tensor, action: Tensor | None = None) -> Tensor:
        if action is not None:  # [B, A], or [K, B, A] with observation [B, D]
            observation = torch.cat([observation.expand(*action.shape[:-1], -1), action], dim=-1)
        x = self._linear(params, observation)
        return torch.cat([torch.sin(x), torch.cos(x)], dim=-1)  # [..., F]


def build(name: str, view: Any, encoder: Encoder, action_size: int) -> Fourier:
    """Build the network of an ``encoder`` of this type. This function must check its options."""
    unknown = sorted(set(encoder.options) - {"features"})
    if unknown:
        raise InvalidInput(f"encoder fourier has no option {unknown[0]!r}", hint="it has features")
    if isinstance(view, Mapping) or len(view) != 1:
        raise InvalidInput("encoder fourier takes vectors", hint="use the type default")
    return Fourier(name, view[0] + action_size, int(encoder.options.get("features", 128)))
