"""The image encoder: convolutions without padding and a linear layer, by default those of Nature DQN (Mnih et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.errors import InvalidInput
from offrld.fits import fitting, too_small
from offrld.nets.encoders.layers import Stage
from offrld.nets.encoders.settings import Encoder
from offrld.nets.linear import Linear, Params, uniform_init

FEATURES = 512


class PixelEncoder:
    """Convolutions ``NAME.0`` to ``NAME.n-1``, then the linear layer ``NAME.n`` that also takes the action.

    Raises:
        InvalidInput: the image is too small for the filters.
    """

    def __init__(self, name: str, view: tuple[int, ...], encoder: Encoder, action_size: int = 0) -> None:
        self.name, self._view = name, tuple(view)
        channels, *size = view
        self._convolutions: list[tuple[tuple[int, int, int, int], int, Stage]] = []
        if problem := too_small(size[0], size[1], encoder.filters):
            raise InvalidInput(problem, hint=f"use larger images, or smaller filters, for example {fitting(*size)}")
        for i, (width, kernel, stride) in enumerate(encoder.convolutions):
            stage = Stage(f"{name}.{i}", width, encoder, image=True)
            self._convolutions.append(((stage.produced, channels, kernel, kernel), stride, stage))
            channels, size = width, [(side - kernel) // stride + 1 for side in size]
        self.feature_size = encoder.feature_size or FEATURES
        last = f"{name}.{len(self._convolutions)}"
        self._stage = Stage(last, self.feature_size, encoder, activation=encoder.last_activation)
        self._linear = Linear(last, channels * size[0] * size[1] + action_size, self._stage.produced)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for shape, _, stage in self._convolutions:
            shapes = {f"{stage.name}.weight": shape, f"{stage.name}.bias": shape[:1]}
            params |= uniform_init(shapes, shape[1] * shape[2] * shape[3], generator, dtype) | stage.init(dtype)
        return params | self._linear.init(generator, dtype) | self._stage.init(dtype)

    def __call__(self, params: Params, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features ``[B, F]`` of images ``[B, C, H, W]`` (and action ``[B, A]``); with actions ``[K, B, A]``, ``[K, B, F]``.

        The convolutions process each image only once, however many actions come with it; all its actions share one dropout mask there.
        """
        leading = observation.shape[:-3]
        x = observation.reshape(-1, *self._view)
        for _, stride, stage in self._convolutions:
            x = stage(params, F.conv2d(x, params[f"{stage.name}.weight"], params[f"{stage.name}.bias"], stride=stride))  # [N, C, H, W]
        parts = (x.reshape(*leading, -1),) if action is None else (x.reshape(*leading, -1), action)
        return self._stage(params, self._linear(params, *parts, relu=self._stage.relu), activated=self._stage.relu)  # [..., F]
