"""Values of an ensemble of Q functions, one class per representation: their reduction over the members, and their errors.

Shapes: N members, ``...`` the batch ``B`` (or candidates and batch ``K, B``), n discrete actions, M quantiles.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.errors import InvalidInput

Reduction = Literal["min", "max", "mean", "mix"]
PROPOSAL_RATE = 1e-4  # weight of FQF's proposal gradient; the paper uses a separate, slower optimizer for the proposal network


@dataclass(frozen=True)
class Proposal:
    """The inputs of the loss of FQF's proposal network.

    Attributes:
        fractions: the proposed tau_1 .. tau_M ``[N, ..., M]``, through which the gradient reaches the proposal network.
        inner: computes the quantiles at tau_1 .. tau_{M-1}, ``[N, ..., (n,) M-1]``; called only for an error.
        entropy: entropy of the proposed probabilities, ``[N, ...]``.
        entropy_coeff: weight of the entropy.
    """

    fractions: Tensor
    inner: Callable[[], Tensor]
    entropy: Tensor
    entropy_coeff: float

    def taken(self, action: Tensor) -> Proposal:
        return dataclasses.replace(self, inner=lambda: _quantiles_taken(self.inner(), action))

    def errors(self, middles: Tensor) -> Tensor:
        """Return ``[N, ...]``: a term of value zero with the proposal's gradient, minus the weighted entropy.

        The gradient of the 1-Wasserstein error with respect to tau_j is ``2 theta(tau_j) - theta(tau^_j) - theta(tau^_{j+1})``. It
        multiplies tau_j as a constant, so that only the proposal network receives a gradient.
        """
        middles = middles.detach()
        gradient = 2 * self.inner().detach() - middles[..., :-1] - middles[..., 1:]
        surrogate = PROPOSAL_RATE * (gradient * self.fractions[..., :-1]).sum(-1)
        return surrogate - surrogate.detach() - self.entropy_coeff * self.entropy


@dataclass(frozen=True)
class Values(ABC):
    """Values of N members at the same inputs.

    Attributes:
        mean: expected values, ``[N, ...]`` of one action per sample or ``[N, ..., n]`` of all discrete actions.
        quantiles: the M numbers that represent each value, ``[N, ..., M]`` or ``[N, ..., n, M]``.
    """

    mean: Tensor
    quantiles: Tensor

    @property
    def fractions(self) -> Tensor | None:
        """The fractions of the quantiles, ``[M]`` or ``[N, ..., M]``; None if the numbers are not quantiles."""
        return None

    @abstractmethod
    def taken(self, action: Tensor) -> Values:
        """Select the values of discrete actions ``[...]`` (int64) from those of all actions."""

    @abstractmethod
    def errors(self, target: Tensor) -> Tensor:
        """Return the errors ``[N, ...]`` of one action per sample against the target's numbers ``[..., M']``."""

    @property
    def average(self) -> Tensor:
        """Expected values averaged over the members, ``[...]`` or ``[..., n]``."""
        return self.mean[0] if len(self.mean) == 1 else self.mean.mean(0)

    def reduce(self, how: Reduction = "min", lam: float = 0.75) -> Tensor:
        """Reduce the ensemble to one member's numbers per sample, ``[..., M]``; for values of all actions per action too, ``[..., n, M]``.

        ``min`` and ``max`` choose the member by its expected value and take all its numbers; ``mix`` is ``lam min + (1 - lam) max``;
        ``mean`` averages and works only for the mean Q function, since different members have quantiles at different fractions.
        """
        return self._reduced(how, lam)[0]

    def best(self, lam: float = 0.75) -> tuple[Tensor, Tensor]:
        """Return, for values ``[N, K, B]`` of candidates, the best candidate's mixed numbers ``[B, M]`` and its index ``[B]``.

        The members are mixed as in ``reduce("mix", lam)``; the best candidate has the largest mixed expected value.
        """
        quantiles, mean = self._reduced("mix", lam)  # [K, B, M], [K, B]
        choice = mean.argmax(0)  # [B]
        index = choice.unsqueeze(-1).expand(quantiles.shape[1:]).unsqueeze(0)
        return torch.gather(quantiles, 0, index).squeeze(0), choice

    def error(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the sum over members of the batch mean of `errors`, each times its ``weight [B]``: a scalar."""
        errors = self.errors(target)  # [N, B]
        return (errors if weight is None else errors * weight).flatten(1).mean(-1).sum(0)

    def _check(self, target: Tensor) -> None:
        if target.dim() != self.mean.dim():
            raise ValueError(f"values {tuple(self.mean.shape)} take targets [..., M'], got {tuple(target.shape)}")

    def _reduced(self, how: Reduction, lam: float) -> tuple[Tensor, Tensor]:
        """Return the numbers and the expected values, both reduced over the members."""
        if how not in ("min", "max", "mean", "mix"):
            raise InvalidInput(f"unknown reduction {how!r} of an ensemble", hint="use min, max, mean or mix")
        if how == "mean":
            return self._averaged()
        if len(self.mean) == 1:
            return self.quantiles[0], self.mean[0]
        if how == "mix":
            (low, low_mean), (high, high_mean) = self._of_one("min"), self._of_one("max")
            return lam * low + (1 - lam) * high, lam * low_mean + (1 - lam) * high_mean
        return self._of_one(how)

    def _averaged(self) -> tuple[Tensor, Tensor]:
        """Return numbers and expected values averaged over the members."""
        raise InvalidInput("the mean over members is not defined for quantiles", hint="use min, max or mix, or q_function=mean")

    def _of_one(self, how: Literal["min", "max"]) -> tuple[Tensor, Tensor]:
        """Return numbers and expected value of the member whose expected value is smallest or largest."""
        mean, member = self.mean.min(0) if how == "min" else self.mean.max(0)
        index = member.unsqueeze(-1).expand(self.quantiles.shape[1:]).unsqueeze(0)
        return torch.gather(self.quantiles, 0, index).squeeze(0), mean


