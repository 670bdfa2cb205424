"""Fixed candidates: random numbers drawn only once, so that a policy that chooses among sampled actions is deterministic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offrld.nets.linear import Params


class Candidates:
    """``count`` standard normal vectors of length ``size``, clamped to ``limit``, in the parameter ``NAME.noise``.

    No step trains them. The first vector is zero, so that the most likely action is always among the candidates.
    """

    def __init__(self, name: str, count: int, size: int, *, limit: float | None = None) -> None:
        self.name, self._shape, self._limit = name, (count, size), limit

    def init(self, generator: torch.Generator, dtype: torch.dtype) -> Params:
        noise = torch.randn(self._shape, generator=generator, dtype=torch.float64)
        noise[0] = 0.0
        if self._limit is not None:
            noise = noise.clamp(-self._limit, self._limit)
        return {f"{self.name}.noise": noise.to(dtype)}

    def __call__(self, params: Params) -> Tensor:
        """Return the vectors as ``[K, 1, L]``, to broadcast over a batch."""
        return params[f"{self.name}.noise"].unsqueeze(1)


def best(actions: Tensor, scores: Tensor) -> Tensor:
    """Return, of candidates ``[K, B, A]``, those with the highest score ``[K, B]``: ``[B, A]``."""
    choice = scores.argmax(0)  # [B]
    index = choice.unsqueeze(-1).expand(actions.shape[1:]).unsqueeze(0)
    return torch.gather(actions, 0, index).squeeze(0)


def best_of(candidates: Callable[[Params, Any, Any, Any], tuple[Tensor, Tensor]]) -> Callable[[Params, Any, Any, Any], Tensor]:
    """Return an algorithm's ``act`` that takes the best of its ``candidates`` (see `Algorithm`)."""
    return lambda params, config, nets, observation: best(*candidates(params, config, nets, observation))


def for_batch(candidates: Tensor, observation: Tensor | dict[str, Tensor]) -> Tensor:
    """Expand candidates ``[K, 1, L]`` to every observation ``[B, ...]``: ``[K, B, L]``."""
    field = next(iter(observation.values())) if isinstance(observation, dict) else observation
    return candidates.expand(-1, field.shape[0], -1)
