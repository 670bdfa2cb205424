"""Policies over continuous actions in [-1, 1] and over discrete actions. Callers pass the parameters to every method."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets.distributions import Normal, SquashedNormal
from offrld.nets.encoders import Encoder, Network, Observation, Params, View
from offrld.nets.heads import EncodedLinear


class _Policy:
    """The base of all policies: an encoder with a linear head."""

    def __init__(
        self, name: str, view: View, outputs: int, encoder: Encoder, *, action_size: int = 0, shared: Network | None = None
    ) -> None:
        self.name = name
        self._net = EncodedLinear(name, view, outputs, encoder, action_size=action_size, shared=shared)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._net.init(generator, dtype)


class DeterministicPolicy(_Policy):
    """``tanh(W h(s))``: observations ``[B, ...]`` to actions ``[B, A]``."""

    def __init__(self, name: str, view: View, action_size: int, encoder: Encoder) -> None:
        super().__init__(name, view, action_size, encoder)

    def __call__(self, params: Params, observation: Observation) -> Tensor:
        return torch.tanh(self._net(params, observation))  # [B, A]


class ResidualPolicy(_Policy):
    """``clip(a + scale tanh(W h(s, a)), -1, 1)``: a small correction of actions (BCQ's perturbation, Fujimoto et al. 2018)."""

    def __init__(self, name: str, view: View, action_size: int, encoder: Encoder, *, scale: float) -> None:
        super().__init__(name, view, action_size, encoder, action_size=action_size)
        self._scale = scale

    def __call__(self, params: Params, observation: Observation, action: Tensor) -> Tensor:
        """Return corrected actions of the shape of ``action``, ``[B, A]`` or ``[K, B, A]``."""
        return (action + self._scale * torch.tanh(self._net(params, observation, action))).clamp(-1.0, 1.0)


class NormalPolicy(_Policy):
    """A plain normal policy ``N(tanh(W h(s)), sigma)``.

    With ``free_std`` the log standard deviation is one parameter per action dimension; a sigmoid maps it into ``log_std_range``, and it
    starts in the middle. Otherwise it is the second half of the head's output, clamped to the range.
    """

    def __init__(
        self, name: str, view: View, action_size: int, encoder: Encoder, *, log_std_range: tuple[float, float], free_std: bool
    ) -> None:
        super().__init__(name, view, action_size if free_std else 2 * action_size, encoder)
        self._free_std = free_std
        self._action_size = action_size
        self._low, self._high = log_std_range

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params = super().init(generator, dtype)
        if self._free_std:
            params[f"{self.name}.log_std"] = torch.zeros(self._action_size, dtype=dtype)
        return params

    def distribution(self, params: Params, observation: Observation) -> Normal:
        """The distribution over actions at ``observation [B, ...]``."""
        out = self._net(params, observation)
        if self._free_std:
            log_std = self._low + torch.sigmoid(params[f"{self.name}.log_std"]) * (self._high - self._low)  # [A]
            return Normal(torch.tanh(out), log_std)
        mean, log_std = out.chunk(2, dim=-1)
        return Normal(torch.tanh(mean), log_std.clamp(self._low, self._high))

    def sample(self, params: Params, observation: Observation, noise: Tensor) -> Tensor:
        """Return actions from standard normal ``noise [..., B, A]``, clipped to [-1, 1]."""
        return self.distribution(params, observation).sample(noise).clamp(-1.0, 1.0)

    def __call__(self, params: Params, observation: Observation) -> Tensor:
        """Return the greedy action, which is the mean: ``[B, A]``."""
        return self.distribution(params, observation).mean


class SquashedNormalPolicy(_Policy):
    """``tanh(N(mu(s), sigma(s)))``, the policy of SAC; the log standard deviation is clamped to ``log_std_range``."""

    def __init__(
        self, name: str, view: View, action_size: int, encoder: Encoder, *, log_std_range: tuple[float, float] = (-20.0, 2.0)
    ) -> None:
        super().__init__(name, view, 2 * action_size, encoder)
        self._low, self._high = log_std_range

    def distribution(self, params: Params, observation: Observation) -> SquashedNormal:
        """The distribution over actions at ``observation [B, ...]``."""
        mean, log_std = self._net(params, observation).chunk(2, dim=-1)
        return SquashedNormal(mean, log_std.clamp(self._low, self._high))

    def sample(self, params: Params, observation: Observation, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions from standard normal ``noise``, ``[B, A]`` or ``[K, B, A]``, and their log densities, ``[B]`` or ``[K, B]``."""
        return self.distribution(params, observation).sample(noise)

    def unsquashed(self, params: Params, observation: Observation, noise: Tensor) -> Tensor:
        """Return samples before the tanh, of the shape of ``noise``."""
        return self.distribution(params, observation).unsquashed(noise)

    def log_prob_of(self, params: Params, observation: Observation, action: Tensor) -> Tensor:
        """Return the log density of actions ``[B, A]`` or ``[K, B, A]``."""
        return self.distribution(params, observation).log_prob(action)

    def __call__(self, params: Params, observation: Observation) -> Tensor:
        """Return the greedy action ``tanh(mu)``, ``[B, A]``."""
        return self.distribution(params, observation).mode


class CategoricalPolicy(_Policy):
    """``softmax(W h(s))`` over ``n`` discrete actions; a call returns the logits ``[B, n]``.

    ``shared``: an encoder of another network to use (say ``critics.encoders[0]``); that network creates its parameters.
    """

    def __init__(self, name: str, view: View, actions: int, encoder: Encoder, *, shared: Network | None = None) -> None:
        super().__init__(name, view, actions, encoder, shared=shared)

    def __call__(self, params: Params, observation: Observation) -> Tensor:
        return self._net(params, observation)  # [B, n]

    def log_prob(self, params: Params, observation: Observation) -> Tensor:
        """Return the log probability of every action, ``[B, n]``."""
        return F.log_softmax(self(params, observation), dim=-1)
