"""The encoders as torch.nn modules, written from the description of the layers, as a reference for the tests."""

from __future__ import annotations

import torch
from torch import nn


class Geglu(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, gates = x.tensor_split(2, dim=self.axis)
        return values * nn.functional.gelu(gates)


def activation(name: str, axis: int = -1) -> nn.Module:
    return {"relu": nn.ReLU, "tanh": nn.Tanh, "swish": nn.SiLU, "gelu": nn.GELU, "none": nn.Identity, "geglu": lambda: Geglu(axis)}[name]()


def after(encoder, width: int, *, active: bool = True, image: bool = False) -> list[nn.Module]:
    """What follows a product: activation, batch norm, layer norm, dropout."""
    parts: list[nn.Module] = [activation(encoder.activation, 1 if image else -1)] if active else []
    if encoder.batch_norm:
        parts.append(nn.BatchNorm2d(width) if image else nn.BatchNorm1d(width))
    if encoder.layer_norm and not image:
        parts.append(nn.LayerNorm(width))
    if encoder.dropout:
        parts.append(nn.Dropout2d(encoder.dropout) if image else nn.Dropout(encoder.dropout))
    return parts


def doubled(encoder, width: int, active: bool = True) -> int:
    return 2 * width if encoder.activation == "geglu" and active else width


class TorchVector(nn.Module):
    def __init__(self, inputs: int, encoder, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.layers = nn.ModuleList()
        before = inputs
        for i, width in enumerate(encoder.units):
            active = encoder.last_activation or i + 1 < len(encoder.units)
            first = nn.Linear(before, doubled(encoder, width, active))
            self.layers.append(nn.Sequential(first, *after(encoder, width, active=active)))
            before = width + (inputs if dense else 0)

    def forward(self, observation, action=None):
        given = observation if action is None else torch.cat([observation, action], -1)
        x = given
        for i, layer in enumerate(self.layers):
            x = layer(torch.cat([x, given], -1) if self.dense and i else x)
        return x


class TorchPixel(nn.Module):
    def __init__(self, view, encoder, action_size: int) -> None:
        super().__init__()
        stages, channels = [], view[0]
        for width, kernel, stride in encoder.convolutions:
            convolution = nn.Conv2d(channels, doubled(encoder, width), kernel, stride)
            stages.append(nn.Sequential(convolution, *after(encoder, width, image=True)))
            channels = width
        self.convolutions = nn.Sequential(*stages)
        with torch.no_grad():
            flat = self.convolutions.eval()(torch.zeros(1, *view)).numel()
        self.train()
        width, active = encoder.feature_size or 512, encoder.last_activation
        self.last = nn.Sequential(nn.Linear(flat + action_size, doubled(encoder, width, active)), *after(encoder, width, active=active))

    def forward(self, observation, action=None):
        flat = self.convolutions(observation).flatten(1)
        return self.last(flat if action is None else torch.cat([flat, action], -1))


class TorchImpala(nn.Module):
    def __init__(self, view, encoder, action_size: int) -> None:
        super().__init__()
        kind = "gelu" if encoder.activation == "geglu" else encoder.activation
        self.active = activation(kind)
        self.stages = nn.ModuleList()
        (channels, height, width) = view
        for wide in encoder.channels:
            stage = nn.Module()
            stage.conv = nn.Sequential(nn.Conv2d(channels, wide, 3, padding="same"), nn.MaxPool2d(3, 2, 1))
            stage.blocks = nn.ModuleList(
                nn.Sequential(activation(kind), nn.Conv2d(wide, wide, 3, 1, 1), activation(kind), nn.Conv2d(wide, wide, 3, 1, 1))
                for _ in range(2)
            )
            self.stages.append(stage)
            channels, height, width = wide, -(-height // 2), -(-width // 2)
        out, last = encoder.feature_size or 256, encoder.last_activation
        linear = nn.Linear(channels * height * width + action_size, doubled(encoder, out, last))
        self.last = nn.Sequential(linear, *after(encoder, out, active=last))

    def forward(self, observation, action=None):
        x = observation
        for stage in self.stages:
            x = stage.conv(x)
            for block in stage.blocks:
                x = x + block(x)
        flat = self.active(x).flatten(1)
        return self.last(flat if action is None else torch.cat([flat, action], -1))


class TorchSimba(nn.Module):
    def __init__(self, inputs: int, encoder) -> None:
        super().__init__()
        width = encoder.feature_size or 256
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList()
        for _ in range(encoder.blocks):
            dropout = [nn.Dropout(encoder.dropout)] if encoder.dropout else []
            hidden = nn.Linear(width, doubled(encoder, encoder.hidden_size))
            parts = [nn.LayerNorm(width), hidden, activation(encoder.activation), *dropout, nn.Linear(encoder.hidden_size, width)]
            self.blocks.append(nn.Sequential(*parts))
        self.norm = nn.LayerNorm(width)

    def forward(self, observation, action=None):
        x = self.input(observation if action is None else torch.cat([observation, action], -1))
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


class TorchCombined(nn.Module):
    def __init__(self, view, encoder, action_size: int) -> None:
        super().__init__()
        self.images = nn.ModuleDict({name: TorchPixel(shape, encoder, 0) for name, shape in view.items() if len(shape) == 3})
        self.names = [name for name in view if name not in self.images]
        self.vector = torch_vector(sum(view[name][0] for name in self.names) + action_size, encoder)

    def forward(self, observation, action=None):
        vectors = [observation[name] for name in self.names] + ([] if action is None else [action])
        return torch.cat([*(net(observation[name]) for name, net in self.images.items()), self.vector(torch.cat(vectors, -1))], -1)


def torch_vector(inputs: int, encoder) -> nn.Module:
    return TorchSimba(inputs, encoder) if encoder.type == "simba" else TorchVector(inputs, encoder, encoder.type == "dense")


def torch_encoder(view, encoder, action_size: int, params) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The module with the values of ``params``, and its own tensors by our names. Both list theirs in the order of the layers."""
    if isinstance(view, dict):
        module = TorchCombined(view, encoder, action_size)
    elif len(view) == 3:
        module = (TorchImpala if encoder.type == "impala" else TorchPixel)(view, encoder, action_size)
    else:
        module = torch_vector(view[0] + action_size, encoder)
    module = module.to(torch.float64)
    theirs = {name: value for name, value in module.state_dict(keep_vars=True).items() if not name.endswith("num_batches_tracked")}
    assert len(theirs) == len(params)
    named = dict(zip(params, theirs.values(), strict=True))
    with torch.no_grad():
        for name, value in params.items():
            assert named[name].shape == value.shape, name
            named[name].copy_(value)
    return module, named
