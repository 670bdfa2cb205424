"""The conditional VAE that models the data's actions in BCQ, BEAR and PLAS (Kingma & Welling 2014; Fujimoto et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from offrld.nets.distributions import Normal
from offrld.nets.encoders import Encoder, Observation, Params, View
from offrld.nets.heads import EncodedLinear

LOG_STD_RANGE = (-4.0, 15.0)


class ConditionalVAE:
    """Encoder ``e(s, a) -> N(mu, std)`` over latents ``[B, L]`` and decoder ``g(s, z) -> action``.

    Callers that draw latents for acting clamp them to [-0.5, 0.5] themselves.
    """

    def __init__(
        self, name: str, view: View, action_size: int, encoder_encoder: Encoder, decoder_encoder: Encoder, latent: int | None = None
    ) -> None:
        self.name = name
        self.latent_size = 2 * action_size if latent is None else latent
        self._encoder = EncodedLinear(f"{name}.encoder", view, 2 * self.latent_size, encoder_encoder, action_size=action_size)
        self._decoder = EncodedLinear(f"{name}.decoder", view, action_size, decoder_encoder, action_size=self.latent_size)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._encoder.init(generator, dtype) | self._decoder.init(generator, dtype)

    def encode(self, params: Params, observation: Observation, action: Tensor) -> Normal:
        """Return the distribution over the latent of action ``[B, A]``."""
        mean, log_std = self._encoder(params, observation, action).chunk(2, dim=-1)
        return Normal(mean, log_std.clamp(*LOG_STD_RANGE))

    def decode(self, params: Params, observation: Observation, latent: Tensor, *, squash: bool = True) -> Tensor:
        """Decode latent ``[B, L]`` to action ``[B, A]`` (``[K, B, L]`` to ``[K, B, A]``), squashed to [-1, 1] or before the tanh."""
        out = self._decoder(params, observation, latent)
        return torch.tanh(out) if squash else out

    def loss(
        self,
        params: Params,
        observation: Observation,
        action: Tensor,
        noise: Tensor,
        beta: float,
        mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> Tensor:
        """Return ``mean((g(s, z) - a)^2) + beta mean KL(N(mu, std) || N(0, 1))``, a scalar; z from standard normal ``noise [B, L]``.

        The function ``mean`` computes both means, over the batch and all dimensions.
        """
        latent = self.encode(params, observation, action)
        reconstruction = self.decode(params, observation, latent.sample(noise))
        divergence = 0.5 * (latent.mean**2 + torch.exp(2 * latent.log_std) - 1) - latent.log_std  # [B, L]
        return mean((reconstruction - action) ** 2) + beta * mean(divergence)
