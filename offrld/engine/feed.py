"""The data feed: batches of a store, scaled and on the training device, with the noise that losses ask for.

Batch and noise of update ``k`` are pure functions of (snapshot, seed, k), so resuming needs a number and not a state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, rng
from offrld.engine.algorithm import Algorithm, Batch, ValueConfig
from offrld.engine.space import Space
from offrld.preprocess.rewards import needs_column
from offrld.preprocess.scalers import Scaler


class Feed:
    """Batches of one seed.

    Args:
        store: opened at the pinned snapshot.
        episodes: numbers of the episodes to sample from; None: all.
        scalers: field -> scaler, by the names of `Scalers`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        config: Any,
        store: EpisodeStore,
        space: Space,
        scalers: Scalers,
        *,
        seed: int,
        episodes: np.ndarray | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        values = isinstance(config, ValueConfig)
        self._sampler = store.transitions(
            batch_size=config.batch_size,
            seed=seed,
            n_steps=config.n_steps if values else 1,
            gamma=config.gamma if values else 1.0,
            next_action=algorithm.next_action,
            episodes=episodes,
        )
        self._next_action = algorithm.next_action
        self._space, self._scalers, self._seed = space, scalers, seed
        self._gamma, self._n_steps = (config.gamma, config.n_steps) if values else (1.0, 1)
        if self._n_steps > 1 and needs_column(scalers.reward, n_steps=self._n_steps, gamma=self._gamma):
            raise InvalidInput("this reward scaler cannot be used with n-step returns here", hint="take n_steps=1")
        self._dtype, self._device = dtype, device
        # Noise is drawn as float32 on the CPU whatever the device: the same numbers everywhere.
        self._noise = {
            name: (noise, rng.stream_id(f"noise/{name}"), np.empty(noise.shape, np.float32))
            for name, noise in algorithm.noise(config, space).items()
        }

    def batch(self, k: int) -> Batch:
        """Batch of update ``k``; its tensors are valid until the next call."""
        if self._sampler.step != k:
            self._sampler.seek(k)
        raw = self._sampler.sample()
        scale = self._scalers
        discount, reward = self._tensor(raw.discount), self._tensor(raw.reward)
        if scale.reward is not None:
            reward = scale.reward(reward) if self._n_steps == 1 else scale.reward.n_step_reward(reward, discount, self._gamma)
        return Batch(
            observation=self._observation(raw.observation),
            action=self._action(raw.action),
            reward=reward,
            next_observation=self._observation(raw.next_observation),
            terminal=self._tensor(raw.terminal),
            discount=discount,
            noise={name: self._draw(k, *noise) for name, noise in self._noise.items()},
            next_action=self._action(raw.next_action) if self._next_action else None,
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype, non_blocking=True)

    def _observation(self, value: Any) -> Tensor:
        fields = {name: torch.from_numpy(array) for name, array in fields_of(value).items()}
        return flat_observation(fields, self._scalers, self._dtype, self._device)

    def _action(self, array: np.ndarray) -> Tensor:
        if self._space.discrete:
            return torch.from_numpy(array).to(self._device, torch.int64, non_blocking=True)
        action = self._tensor(array)
        return action if self._scalers.action is None else self._scalers.action(action)

    def _draw(self, k: int, noise: Any, stream: int, out: np.ndarray) -> Tensor:
        (rng.normal if noise.distribution == "normal" else rng.uniform)(self._seed, k, stream, out)
        return self._tensor(out)


class Scalers:
    """The scalers of one training run: one per observation field, one of actions, one of rewards; None where nothing is scaled."""

    def __init__(self, observation: dict[str, Scaler | None], action: Scaler | None, reward: Scaler | None) -> None:
        self.observation, self.action, self.reward = observation, action, reward

    def tensors(self) -> dict[str, Tensor]:
        """Flat names -> tensors, for checkpoints."""
        named = {f"observation.{name}": s for name, s in self.observation.items()} | {"action": self.action, "reward": self.reward}
        return {f"{name}.{part}": tensor for name, s in named.items() if s is not None for part, tensor in s.tensors().items()}


def fields_of(value: Any) -> dict[str, Any]:
    """The observation as fields: a single array is the field ``observation``."""
    return value if isinstance(value, dict) else {"observation": value}


def flat_observation(fields: dict[str, Tensor], scalers: Scalers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Scale each field ``[B, ...]`` and join them into the vector ``[B, D]`` that networks take."""
    parts = []
    for name, scaler in scalers.observation.items():
        part = fields[name].to(device, dtype, non_blocking=True)
        part = part if scaler is None else scaler(part)
        parts.append(part if part.dim() == 2 else part.reshape(part.shape[0], -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
