"""A policy and a state-value function that policy-gradient methods train together, with one shared encoder or one each."""

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
    """A softmax policy over discrete actions, or a normal one over continuous actions with free log standard deviations; and a value.

    Linear layers start orthogonal with zero biases. The gain is sqrt 2, but 0.01 for the policy's head, so that all actions are about
    equally likely at first, and 1 for the value's head. Parameters: ``NAME.encoder.*``, ``NAME.policy.*``, ``NAME.value.*``; without a
    shared encoder also ``NAME.value_encoder.*``; for continuous actions also ``NAME.log_std [A]``.

    Args:
        actions: dimensions of a continuous action, or the number of discrete ones.
        shared: whether the value function shares the policy's encoder.
        log_std: initial value of the log standard deviations.
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
        """Return logits ``[B, n]`` or mean actions ``[B, A]``, and the values ``[B]``."""
        features = self._encoder(params, observation)
        separate = self._value_encoder is not self._encoder
        value = self._value(params, self._value_encoder(params, observation) if separate else features)
        return self._policy(params, features), value.squeeze(-1)

    def act(self, params: Params, observation: Observation) -> Tensor:
        """Return the greedy choice: logits ``[B, n]``, or the means clipped to [-1, 1], ``[B, A]``."""
        out = self._policy(params, self._encoder(params, observation))
        return out if self.discrete else out.clamp(-1.0, 1.0)

    def value(self, params: Params, observation: Observation) -> Tensor:
        """Return the values ``[B]``."""
        return self._value(params, self._value_encoder(params, observation)).squeeze(-1)

    def draw(self, params: Params, out: Tensor, noise: Tensor) -> Tensor:
        """Draw an action from each distribution: ``[B]`` with uniform ``noise [B, n]``, or ``[B, A]`` (unbounded) with standard normal."""
        if not self.discrete:
            return self._normal(params, out).sample(noise)
        # The argmax of logits plus Gumbel noise is a draw from their softmax. The uniform numbers may be 0, but never 1.
        return (out - torch.log(-torch.log1p(-noise.clamp(min=1e-12)))).argmax(-1)

    def log_prob(self, params: Params, out: Tensor, action: Tensor) -> Tensor:
        """Return the log probability or log density ``[B]`` of an ``action`` that `draw` returned."""
        return taken(F.log_softmax(out, -1), action) if self.discrete else self._normal(params, out).log_prob(action)

    def entropy(self, params: Params, out: Tensor) -> Tensor:
        """Return the entropy of each distribution, ``[B]``."""
        if self.discrete:
            log_prob = F.log_softmax(out, -1)
            return -(log_prob.exp() * log_prob).sum(-1)
        per_dimension = self._normal(params, out).log_std + 0.5 * (1 + math.log(2 * math.pi))  # [A]
        return per_dimension.sum().expand(out.shape[:-1])

    def _normal(self, params: Params, mean: Tensor) -> Normal:
        return Normal(mean, params[f"{self.name}.log_std"])
