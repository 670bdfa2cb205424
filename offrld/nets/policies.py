"""Policies over continuous actions in [-1, 1] and over discrete actions. Every method takes the parameters that it computes with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offrld.nets.encoders import Encoder, Mlp, Params


class DeterministicPolicy:
    """``tanh(mlp(s))``: observations ``[B, D]`` to actions ``[B, A]``."""

    def __init__(self, name: str, observation_size: int, action_size: int, encoder: Encoder) -> None:
        self.name = name
        self._mlp = Mlp(name, observation_size, action_size, encoder)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._mlp.init(generator, dtype)

    def __call__(self, params: Params, observation: Tensor) -> Tensor:
        return torch.tanh(self._mlp(params, observation))  # [B, A]


@dataclass(frozen=True)
class Normal:
    """A diagonal normal distribution: mean ``[B, A]`` and the logarithm of its deviation (``[B, A]`` or ``[A]``)."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density of ``action [B, A]``, summed over the action's dimensions: ``[B]``."""
        scaled = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * scaled * scaled - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """The sample that standard normal ``noise [B, A]`` gives (reparametrised)."""
        return self.mean + torch.exp(self.log_std) * noise


class NormalPolicy:
    """A plain normal policy ``N(tanh(mlp(s)), sigma)``.

    With ``free_std`` the log deviation is one parameter per action dimension, squashed into ``log_std_range`` by a sigmoid that
    starts in its middle; else it is a second head of the network, clamped to the range.
    """

    def __init__(
        self, name: str, observation_size: int, action_size: int, encoder: Encoder, *, log_std_range: tuple[float, float], free_std: bool
    ) -> None:
        self.name = name
        self._free_std = free_std
        self._action_size = action_size
        self._low, self._high = log_std_range
        self._mlp = Mlp(name, observation_size, action_size if free_std else 2 * action_size, encoder)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params = self._mlp.init(generator, dtype)
        if self._free_std:
            params[f"{self.name}.log_std"] = torch.zeros(self._action_size, dtype=dtype)
        return params

    def distribution(self, params: Params, observation: Tensor) -> Normal:
        """The distribution over actions at ``observation [B, D]``."""
        out = self._mlp(params, observation)
        if self._free_std:
            log_std = self._low + torch.sigmoid(params[f"{self.name}.log_std"]) * (self._high - self._low)  # [A]
            return Normal(torch.tanh(out), log_std)
        mean, log_std = out.chunk(2, dim=-1)
        return Normal(torch.tanh(mean), log_std.clamp(self._low, self._high))

    def __call__(self, params: Params, observation: Tensor) -> Tensor:
        """The greedy action, the mean: ``[B, A]``."""
        return self.distribution(params, observation).mean


class CategoricalPolicy:
    """``softmax(mlp(s))`` over ``n`` discrete actions; gives the logits ``[B, n]``."""

    def __init__(self, name: str, observation_size: int, actions: int, encoder: Encoder) -> None:
        self.name = name
        self._mlp = Mlp(name, observation_size, actions, encoder)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        return self._mlp.init(generator, dtype)

    def __call__(self, params: Params, observation: Tensor) -> Tensor:
        return self._mlp(params, observation)  # [B, n]
