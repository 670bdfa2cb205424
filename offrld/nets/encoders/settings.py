"""The settings of an encoder, the trunk that turns an observation into features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offrl.errors import InvalidInput
from offrld.nets.encoders.plugins import BUILT_IN, all_but, plugins, types
from offrld.settings import setting

WIDEST = 65_536  # maximum width of a layer: the weights between two such layers take 16 GB
ACTIVATIONS = ("relu", "tanh", "swish", "gelu", "geglu", "none")


@dataclass(frozen=True)
class Encoder:
    """How observations (and continuous actions) become features.

    ``default`` is ``pixel`` for images and ``vector`` for vectors; ``impala`` is a residual network for images. If an observation has
    several fields, ``pixel`` (or ``impala``) encodes each image, and the vector encoder that `type` names encodes the other fields and
    the action together; the features are concatenated.
    """

    type: str = setting("default", "kind of encoder; default: pixel for images, vector for the rest", choices=types, probe="dense")
    units: tuple[int, ...] = setting(
        (256, 256),
        "width of each hidden layer; for vector and dense",
        unit="units",
        low=1,
        high=WIDEST,
        only=all_but("pixel", "impala", "simba"),
        probe=(24,),
    )
    activation: str = setting(
        "relu", "activation after each layer; geglu doubles the layer's width, and one half gates the other", choices=ACTIVATIONS
    )
    batch_norm: bool = setting(False, "batch norm after each layer's activation (impala: after the last layer only)", only=all_but("simba"))
    layer_norm: bool = setting(
        False, "layer norm after each layer's activation (pixel and impala: after the last layer only)", only=all_but("simba")
    )
    dropout: float = setting(
        0.0, "fraction of a layer's features (for images, channels) dropped in training", low=0.0, high=0.99, probe=0.5
    )
    last_activation: bool = setting(True, "apply the activation after the last layer too", only=all_but("simba"))
    filters: tuple[int, ...] = setting(
        (32, 8, 4, 64, 4, 2, 64, 3, 1),
        "convolutions for images: channels, kernel size and stride of each, in one list",
        low=1,
        high=WIDEST,
        only=all_but("vector", "dense", "impala", "simba"),
        probe=(8, 3, 1),
    )
    channels: tuple[int, ...] = setting(
        (16, 32, 32),
        "channels of each stage of impala; each stage halves the image",
        unit="channels",
        low=1,
        high=WIDEST,
        only=("impala",),
        probe={"type": "impala", "": (4, 4)},
    )
    feature_size: int | None = setting(
        None,
        "number of output features; none: 512 for pixel, 256 for impala and simba",
        unit="units",
        low=1,
        high=WIDEST,
        only=all_but("vector", "dense"),
        probe={"type": "simba", "": 24},
    )
    hidden_size: int = setting(
        1024, "width inside each block of simba", unit="units", low=1, high=WIDEST, only=("simba",), probe={"type": "simba", "": 24}
    )
    blocks: int = setting(
        1, "number of residual blocks of simba", unit="blocks", low=1, high=1000, only=("simba",), probe={"type": "simba", "": 2}
    )
    options: dict[str, Any] = setting({}, "settings for an encoder from another package", only=plugins)

    def __post_init__(self) -> None:
        if len(self.filters) % 3 or not self.filters:
            raise InvalidInput(
                f"filters needs three numbers for each convolution, got {list(self.filters)}",
                hint="give channels, kernel size and stride of each, for example 32, 8, 4, 64, 4, 2",
            )
        if self.options and self.type in BUILT_IN:
            raise InvalidInput(f"encoder type {self.type!r} has no options, got {self.options}", hint="leave options out")

    @property
    def convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """Each convolution's channels, kernel size and stride."""
        return tuple(zip(self.filters[::3], self.filters[1::3], self.filters[2::3], strict=True))
