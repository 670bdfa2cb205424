"""Distributions over continuous actions: the diagonal normal, plain or tanh-squashed. Samples are reparametrised with the passed noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CLAMP = 0.999999  # limit of an action before atanh, which is infinite at 1


@dataclass(frozen=True)
class Normal:
    """A diagonal normal distribution: mean ``[B, A]`` and log standard deviation (``[B, A]`` or ``[A]``)."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density ``[..., B]`` of ``action [..., B, A]``, summed over the action's dimensions."""
        scaled = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled * scaled - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """Return samples from standard normal ``noise [..., B, A]``."""
        return self.mean + torch.exp(self.log_std) * noise


@dataclass(frozen=True)
class SquashedNormal:
    """``tanh(u)`` with ``u ~ N(mean, std)``; both ``[B, A]``.

    ``log pi = sum_j [log N(u_j) - 2 (log 2 - u_j - softplus(-2 u_j))]``; the second term is ``log(1 - tanh(u_j)^2)`` in a form that loses
    no digits.
    """

    mean: Tensor
    log_std: Tensor

    @property
    def mode(self) -> Tensor:
        """The greedy action ``tanh(mean)``, ``[B, A]``."""
        return torch.tanh(self.mean)

    def unsquashed(self, noise: Tensor) -> Tensor:
        """Return samples before the tanh from standard normal ``noise [..., B, A]``."""
        return self.mean + torch.exp(self.log_std) * noise

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions from standard normal ``noise [..., B, A]``, and their log densities ``[..., B]``."""
        u = self.unsquashed(noise)
        # (u - mean) / std is the noise itself.
        return torch.tanh(u), (-0.5 * noise * noise - self.log_std - _log_slope(u) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density ``[..., B]`` of ``action [..., B, A]`` in [-1, 1]."""
        u = torch.atanh(action.clamp(-CLAMP, CLAMP))
        scaled = (u - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled * scaled - self.log_std - _log_slope(u) - 0.5 * math.log(2 * math.pi)).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """Return ``log(d tanh(u) / du)``."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))
