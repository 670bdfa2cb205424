"""The behaviour model of BCQ, BEAR and PLAS: the loss of the conditional VAE."""

from __future__ import annotations

from typing import Any, Protocol

from offrld.engine import Batch, LossResult, State
from offrld.nets import ConditionalVAE, Params

LATENT_LIMIT = 0.5  # latents drawn for acting are clamped to [-0.5, 0.5], where the decoder has seen data


class HasVAE(Protocol):
    """The networks of any algorithm with a model of the data's actions."""

    @property
    def vae(self) -> ConditionalVAE: ...


def vae_loss(params: Params, config: Any, nets: HasVAE, state: State, batch: Batch) -> LossResult:
    """Return ``mean((g(s, z) - a)^2) + beta mean KL``; beta is ``config.beta``."""
    value = nets.vae.loss(params, batch.observation, batch.action, batch.noise["vae"], config.beta, batch.mean)
    return value, {"vae_loss": value}
