"""The settings of an encoder, the trunk that turns an observation into features."""

from __future__ import annotations

from dataclasses import dataclass

from offrld.settings import setting

ACTIVATIONS = ("relu", "tanh", "swish", "gelu", "geglu", "none")


@dataclass(frozen=True)
class Encoder:
    """How observations (and continuous actions) become features.

    ``default`` takes images through ``pixel`` and vectors through ``vector``; observations with several fields are combined: each
    image through ``pixel``, the vectors joined through the vector encoder that `type` names, the features joined.
    """

    type: str = setting("default", "kind of encoder", probe="dense")
    units: tuple[int, ...] = setting((256, 256), "width of each hidden layer (vector, dense)", unit="units", low=1, probe=(24,))
    activation: str = setting("relu", "activation of the hidden layers; geglu doubles each layer and gates one half with the other",
                              choices=ACTIVATIONS)  # fmt: skip
    batch_norm: bool = setting(False, "batch norm after each layer's activation (vector, dense, pixel)")
    layer_norm: bool = setting(False, "layer norm after each hidden layer's activation (vector, dense; pixel: after its last layer)")
    dropout: float = setting(0.0, "share of features (of channels, for images) dropped after each layer in training",
                             low=0.0, high=0.99, probe=0.5)  # fmt: skip
    last_activation: bool = setting(True, "activation after the last layer too (vector, dense, pixel)")
    filters: tuple[int, ...] = setting((32, 8, 4, 64, 4, 2, 64, 3, 1), "convolutions of pixel: channels, kernel size and stride of each",
                                       low=1)  # fmt: skip
    feature_size: int | None = setting(None, "features (none: 512 for pixel, 256 for simba)", unit="units", low=1)
    hidden_size: int = setting(1024, "width inside each block of simba", unit="units", low=1)
    blocks: int = setting(1, "residual blocks of simba", unit="blocks", low=1)
