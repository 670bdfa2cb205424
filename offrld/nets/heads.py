"""The usual form of a network: an encoder with one linear layer on its features."""

from __future__ import annotations

import torch
from torch import Tensor

from offrld.nets.encoders import Encoder, Network, Observation, Params, View, build
from offrld.nets.encoders.vector import VectorEncoder
from offrld.nets.linear import Linear, layers


class EncodedLinear:
    """An encoder (``NAME.encoder``) with a linear layer on top (``NAME.head``): observation ``[B, ...]`` to ``[B, outputs]``.

    With ``action_size`` it also takes an action ``[B, A]``, or actions ``[K, B, A]`` to ``[K, B, outputs]``. ``shared`` is an encoder of
    another network to use; that network creates its parameters.
    """

    def __init__(
        self, name: str, view: View, outputs: int, encoder: Encoder, *, action_size: int = 0, shared: Network | None = None
    ) -> None:
        self.name = name
        self._own = shared is None
        self._encoder = build(f"{name}.encoder", view, encoder, action_size) if shared is None else shared
        self._head = Linear(f"{name}.head", self._encoder.feature_size, outputs)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params = self._encoder.init(generator, dtype) if self._own else {}
        return params | self._head.init(generator, dtype)

    def __call__(self, params: Params, observation: Observation, action: Tensor | None = None) -> Tensor:
        return headed(params, self._encoder, self._head, observation, action)


def headed(params: Params, encoder: Network, head: Linear, observation: Observation, action: Tensor | None = None) -> Tensor:
    """Apply ``head`` to the encoder's features, as one operation if the encoder consists only of linear layers with relu."""
    if isinstance(encoder, VectorEncoder) and encoder.plain and isinstance(observation, Tensor):
        parts = (observation,) if action is None else (observation, action)
        return layers(parts, [layer.pair(params) for layer in (*encoder.plain, head)])
    return head(params, encoder(params, observation, action))