@dataclass(frozen=True)
class Means(Values):
    """Values of the mean Q function: one number; ``quantiles`` is a view of it. Errors are ``(Q - y)^2``, or Huber with threshold 1."""

    huber: bool

    @classmethod
    def of(cls, mean: Tensor, *, huber: bool) -> Means:
        return cls(mean, mean.unsqueeze(-1), huber)

    def taken(self, action: Tensor) -> Means:
        return Means.of(taken(self.mean, action), huber=self.huber)

    def errors(self, target: Tensor) -> Tensor:
        self._check(target)
        if self.huber:
            return F.huber_loss(self.mean, target.squeeze(-1).expand_as(self.mean), reduction="none")
        return (self.mean - target.squeeze(-1)) ** 2

    def _averaged(self) -> tuple[Tensor, Tensor]:
        mean = self.average
        return mean.unsqueeze(-1), mean

    def _of_one(self, how: Literal["min", "max"]) -> tuple[Tensor, Tensor]:
        mean = self.mean.amin(0) if how == "min" else self.mean.amax(0)
        return mean.unsqueeze(-1), mean


@dataclass(frozen=True)
class Quantiles(Values):
    """Quantiles at ``taus``, ``[M]`` or ``[N, ..., M]``.

    Errors are quantile Huber (Dabney et al. 2017): the sum over predicted and the mean over target quantiles of
    ``|tau_j - 1[y_i < theta_j]| Huber(y_i - theta_j)``.
    """

    taus: Tensor

    @property
    def fractions(self) -> Tensor:
        return self.taus

    def taken(self, action: Tensor) -> Quantiles:
        return Quantiles(taken(self.mean, action), _quantiles_taken(self.quantiles, action), self.taus)

    def errors(self, target: Tensor) -> Tensor:
        self._check(target)
        return quantile_huber(self.quantiles, self.taus, target)


@dataclass(frozen=True)
class ProposedQuantiles(Quantiles):
    """Quantiles at the fractions that FQF's proposal network proposes; errors include its term."""

    proposal: Proposal

    def taken(self, action: Tensor) -> ProposedQuantiles:
        quantiles = _quantiles_taken(self.quantiles, action)
        return ProposedQuantiles(taken(self.mean, action), quantiles, self.taus, self.proposal.taken(action))

    def errors(self, target: Tensor) -> Tensor:
        return super().errors(target) + self.proposal.errors(self.quantiles)


@dataclass(frozen=True)
class PackageNumbers(Values):
    """Numbers of another package's Q function. ``own`` computes errors of numbers ``[N, ..., M]`` against targets ``[..., M]``."""

    own: Callable[[Tensor, Tensor], Tensor]

    def taken(self, action: Tensor) -> PackageNumbers:
        return PackageNumbers(taken(self.mean, action), _quantiles_taken(self.quantiles, action), self.own)

    def errors(self, target: Tensor) -> Tensor:
        self._check(target)
        return self.own(self.quantiles, target)


def quantile_huber(quantiles: Tensor, fractions: Tensor, target: Tensor) -> Tensor:
    """Return the quantile Huber error ``[...]`` of quantiles ``[..., M]`` at fractions ``[(..., )M]``, against targets ``[..., M']``."""
    difference = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # [..., M, M']
    weight = (fractions.unsqueeze(-1) - (difference < 0).to(difference.dtype)).abs()
    huber = F.huber_loss(difference, torch.zeros_like(difference), reduction="none")
    return (weight * huber).mean(-1).sum(-1)


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Return the values ``[..., B]`` of actions ``[B]`` (int64), from q ``[..., B, n]``."""
    index = action.expand(q.shape[:-1]).unsqueeze(-1)
    return torch.gather(q, -1, index).squeeze(-1)


def _quantiles_taken(quantiles: Tensor, action: Tensor) -> Tensor:
    """Return the quantiles ``[..., B, M]`` of actions ``[B]``, from ``[..., B, n, M]``."""
    shape = (*quantiles.shape[:-2], quantiles.shape[-1])
    index = action.unsqueeze(-1).expand(shape).unsqueeze(-2)
    return torch.gather(quantiles, -2, index).squeeze(-2)
