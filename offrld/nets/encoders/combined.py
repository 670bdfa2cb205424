"""The encoder for observations with several fields: one network per image and one for all vectors; their features are concatenated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from offrld.nets.encoders.settings import Encoder
from offrld.nets.linear import Params


class CombinedEncoder:
    """``NAME.image.FIELD`` encodes each image, ``NAME.vector`` the concatenation of all other fields and the action.

    Args:
        view: field -> shape; a field of rank 3 is an image, any other is flattened.
        image: ``(name, shape, encoder) -> network`` for each image.
        vector: ``(name, size, encoder) -> network`` for the concatenated vectors.
    """

    def __init__(
        self,
        name: str,
        view: Mapping[str, tuple[int, ...]],
        encoder: Encoder,
        action_size: int,
        *,
        image: Callable[[str, tuple[int, ...], Encoder], Any],
        vector: Callable[[str, int, Encoder], Any],
    ) -> None:
        self.name = name
        self._images = {field: image(f"{name}.image.{field}", shape, encoder) for field, shape in view.items() if len(shape) == 3}
        self._vectors = {field: shape for field, shape in view.items() if len(shape) != 3}
        size = sum(math.prod(shape) for shape in self._vectors.values()) + action_size
        self._vector = vector(f"{name}.vector", size, encoder) if size else None
        parts = [*self._images.values(), *([self._vector] if self._vector else [])]
        self.feature_size = sum(part.feature_size for part in parts)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for part in (*self._images.values(), self._vector):
            if part is not None:
                params |= part.init(generator, dtype)
        return params

    def __call__(self, params: Params, observation: Mapping[str, Tensor], action: Tensor | None = None) -> Tensor:
        """Return features ``[B, F]`` of fields ``[B, ...]`` (and action ``[B, A]``); with actions ``[K, B, A]``, ``[K, B, F]``."""
        features = [network(params, observation[field]) for field, network in self._images.items()]
        if self._vector is not None:
            flat = [observation[field].reshape(*_leading(observation[field], shape), -1) for field, shape in self._vectors.items()]
            joined = [torch.cat(flat, dim=-1)] if flat else []
            features.append(self._vector(params, *joined, *([] if action is None else [action])))
        leading = torch.broadcast_shapes(*(part.shape[:-1] for part in features))
        return torch.cat([part.expand(*leading, part.shape[-1]) for part in features], dim=-1)  # [..., F]


def _leading(x: Tensor, shape: tuple[int, ...]) -> torch.Size:
    return x.shape[: x.ndim - len(shape)]
