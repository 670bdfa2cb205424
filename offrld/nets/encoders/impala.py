"""The residual image encoder (Espeholt et al. 2018, IMPALA, figure 3, without its recurrent part)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets.encoders.layers import Stage, activate
from offrld.nets.encoders.settings import Encoder
from offrld.nets.linear import Linear, Params, xavier_init

FEATURES = 256
BLOCKS = 2  # residual blocks per stage


class ImpalaEncoder:
    """Stages of a 3x3 convolution, a max pool that halves the image, and two blocks ``x + conv(act(conv(act(x))))``; then a linear layer.

    Parameters: ``NAME.stage_i.conv.*``, per block ``NAME.stage_i.block_j.first.*`` and ``.second.*``, and ``NAME.linear.*``.
    """

    def __init__(self, name: str, view: tuple[int, ...], encoder: Encoder, action_size: int = 0) -> None:
        self.name, self._view = name, tuple(view)
        self._activation = encoder.activation if encoder.activation != "geglu" else "gelu"  # geglu would halve the channels
        channels, height, width = view
        self._stages: list[tuple[str, int, int]] = []  # name, channels in, channels out
        for i, wide in enumerate(encoder.channels):
            self._stages.append((f"{name}.stage_{i}", channels, wide))
            channels, height, width = wide, (height + 1) // 2, (width + 1) // 2
        self.feature_size = encoder.feature_size or FEATURES
        self._stage = Stage(f"{name}.linear", self.feature_size, encoder, activation=encoder.last_activation)
        self._linear = Linear(f"{name}.linear", channels * height * width + action_size, self._stage.produced)

    def _convolutions(self) -> list[tuple[str, int, int]]:
        convolutions = []
        for stage, before, after in self._stages:
            convolutions.append((f"{stage}.conv", before, after))
            convolutions += [(f"{stage}.block_{j}.{part}", after, after) for j in range(BLOCKS) for part in ("first", "second")]
        return convolutions

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for name, before, after in self._convolutions():
            params |= xavier_init(name, (after, before, 3, 3), generator, dtype)
        return params | self._linear.init(generator, dtype) | self._stage.init(dtype)

    def __call__(self, params: Params, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return features ``[B, F]`` of images ``[B, C, H, W]`` (and action ``[B, A]``); with actions ``[K, B, A]``, ``[K, B, F]``."""
        leading = observation.shape[:-3]
        x = observation.reshape(-1, *self._view)
        for stage, _, _ in self._stages:
            x = F.max_pool2d(_conv(params, f"{stage}.conv", x), kernel_size=3, stride=2, padding=1)  # [N, C, H, W]
            for j in range(BLOCKS):
                inner = _conv(params, f"{stage}.block_{j}.first", activate(self._activation, x))
                x = x + _conv(params, f"{stage}.block_{j}.second", activate(self._activation, inner))
        x = activate(self._activation, x).reshape(*leading, -1)
        parts = (x,) if action is None else (x, action)
        return self._stage(params, self._linear(params, *parts, relu=self._stage.relu), activated=self._stage.relu)  # [..., F]


def _conv(params: Params, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], padding=1)
