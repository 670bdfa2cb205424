"""The part of a layer after its matrix product: activation, batch norm, layer norm and dropout, in this order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.errors import InvalidInput
from offrld.nets.context import context_of
from offrld.nets.encoders.settings import Encoder
from offrld.nets.linear import Params

MOMENTUM, EPS = 0.1, 1e-5  # torch's defaults


def activate(name: str, x: Tensor, axis: int = -1) -> Tensor:
    """Apply the activation called ``name``; geglu halves ``axis``: one half times the gelu of the other."""
    if name == "relu":
        return F.relu(x)
    if name == "tanh":
        return torch.tanh(x)
    if name == "swish":
        return F.silu(x)
    if name == "gelu":
        return F.gelu(x)
    if name == "geglu":
        values, gates = x.chunk(2, dim=axis)
        return values * F.gelu(gates)
    if name == "none":
        return x
    raise InvalidInput(f"unknown activation {name!r}", hint="see `offrl algos NAME`")


class Stage:
    """The part of a layer after its product: ``x [..., produced]`` to ``[..., width]``; for images ``[N, produced, H, W]``.

    Args:
        name: name of the layer; layer norm has the parameters ``NAME.norm.*``, batch norm ``NAME.batch_norm.*``.
        width: number of output features (channels).
        activation: whether this layer applies the activation.
        image: the features are the channels of images; batch norm and dropout then act per channel.
        norms: whether this layer applies the norms that the settings enable (layer norm never on images).
    """

    def __init__(
        self, name: str, width: int, encoder: Encoder, *, activation: bool = True, image: bool = False, norms: bool = True
    ) -> None:
        self.name, self.width = name, width
        self._activation = encoder.activation if activation else "none"
        self.produced = 2 * width if self._activation == "geglu" else width
        self._image = image
        self._batch_norm = encoder.batch_norm and norms
        self._layer_norm = encoder.layer_norm and norms and not image
        self._dropout = encoder.dropout
        self.relu = self._activation == "relu"  # the preceding linear operation may apply it
        self.only_relu = self.relu and not (self._batch_norm or self._layer_norm or self._dropout)

    def init(self, dtype: torch.dtype) -> Params:
        params: Params = {}
        if self._batch_norm:
            start = f"{self.name}.batch_norm"
            params |= init_norm(start, self.width, dtype)
            params[f"{start}.running_mean"] = torch.zeros(self.width, dtype=dtype)
            params[f"{start}.running_var"] = torch.ones(self.width, dtype=dtype)
        if self._layer_norm:
            params |= init_norm(f"{self.name}.norm", self.width, dtype)
        return params

    def __call__(self, params: Params, x: Tensor, *, activated: bool = False) -> Tensor:
        """Apply the layer's operations to ``x``; ``activated``: the activation has already been applied."""
        if not activated:
            x = F.relu(x) if self.relu else activate(self._activation, x, axis=1 if self._image else -1)
        if self._batch_norm:
            x = batch_norm(params, f"{self.name}.batch_norm", x, image=self._image)
        if self._layer_norm:
            x = layer_norm(params, f"{self.name}.norm", x)
        if self._dropout:
            x = dropout(params, f"{self.name}.dropout", x, self._dropout, image=self._image)
        return x


def init_norm(name: str, width: int, dtype: torch.dtype) -> Params:
    """Return the initial parameters of a norm: weight 1 and bias 0."""
    return {f"{name}.weight": torch.ones(width, dtype=dtype), f"{name}.bias": torch.zeros(width, dtype=dtype)}


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Apply layer norm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], EPS)


def batch_norm(params: Params, name: str, x: Tensor, *, image: bool) -> Tensor:
    """Apply batch norm to ``x [..., F]`` over all axes but the last, or to images ``[N, C, H, W]`` over all but the channels.

    In training it uses the batch's statistics and puts the updated running statistics into the context; otherwise it uses the running ones.
    """
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    mean, variance = params[f"{name}.running_mean"], params[f"{name}.running_var"]
    context = context_of(params)
    if context is None or not context.training:
        scale = weight * torch.rsqrt(variance + EPS)
        shift = bias - mean * scale
        return x * scale[:, None, None] + shift[:, None, None] if image else x * scale + shift
    rows = x if image else x.reshape(-1, x.shape[-1])
    axes = (0, 2, 3) if image else (0,)
    count = rows.numel() // rows.shape[1]
    if count < 2:
        raise InvalidInput("batch norm cannot train on one row, whose variance is undefined", hint="set batch_size to 2 or more")
    with torch.no_grad():
        # A loss may evaluate a network several times; as in torch, each evaluation updates the running statistics.
        batch_variance, batch_mean = torch.var_mean(rows, dim=axes, correction=1)
        for part, running, current in (("running_mean", mean, batch_mean), ("running_var", variance, batch_variance)):
            running = context.updates.get(f"{name}.{part}", running).detach()
            context.updates[f"{name}.{part}"] = running + MOMENTUM * (current - running)
    return F.batch_norm(rows, None, None, weight, bias, True, MOMENTUM, EPS).reshape(x.shape)


def dropout(params: Params, name: str, x: Tensor, rate: float, *, image: bool = False) -> Tensor:
    """In training, set a fraction ``rate`` of the features to 0 (for images ``[N, C, H, W]``, of the channels) and scale up the rest."""
    context = context_of(params)
    if context is None or not context.training:
        return x
    shape = (*x.shape[:2], 1, 1) if image else x.shape
    mask = context.uniform(name, shape, x) >= rate
    return x * (mask.to(x.dtype) / (1.0 - rate))
