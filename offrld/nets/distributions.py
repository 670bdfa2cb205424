"""Distributions over continuous actions: the plain and the tanh-squashed diagonal normal. Samples are reparametrised from given noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CLAMP = 0.999999  # of a given action before atanh, which is infinite at 1


@dataclass(frozen=True)
class Normal:
    """A diagonal normal distribution: mean ``[B, A]`` and the logarithm of its deviation (``[B, A]`` or ``[A]``)."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density of ``action [..., B, A]``, summed over the action's dimensions: ``[..., B]``."""
        scaled = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled * scaled - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """The samples that standard normal ``noise [..., B, A]`` gives."""
        return self.mean + torch.exp(self.log_std) * noise


@dataclass(frozen=True)
class SquashedNormal:
    """``tanh(u)`` with ``u ~ N(mean, std)``; both ``[B, A]``.

    ``log pi = sum_j [log N(u_j) - 2 (log 2 - u_j - softplus(-2 u_j))]``, the last term being ``log(1 - tanh(u_j)^2)`` without its
    loss of digits.
    """

    mean: Tensor
    log_std: Tensor

    @property
    def mode(self) -> Tensor:
        """``tanh(mean)``: the greedy action ``[B, A]``."""
        return torch.tanh(self.mean)

    def unsquashed(self, noise: Tensor) -> Tensor:
        """The samples before the tanh that standard normal ``noise [..., B, A]`` gives."""
        return self.mean + torch.exp(self.log_std) * noise

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The actions that ``noise [..., B, A]`` gives, and their log densities ``[..., B]``."""
        u = self.unsquashed(noise)
        # (u - mean) / std is the noise itself.
        return torch.tanh(u), (-0.5 * noise * noise - self.log_std - _log_slope(u) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density of ``action [..., B, A]`` in [-1, 1]: ``[..., B]``."""
        u = torch.atanh(action.clamp(-CLAMP, CLAMP))
        scaled = (u - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled * scaled - self.log_std - _log_slope(u) - 0.5 * math.log(2 * math.pi)).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """``log(d tanh(u) / du)``."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))
