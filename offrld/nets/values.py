"""Values of an ensemble of Q functions: numbers or quantiles, how they are reduced over the members, and their errors.

Shapes: N members, ``...`` the batch ``B`` (or candidates and batch ``K, B``), n discrete actions, M quantiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.errors import InvalidInput

Reduction = Literal["min", "max", "mean", "mix"]
MEANS = ("squared", "huber")  # errors of the mean Q function
PROPOSAL_RATE = 1e-4  # weight of FQF's proposal gradient; the paper gives the proposal net a slower optimiser of its own instead


@dataclass(frozen=True)
class Proposal:
    """What FQF's proposal net is trained by.

    Attributes:
        fractions: the proposed tau_1 .. tau_M ``[N, ..., M]``, with the gradient to the proposal net.
        inner: gives the quantiles at tau_1 .. tau_{M-1}, ``[N, ..., (n,) M-1]``; evaluated only where an error is asked for.
        entropy: of the proposed probabilities, ``[N, ...]``.
        entropy_coeff: its weight.
    """

    fractions: Tensor
    inner: Callable[[], Tensor]
    entropy: Tensor
    entropy_coeff: float

    def taken(self, action: Tensor) -> Proposal:
        return dataclasses.replace(self, inner=lambda: _quantiles_taken(self.inner(), action))

    def errors(self, middles: Tensor) -> Tensor:
        """``[N, ...]``: zero plus a term whose gradient is the proposal's, minus the weighted entropy.

        The gradient of the 1-Wasserstein error with respect to tau_j is ``2 theta(tau_j) - theta(tau^_j) - theta(tau^_{j+1})``; it is
        handed to tau_j as a constant factor, so that nothing but the proposal net moves.
        """
        middles = middles.detach()
        gradient = 2 * self.inner().detach() - middles[..., :-1] - middles[..., 1:]
        surrogate = PROPOSAL_RATE * (gradient * self.fractions[..., :-1]).sum(-1)
        return surrogate - surrogate.detach() - self.entropy_coeff * self.entropy


@dataclass(frozen=True)
class Values:
    """Values of N members at the same inputs.

    Attributes:
        mean: expected values, ``[N, ...]`` at given actions or ``[N, ..., n]`` of all discrete ones.
        quantiles: ``[N, ..., M]`` or ``[N, ..., n, M]``; M = 1 for the mean Q function, where it is a view of ``mean``.
        kind: the error: squared, Huber (both of the mean Q function), quantile Huber, or a package's own.
        fractions: where the quantiles lie, ``[M]`` or ``[N, ..., M]``; None for the mean Q function and a package's.
        proposal: FQF's.
        own: a package's error of numbers ``[N, ..., M]`` against targets ``[..., M]``; its numbers stand in ``quantiles``.
    """

    mean: Tensor
    quantiles: Tensor
    kind: Literal["squared", "huber", "quantile", "own"]
    fractions: Tensor | None = None
    proposal: Proposal | None = None
    own: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def of_means(cls, mean: Tensor, kind: Literal["squared", "huber"]) -> Values:
        """Of the mean Q function."""
        return cls(mean, mean.unsqueeze(-1), kind)

    def taken(self, action: Tensor) -> Values:
        """Of discrete actions ``[...]`` (int64), from the values of all actions."""
        mean = taken(self.mean, action)  # [N, ...]
        if self.kind in MEANS:
            return Values.of_means(mean, self.kind)
        proposal = None if self.proposal is None else self.proposal.taken(action)
        return Values(mean, _quantiles_taken(self.quantiles, action), self.kind, self.fractions, proposal, self.own)

    @property
    def average(self) -> Tensor:
        """Expected values averaged over the members, ``[...]`` or ``[..., n]``."""
        return self.mean[0] if len(self.mean) == 1 else self.mean.mean(0)

    def reduce(self, how: Reduction = "min", lam: float = 0.75) -> Tensor:
        """One member's quantiles per sample, ``[..., M]`` (per sample and action, ``[..., n, M]``, for values of all actions).

        ``min`` and ``max`` choose the member by its expected value and take all its quantiles; ``mix`` is
        ``lam min + (1 - lam) max``; ``mean`` averages and exists for the mean Q function only, since quantiles of different
        members lie at different fractions.
        """
        return self._reduced(how, lam)[0]

    def best(self, lam: float = 0.75) -> tuple[Tensor, Tensor]:
        """Of candidates: values ``[N, K, B]`` to the best candidate's mixed quantiles ``[B, M]`` and its number ``[B]``.

        Each candidate's members are mixed as by ``reduce("mix", lam)``; the best has the largest mixed expected value.
        """
        quantiles, mean = self._reduced("mix", lam)  # [K, B, M], [K, B]
        choice = mean.argmax(0)  # [B]
        index = choice.unsqueeze(-1).expand(quantiles.shape[1:]).unsqueeze(0)
        return torch.gather(quantiles, 0, index).squeeze(0), choice

    def errors(self, target: Tensor) -> Tensor:
        """Errors ``[N, ...]`` of values at given actions against the target quantiles ``[..., M']``.

        Mean Q function: ``(Q - y)^2``, or Huber's with threshold 1. Else quantile Huber (Dabney et al. 2017): the sum over predicted and
        the mean over target quantiles of ``|tau_j - 1[y_i < theta_j]| Huber(y_i - theta_j)``; FQF adds its proposal's term.
        """
        if target.dim() != self.mean.dim():
            raise ValueError(f"values {tuple(self.mean.shape)} take targets [..., M'], got {tuple(target.shape)}")
        if self.kind == "squared":
            return (self.mean - target.squeeze(-1)) ** 2
        if self.kind == "huber":
            return F.huber_loss(self.mean, target.squeeze(-1).expand_as(self.mean), reduction="none")
        if self.kind == "own":
            return self.own(self.quantiles, target)
        error = quantile_huber(self.quantiles, self.fractions, target)
        return error if self.proposal is None else error + self.proposal.errors(self.quantiles)

    def error(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The sum over members of the batch mean of `errors`, each times its ``weight [B]``: a scalar."""
        errors = self.errors(target)  # [N, B]
        return (errors if weight is None else errors * weight).flatten(1).mean(-1).sum(0)

    def _reduced(self, how: Reduction, lam: float) -> tuple[Tensor, Tensor]:
        """Quantiles and expected values, both reduced over the members."""
        if how not in ("min", "max", "mean", "mix"):
            raise InvalidInput(f"reduction {how!r} of an ensemble is not known", hint="one of min, max, mean, mix")
        if how == "mean" and self.kind not in MEANS:
            raise InvalidInput("the mean over members is not defined for quantiles", hint="use min, max or mix, or q_function=mean")
        if len(self.mean) == 1:
            return self.quantiles[0], self.mean[0]
        if how == "mix":
            (low, low_mean), (high, high_mean) = self._reduced("min", lam), self._reduced("max", lam)
            return lam * low + (1 - lam) * high, lam * low_mean + (1 - lam) * high_mean
        if self.kind in MEANS:
            mean = self.mean.mean(0) if how == "mean" else self.mean.amin(0) if how == "min" else self.mean.amax(0)
            return mean.unsqueeze(-1), mean
        mean, member = self.mean.min(0) if how == "min" else self.mean.max(0)
        index = member.unsqueeze(-1).expand(self.quantiles.shape[1:]).unsqueeze(0)
        return torch.gather(self.quantiles, 0, index).squeeze(0), mean


def quantile_huber(quantiles: Tensor, fractions: Tensor, target: Tensor) -> Tensor:
    """Quantile Huber error ``[...]`` of quantiles ``[..., M]`` at fractions ``[M]`` or ``[..., M]`` against targets ``[..., M']``."""
    difference = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # [..., M, M']
    weight = (fractions.unsqueeze(-1) - (difference < 0).to(difference.dtype)).abs()
    huber = F.huber_loss(difference, torch.zeros_like(difference), reduction="none")
    return (weight * huber).mean(-1).sum(-1)


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Values of the actions taken: q ``[..., B, n]``, action ``[B]`` int64, result ``[..., B]``."""
    index = action.expand(q.shape[:-1]).unsqueeze(-1)
    return torch.gather(q, -1, index).squeeze(-1)


def _quantiles_taken(quantiles: Tensor, action: Tensor) -> Tensor:
    """Quantiles ``[..., B, n, M]`` of actions ``[B]``: ``[..., B, M]``."""
    shape = (*quantiles.shape[:-2], quantiles.shape[-1])
    index = action.unsqueeze(-1).expand(shape).unsqueeze(-2)
    return torch.gather(quantiles, -2, index).squeeze(-2)
