"""A policy and a state-value function with one encoder or one each, which policy-gradient methods train together."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets.distributions import Normal
from offrld.nets.encoders import Encoder, Observation, Params, View, build
from offrld.nets.linear import Linear, orthogonal_init
from offrld.nets.values import taken


class ActorCritic:
    """Discrete actions by softmax; continuous ones by a normal distribution whose log deviations are parameters of their own.

    Linear layers start orthogonal with zero biases: gain sqrt 2, of the policy's head 0.01 (at first all actions are about equally likely),
    of the value's 1. Parameters: ``NAME.encoder.*``, ``NAME.policy.*``, ``NAME.value.*``, without a shared encoder also
    ``NAME.value_encoder.*``, and ``NAME.log_std [A]`` of continuous actions.

    Args:
        actions: dimensions of a continuous action, or the number of discrete ones.
        shared: the value shares the policy's encoder.
        log_std: initial value of the log deviations.
    """

    def __init__(
        self, name: str, view: View, actions: int, encoder: Encoder, *, discrete: bool, shared: bool, log_std: float = 0.0
    ) -> None:
        self.name, self.discrete = name, discrete
        self._actions, self._log_std = actions, log_std
        self._encoder = build(f"{name}.encoder", view, encoder)
        self._value_encoder = self._encoder if shared else build(f"{name}.value_encoder", view, encoder)
        self._policy = Linear(f"{name}.policy", self._encoder.feature_size, actions)
        self._value = Linear(f"{name}.value", self._value_encoder.feature_size, 1)

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params = self._encoder.init(generator, dtype)
        if self._value_encoder is not self._encoder:
            params |= self._value_encoder.init(generator, dtype)
        for name in [name for name, value in params.items() if name.endswith(".weight") and value.dim() == 2]:
            params |= orthogonal_init(name.removesuffix(".weight"), tuple(params[name].shape), math.sqrt(2), generator, dtype)
        for head, gain in ((self._policy, 0.01), (self._value, 1.0)):
            params |= orthogonal_init(head.name, (head.outputs, head.inputs), gain, generator, dtype)
        if not self.discrete:
            params[f"{self.name}.log_std"] = torch.full((self._actions,), self._log_std, dtype=dtype)
        return params

    def __call__(self, params: Params, observation: Observation) -> tuple[Tensor, Tensor]:
        """Logits ``[B, n]`` or the means ``[B, A]`` of actions, and the values ``[B]``."""
        features = self._encoder(params, observation)
        own = self._value_encoder is not self._encoder
        value = self._value(params, self._value_encoder(params, observation) if own else features)
        return self._policy(params, features), value.squeeze(-1)

    def act(self, params: Params, observation: Observation) -> Tensor:
        """The greedy choice: logits ``[B, n]``, or the means within [-1, 1]."""
        out = self._policy(params, self._encoder(params, observation))
        return out if self.discrete else out.clamp(-1.0, 1.0)

    def value(self, params: Params, observation: Observation) -> Tensor:
        """The values ``[B]``."""
        return self._value(params, self._value_encoder(params, observation)).squeeze(-1)

    def draw(self, params: Params, out: Tensor, noise: Tensor) -> Tensor:
        """An action of each distribution: ``[B]`` from uniform ``noise [B, n]``, or ``[B, A]`` (unbounded) from standard normal one."""
        if not self.discrete:
            return self._normal(params, out).sample(noise)
        # The argmax of logits plus Gumbel noise is a draw from their softmax. A uniform number may be 0, but is never 1.
        return (out - torch.log(-torch.log1p(-noise.clamp(min=1e-12)))).argmax(-1)

    def log_prob(self, params: Params, out: Tensor, action: Tensor) -> Tensor:
        """Log probability or density ``[B]`` of ``action``, which `draw` gave."""
        return taken(F.log_softmax(out, -1), action) if self.discrete else self._normal(params, out).log_prob(action)

    def entropy(self, params: Params, out: Tensor) -> Tensor:
        """The entropy of each distribution, ``[B]``."""
        if self.discrete:
            log_prob = F.log_softmax(out, -1)
            return -(log_prob.exp() * log_prob).sum(-1)
        of_dimension = self._normal(params, out).log_std + 0.5 * (1 + math.log(2 * math.pi))  # [A]
        return of_dimension.sum().expand(out.shape[:-1])

    def _normal(self, params: Params, mean: Tensor) -> Normal:
        return Normal(mean, params[f"{self.name}.log_std"])
