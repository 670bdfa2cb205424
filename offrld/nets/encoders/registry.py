"""Build an encoder from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrld.nets.encoders.combined import CombinedEncoder
from offrld.nets.encoders.impala import ImpalaEncoder
from offrld.nets.encoders.pixel import PixelEncoder
from offrld.nets.encoders.plugins import BUILT_IN, load
from offrld.nets.encoders.settings import Encoder
from offrld.nets.encoders.simba import SimbaEncoder
from offrld.nets.encoders.vector import VectorEncoder
from offrld.nets.linear import Params

IMAGES = ("pixel", "impala")  # types that take images
View = tuple[int, ...] | Mapping[str, tuple[int, ...]]  # shape of an observation, or field -> shape
Observation = Tensor | dict[str, Tensor]  # [B, ...], or field -> [B, ...]


class Network(Protocol):
    """An encoder: it creates its parameters, whose names start with its own, and computes from the parameters that callers pass.

    Each class accepts the observations that it is built for: a tensor, or a dict of tensors by field.
    """

    feature_size: int

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params: ...

    def __call__(self, params: Params, observation: Any, action: Tensor | None = None) -> Tensor: ...


def build(name: str, view: View, encoder: Encoder, action_size: int = 0) -> Network:
    """Build the network that ``encoder`` describes, for observations of the shape ``view`` (without the batch axis).

    Args:
        view: ``(D,)``, ``(C, H, W)``, or ``{field: shape}``.
        action_size: width of the continuous action that is a second input; 0 if there is none.

    Raises:
        Unknown: no encoder has this type.
        InvalidInput: the encoder does not accept such observations, or a plugin's object is not a network.
    """
    if encoder.type not in BUILT_IN:
        return _plugin(name, view, encoder, action_size)
    if isinstance(view, Mapping):
        vectors = [field for field, shape in view.items() if len(shape) != 3]
        if encoder.type in IMAGES and vectors:
            fields = ", ".join(map(repr, vectors))
            raise InvalidInput(
                f"encoder type {encoder.type!r} accepts only images, but the observation has other fields: {fields}",
                hint="use the type default",
            )
        return CombinedEncoder(name, view, encoder, action_size, image=_image, vector=_vector)
    image = len(view) == 3
    if not image and len(view) != 1:
        raise InvalidInput(f"an observation of shape {tuple(view)} is neither a vector nor an image", hint="flatten it before the import")
    if encoder.type != "default" and (encoder.type in IMAGES) != image:
        expected, actual = ("vectors", "images") if image else ("images", "vectors")
        raise InvalidInput(
            f"encoder type {encoder.type!r} accepts {expected}; the observations are {actual} of shape {tuple(view)}",
            hint="use the type default",
        )
    if image:
        return _image(name, view, encoder, action_size)
    return _vector(name, view[0], encoder, action_size)


def _image(name: str, view: tuple[int, ...], encoder: Encoder, action_size: int = 0) -> Network:
    return (ImpalaEncoder if encoder.type == "impala" else PixelEncoder)(name, view, encoder, action_size)


def _vector(name: str, size: int, encoder: Encoder, action_size: int = 0) -> Network:
    if encoder.type == "simba":
        return SimbaEncoder(name, size, encoder, action_size)
    return VectorEncoder(name, size, encoder, action_size, dense=encoder.type == "dense")


def _plugin(name: str, view: View, encoder: Encoder, action_size: int) -> Network:
    network = load(encoder.type).build(name, view, encoder, action_size)
    size = getattr(network, "feature_size", None)
    if not isinstance(size, int) or size < 1 or not callable(network) or not callable(getattr(network, "init", None)):
        raise InvalidInput(
            f"encoder type {encoder.type!r} built {type(network).__name__}, which is not a network",
            hint="a network needs feature_size (at least 1), init(generator, dtype) and a call with (params, observation, action)",
        )
    return network
