"""The behaviour model of BCQ, BEAR and PLAS: the step that trains the conditional VAE."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from offrld.engine import Batch, State
from offrld.nets import Params

LATENT_LIMIT = 0.5  # latents drawn for acting are clamped here, where the decoder has seen data


def vae_loss(params: Params, config: Any, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """``mean((g(s, z) - a)^2) + beta mean KL``, with the weight ``config.beta``."""
    value = nets.vae.loss(params, batch.observation, batch.action, batch.noise["vae"], config.beta, batch.mean)
    return value, {"vae_loss": value}
