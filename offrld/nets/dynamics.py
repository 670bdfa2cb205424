"""A probabilistic ensemble of dynamics models: normal distributions over the change of a vector observation, and over the reward.

Each member has an encoder of observation and action, a head for the means, and a head for the log standard deviations, which are softly
clamped between learned bounds. The weights of the encoder's linear layers and of the head of the means are divided by their largest
singular value, which one power iteration per training step tracks (spectral normalisation, Miyato et al. 2018, arXiv:1802.05957).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.nets.context import context_of
from offrld.nets.encoders import Encoder, Params, build
from offrld.nets.linear import Linear

MOST, LEAST = 2.0, -10.0  # initial bounds of the log standard deviations
EPSILON = 1e-12  # shorter vectors are divided by this, not by their length


@dataclass(frozen=True)
class Prediction:
    """The members' distributions of (next observation - observation, reward).

    Means and log standard deviations are ``[N, ..., D + 1]``, the bounds of the latter ``[N, D + 1]``.
    """

    mean: Tensor
    log_std: Tensor
    most: Tensor
    least: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return a sample of every member from standard normal ``noise [N, ..., D + 1]``."""
        return self.mean + torch.exp(self.log_std) * noise


class EnsembleDynamics:
    """``members`` models ``NAME.i`` of observation ``[B, D]`` and action ``[B, A]``; discrete actions, int64 ``[B]``, become one-hot."""

    def __init__(
        self, name: str, members: int, observation_size: int, action_size: int, encoder: Encoder, *, discrete: bool = False
    ) -> None:
        self._choices = action_size if discrete else 0
        self.name, self.members = name, members
        outputs = observation_size + 1
        self._encoders = [build(f"{name}.{i}.encoder", (observation_size,), encoder, action_size) for i in range(members)]
        self._means = [Linear(f"{name}.{i}.mean", e.feature_size, outputs) for i, e in enumerate(self._encoders)]
        self._log_stds = [Linear(f"{name}.{i}.log_std", e.feature_size, outputs) for i, e in enumerate(self._encoders)]
        self._outputs = outputs

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        params: Params = {}
        for i, layers in enumerate(zip(self._encoders, self._means, self._log_stds, strict=True)):
            for layer in layers:
                params |= layer.init(generator, dtype)
            params[f"{self.name}.{i}.most"] = torch.full((self._outputs,), MOST, dtype=dtype)
            params[f"{self.name}.{i}.least"] = torch.full((self._outputs,), LEAST, dtype=dtype)
        for name, value in list(params.items()):
            if _is_normalised(name, value):
                start = torch.randn(value.shape[0], generator=generator, dtype=torch.float64)
                params[f"{name}.running_direction"] = F.normalize(start, dim=0).to(dtype)
        return params

    def __call__(self, params: Params, observation: Tensor, action: Tensor) -> Prediction:
        """Return every member's prediction."""
        params = _normalised(params, f"{self.name}.")
        if self._choices:
            action = F.one_hot(action, self._choices).to(observation.dtype)
        means, log_stds, most, least = [], [], [], []
        for i, encoder in enumerate(self._encoders):
            h = encoder(params, observation, action)
            high, low = params[f"{self.name}.{i}.most"], params[f"{self.name}.{i}.least"]
            bounded = high - F.softplus(high - self._log_stds[i](params, h))
            log_stds.append(low + F.softplus(bounded - low))
            means.append(self._means[i](params, h))
            most.append(high)
            least.append(low)
        return Prediction(torch.stack(means), torch.stack(log_stds), torch.stack(most), torch.stack(least))


def _is_normalised(name: str, value: Tensor) -> bool:
    return name.endswith(".weight") and value.dim() == 2 and ".log_std." not in name


def _normalised(params: Params, prefix: str) -> Params:
    """Return the parameters with spectrally normalised weights; in training, advance the power iteration by one step."""
    context, changed = context_of(params), {}
    for name, weight in params.items():
        if not name.startswith(prefix) or f"{name}.running_direction" not in params:
            continue
        left = params[f"{name}.running_direction"]
        with torch.no_grad():
            right = F.normalize(weight.T @ left, dim=0, eps=EPSILON)
            if context is not None and context.training:
                left = F.normalize(weight @ right, dim=0, eps=EPSILON)
                context.updates[f"{name}.running_direction"] = left
        changed[name] = weight / torch.dot(left, weight @ right)
    return {**params, **changed}
