"""Which encoders there are, and how one is made from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from offrl.errors import Unknown, nearest
from offrld.nets.encoders.settings import Encoder
from offrld.nets.encoders.vector import VectorEncoder
from offrld.nets.linear import Params

View = tuple[int, ...] | Mapping[str, tuple[int, ...]]


class Network(Protocol):
    """What an encoder is: it makes its parameters, whose names begin with its name, and computes from those it is given."""

    feature_size: int

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params: ...

    def __call__(self, params: Params, observation: Tensor, action: Tensor | None = None) -> Tensor: ...


def build(name: str, view: View, encoder: Encoder, action_size: int = 0) -> Network:
    """The network that ``encoder`` describes for observations of the shape(s) ``view``, without the batch axis.

    Args:
        view: ``(D,)``, ``(C, H, W)``, or ``{field: shape}``.
        action_size: width of the continuous actions that it takes beside the observation; 0: none.
    """
    if encoder.type in ("default", "vector", "dense"):
        return VectorEncoder(name, view[0], encoder, action_size, dense=encoder.type == "dense")
    raise Unknown(f"unknown encoder {encoder.type!r}", hint=nearest(encoder.type, ["default", "vector", "dense"]))
