"""The data feed: batches of a store, scaled and on the training device, with the noise that losses ask for.

Batch and noise of update ``k`` are pure functions of (snapshot, seed, k), so resuming needs a number and not a state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl_store import EpisodeStore, rng
from offrld.engine.algorithm import Algorithm, Batch, Observation, ValueConfig, Windows
from offrld.engine.space import Space
from offrld.preprocess.scalers import Affine, reward_column

KEY_STREAM = rng.stream_id("networks")  # of the random numbers that networks draw for themselves


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
        self._gamma = config.gamma if values else 1.0
        common = {"batch_size": config.batch_size, "seed": seed, "frame_stack": config.frame_stack, "episodes": episodes}
        self._windows = algorithm.batch_kind == "windows"
        # A closed form scales the sum of n rewards; other sums, and scalers that are not affine, want every reward scaled first.
        self._scale_sums = isinstance(scalers.reward, Affine) and not self._windows and not algorithm.returns
        if scalers.reward is not None and not self._scale_sums:
            common["reward"] = reward_column(scalers.reward, store)
        if self._windows:
            self._sampler: Any = store.windows(length=config.context_size, **common)
        else:
            self._sampler = store.transitions(
                n_steps=config.n_steps if values else 1, gamma=self._gamma, next_action=algorithm.next_action, returns=algorithm.returns,
                **common,
            )  # fmt: skip
        self._algorithm, self._space, self._scalers, self._seed = algorithm, space, scalers, seed
        self._dtype, self._device = dtype, device
        # Noise is drawn as float32 on the CPU whatever the device: the same numbers everywhere.
        self._noise = {
            name: (noise, rng.stream_id(f"noise/{name}"), np.empty(noise.shape, np.float32))
            for name, noise in algorithm.noise(config, space).items()
        }

    def batch(self, k: int) -> Batch | Windows:
        """Batch of update ``k``; its tensors are valid until the next call."""
        if self._sampler.step != k:
            self._sampler.seek(k)
        raw = self._sampler.sample()
        noise = {name: self._draw(k, *noise) for name, noise in self._noise.items()}
        key = torch.tensor(int(rng.philox4x32(self._seed, k, KEY_STREAM, 1)[0, 0]), device=self._device)
        if self._windows:
            return Windows(
                self._observation(raw.observation, 2), self._action(raw.action), self._tensor(raw.reward), self._tensor(raw.returns_to_go),
                self._tensor(raw.terminal), self._tensor(raw.mask), self._whole(raw.timesteps), noise, key,
            )  # fmt: skip
        discount, reward = self._tensor(raw.discount), self._tensor(raw.reward)
        if self._scale_sums:
            reward = self._scalers.reward.n_step_reward(reward, discount, self._gamma)
        return Batch(
            observation=self._observation(raw.observation),
            action=self._action(raw.action),
            reward=reward,
            next_observation=self._observation(raw.next_observation),
            terminal=self._tensor(raw.terminal),
            discount=discount,
            noise=noise,
            key=key,
            next_action=self._action(raw.next_action) if self._algorithm.next_action else None,
            returns=self._tensor(raw.returns) if self._algorithm.returns else None,
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype, non_blocking=True)

    def _whole(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, torch.int64, non_blocking=True)

    def _observation(self, value: Any, leading: int = 1) -> Observation:
        fields = {name: torch.from_numpy(array) for name, array in fields_of(value).items()}
        return view_observation(fields, self._scalers, self._dtype, self._device, leading)

    def _action(self, array: np.ndarray) -> Tensor:
        if self._space.discrete:
            return self._whole(array)
        action = self._tensor(array)
        return action if self._scalers.action is None else self._scalers.action(action)

    def _draw(self, k: int, noise: Any, stream: int, out: np.ndarray) -> Tensor:
        (rng.normal if noise.distribution == "normal" else rng.uniform)(self._seed, k, stream, out)
        return self._tensor(out)


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


def view_observation(fields: dict[str, Tensor], scalers: Scalers, dtype: torch.dtype, device: torch.device, leading: int = 1) -> Observation:
    """Scale each field ``[B, ...]`` (or ``[B, L, ...]``: ``leading`` 2) and put them together as `Space.view` says: vectors joined into one
    ``[B, D]``, an image by itself, a dict where there are images among several fields."""
    parts = {}
    for name, scaler in scalers.observation.items():
        part = fields[name].to(device, dtype, non_blocking=True)
        parts[name] = part if scaler is None else scaler(part)
    if any(part.dim() == leading + 3 for part in parts.values()):
        return parts if len(parts) > 1 else next(iter(parts.values()))
    vectors = [part if part.dim() == leading + 1 else part.reshape(*part.shape[:leading], -1) for part in parts.values()]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)
