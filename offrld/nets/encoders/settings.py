"""The settings of an encoder, the trunk that turns an observation into features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offrl.errors import InvalidInput
from offrld.nets.encoders.plugins import BUILT_IN, all_but, plugins, types
from offrld.settings import setting

WIDEST = 65_536  # of a layer: two such layers have 16 GB of parameters
ACTIVATIONS = ("relu", "tanh", "swish", "gelu", "geglu", "none")


@dataclass(frozen=True)
class Encoder:
    """How observations (and continuous actions) become features.

    ``default`` takes images through ``pixel`` and vectors through ``vector``; ``impala`` is a residual network for images. If an
    observation has several fields, each image goes through ``pixel`` (or ``impala``), the other fields joined (with the action) through
    the vector encoder that `type` names, and the features are joined.
    """

    type: str = setting("default", "kind of encoder; default: pixel for images, vector for the rest", choices=types, probe="dense")
    units: tuple[int, ...] = setting(
        (256, 256),
        "width of each hidden layer of vector and dense",
        unit="units",
        low=1,
        high=WIDEST,
        only=all_but("pixel", "impala", "simba"),
        probe=(24,),
    )
    activation: str = setting(
        "relu", "activation after each layer; geglu makes it twice as wide and lets one half gate the other", choices=ACTIVATIONS
    )
    batch_norm: bool = setting(False, "batch norm after each layer's activation (impala: after the last layer only)", only=all_but("simba"))
    layer_norm: bool = setting(
        False, "layer norm after each layer's activation (pixel and impala: after the last layer only)", only=all_but("simba")
    )
    dropout: float = setting(0.0, "share of a layer's features (of an image: channels) dropped in training", low=0.0, high=0.99, probe=0.5)
    last_activation: bool = setting(True, "activation after the last layer too", only=all_but("simba"))
    filters: tuple[int, ...] = setting(
        (32, 8, 4, 64, 4, 2, 64, 3, 1),
        "convolutions of images: channels, kernel size and stride of each",
        low=1,
        high=WIDEST,
        only=all_but("vector", "dense", "impala", "simba"),
        probe=(8, 3, 1),
    )
    channels: tuple[int, ...] = setting(
        (16, 32, 32),
        "channels of each stage of impala, which halves the image",
        unit="channels",
        low=1,
        high=WIDEST,
        only=("impala",),
        probe={"type": "impala", "": (4, 4)},
    )
    feature_size: int | None = setting(
        None,
        "features; none: 512 of an image, 256 of impala and simba",
        unit="units",
        low=1,
        high=WIDEST,
        only=all_but("vector", "dense"),
        probe={"type": "simba", "": 24},
    )
    hidden_size: int = setting(
        1024, "width inside each block of simba", unit="units", low=1, high=WIDEST, only=("simba",), probe={"type": "simba", "": 24}
    )
    blocks: int = setting(1, "residual blocks of simba", unit="blocks", low=1, high=1000, only=("simba",), probe={"type": "simba", "": 2})
    options: dict[str, Any] = setting({}, "further settings of an encoder of an installed package", only=plugins)

    def __post_init__(self) -> None:
        if len(self.filters) % 3 or not self.filters:
            raise InvalidInput(
                f"filters takes three numbers for each convolution, got {list(self.filters)}",
                hint="channels, kernel size, stride: 32, 8, 4, 64, 4, 2",
            )
        if self.options and self.type in BUILT_IN:
            raise InvalidInput(f"encoder type {self.type!r} takes no options, got {self.options}", hint="leave options out")

    @property
    def convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """Channels, kernel size and stride of each convolution."""
        return tuple(zip(self.filters[::3], self.filters[1::3], self.filters[2::3], strict=True))
