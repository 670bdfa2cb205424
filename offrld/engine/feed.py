"""The data feed: batches of a store, scaled and on the training device, with the noise that losses ask for.

Batch and noise of update ``k`` are pure functions of (snapshot, seed, k), so resuming needs a number and not a state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrld.engine.algorithm import Algorithm, Batch, ValueConfig
from offrld.engine.source import Request, Source
from offrld.engine.space import Space
from offrld.preprocess.scalers import Affine


class Feed:
    """Scaled batches of one seed, or of several with a leading axis.

    Args:
        source: gives the raw batches, made from `request_of`.
        scalers: field -> scaler, by the names of `Scalers`.
    """

    def __init__(
        self, config: Any, source: Source, space: Space, scalers: Scalers, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.source = source
        self._space, self._scalers = space, scalers
        self._gamma = config.gamma if isinstance(config, ValueConfig) else 1.0
        self._dtype, self._device = dtype, device

    def batch(self, k: int | Tensor) -> Batch:
        """Batch of update ``k``; its tensors are valid until the next call. A resident source takes a tensor of steps as well."""
        given, scale = self.source.raw(k), self._scalers
        raw, lead = given.batch, given.batch.reward.dim()
        discount, reward = self._tensor(raw.discount), self._tensor(raw.reward)
        if scale.reward is not None:
            reward = scale.reward.n_step_reward(reward, discount, self._gamma)
        return Batch(
            observation=self._observation(raw.observation, lead),
            action=self._action(raw.action),
            reward=reward,
            next_observation=self._observation(raw.next_observation, lead),
            terminal=self._tensor(raw.terminal),
            discount=discount,
            noise={name: self._tensor(noise) for name, noise in given.noise.items()},
            next_action=None if raw.next_action is None else self._action(raw.next_action),
        )

    def _tensor(self, value: Tensor) -> Tensor:
        return value.to(self._device, self._dtype, non_blocking=True)

    def _observation(self, value: Any, lead: int) -> Tensor:
        return flat_observation(fields_of(value), self._scalers, self._dtype, self._device, lead)

    def _action(self, value: Tensor) -> Tensor:
        if self._space.discrete:
            return value.to(self._device, torch.int64, non_blocking=True)
        action = self._tensor(value)
        return action if self._scalers.action is None else self._scalers.action(action)


def request_of(
    algorithm: Algorithm, config: Any, space: Space, *, seeds: tuple[int, ...], episodes: np.ndarray | None, stacked: bool
) -> Request:
    """What an algorithm takes from a store; ``episodes``: numbers of those to sample from, None: all."""
    values = isinstance(config, ValueConfig)
    arguments = {
        "batch_size": config.batch_size,
        "n_steps": config.n_steps if values else 1,
        "gamma": config.gamma if values else 1.0,
        "next_action": algorithm.next_action,
        "episodes": episodes,
    }
    return Request(algorithm.batch_kind, arguments, seeds, algorithm.noise(config, space), stacked)


class Scalers:
    """The scalers of one training run: one per observation field, one of actions, one of rewards; None where nothing is scaled."""

    def __init__(self, observation: dict[str, Affine | None], action: Affine | None, reward: Affine | None) -> None:
        self.observation, self.action, self.reward = observation, action, reward

    def tensors(self) -> dict[str, Tensor]:
        """Flat names -> tensors, for checkpoints."""
        named = {f"observation.{name}": s for name, s in self.observation.items()} | {"action": self.action, "reward": self.reward}
        return {f"{name}.{part}": getattr(s, part) for name, s in named.items() if s is not None for part in ("shift", "scale")}


def fields_of(value: Any) -> dict[str, Any]:
    """The observation as fields: a single array is the field ``observation``."""
    return value if isinstance(value, dict) else {"observation": value}


def flat_observation(
    fields: dict[str, Tensor], scalers: Scalers, dtype: torch.dtype, device: torch.device, lead: int = 1
) -> Tensor:
    """Scale each field ``[B, ...]`` and join them into the vector ``[B, D]`` that networks take; ``lead`` axes come before a sample's."""
    parts = []
    for name, scaler in scalers.observation.items():
        part = fields[name].to(device, dtype, non_blocking=True)
        part = part if scaler is None else scaler(part)
        parts.append(part if part.dim() == lead + 1 else part.reshape(*part.shape[:lead], -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
