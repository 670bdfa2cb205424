"""The data feed: batches of a store, scaled and on the training device, with the noise that losses read.

Batch and noise of update ``k`` are pure functions of (snapshot, seed, k), so that a resumed run needs a number and no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl_store import EpisodeStore
from offrld.engine.batches.source import Request, Source
from offrld.engine.definition.algorithm import Algorithm, Batch, Noise, Observation, ValueConfig, Windows
from offrld.engine.definition.run import Run, Scalers
from offrld.nets.aligned import aligned
from offrld.preprocess.rewards import needs_column, reward_column
from offrld.preprocess.scalers import Affine, is_wide, scaled

KEY, KEYS = "networks", 1 << 24  # noise from which networks draw their own random numbers; values of a uniform float32


class Feed:
    """Scaled batches of one seed, or of several seeds with a leading axis.

    Args:
        run: its scalers, spaces, dtype and device shape the batches.
        request: what the samples are (`request_of`).
        source: gives the samples of the request.
    """

    def __init__(self, run: Run, request: Request, source: Source) -> None:
        self.source = source
        self._space, self._scalers = run.space, run.scalers
        self._gamma = run.config.gamma if isinstance(run.config, ValueConfig) else 1.0
        reward = None if "reward" in request.arguments else run.scalers.reward
        if not (reward is None or isinstance(reward, Affine)):
            raise TypeError("only an affine scaler can scale sums of rewards: others scale the store's column (`needs_column`)")
        self._kind, self._reward = request.kind, reward
        self._dtype, self._device = run.dtype, run.device

    def batch(self, k: int | Tensor) -> Batch | Windows:
        """The batch of update ``k``; its tensors are valid until the next call. A resident source also takes a tensor of updates."""
        samples = self.source.samples(k)
        raw, noise = samples.batch, {name: self._tensor(noise) for name, noise in samples.noise.items()}
        key = (samples.noise[KEY] * KEYS).to(self._device, torch.int64)
        del noise[KEY]
        if self._kind == "windows":
            return Windows(
                observation=self._observation(raw.observation, raw.reward.dim()),
                action=self._action(raw.action),
                reward=self._multiple(raw.reward),
                returns_to_go=self._multiple(raw.returns_to_go),
                terminal=self._tensor(raw.terminal),
                mask=self._tensor(raw.mask),
                timesteps=self._whole(raw.timesteps),
                noise=noise,
                key=key,
            )
        discount, reward, lead = self._tensor(raw.discount), self._tensor(raw.reward), raw.reward.dim()
        if self._reward is not None:
            reward = self._reward.n_step_reward(reward, discount, self._gamma)
        return Batch(
            observation=self._observation(raw.observation, lead),
            action=self._action(raw.action),
            reward=reward,
            next_observation=self._observation(raw.next_observation, lead),
            terminal=self._tensor(raw.terminal),
            discount=discount,
            noise=noise,
            key=key,
            next_action=None if raw.next_action is None else self._action(raw.next_action),
            returns=None if raw.returns is None else self._multiple(raw.returns),
            weight=None if raw.weight is None else self._tensor(raw.weight),
        )

    def _tensor(self, value: Tensor) -> Tensor:
        return placed(value.to(self._device, self._dtype, non_blocking=True))

    def _multiple(self, rewards: Tensor) -> Tensor:
        """Rewards or sums of rewards, scaled: if the store's column is not scaled yet, the scaler is a mere factor (`needs_column`)."""
        rewards = self._tensor(rewards)
        return rewards if self._reward is None else self._reward(rewards)

    def _whole(self, value: Tensor) -> Tensor:
        return value.to(self._device, torch.int64, non_blocking=True)

    def _observation(self, value: Any, lead: int) -> Observation:
        seen = view_observation(fields_of(value), self._scalers, self._dtype, self._device, lead)
        return {name: placed(part) for name, part in seen.items()} if isinstance(seen, dict) else placed(seen)

    def _action(self, value: Tensor) -> Tensor:
        if self._space.discrete:
            return self._whole(value)
        return placed(scaled(self._scalers.action, value, self._dtype, self._device))


def request_of(
    run: Run,
    store: EpisodeStore,
    seeds: tuple[int, ...],
    *,
    stacked: bool,
    episodes: np.ndarray | None = None,
    policy_actions: np.ndarray | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Request:
    """The samples that a run takes from a store.

    Args:
        episodes: numbers of the episodes to sample from; None: all.
        policy_actions: actions of an evaluated policy at every row, which become the batch's next actions.
        changes: arguments of the sampler that replace those of the algorithm.
    """
    algorithm, config, reward_scaler = run.algorithm, run.config, run.scalers.reward
    arguments = {**sampler_arguments(algorithm, config), "episodes": episodes}
    if policy_actions is not None:
        arguments["next_action"] = policy_actions
    sums = {"n_steps": arguments.get("n_steps", 1), "gamma": arguments.get("gamma", 1.0)}
    whole_returns, wide = algorithm.returns or algorithm.batch_kind == "windows", is_wide(store.schema.reward.dtype)
    if reward_scaler is not None and needs_column(reward_scaler, whole_returns=whole_returns, wide=wide, **sums):
        arguments["reward"] = reward_column(reward_scaler, store)
    noise = {**algorithm.noise(config, run.space), KEY: Noise((), "uniform")}
    return Request(algorithm.sampler, {**arguments, **changes}, seeds, noise, stacked)


def sampler_arguments(algorithm: Algorithm, config: Any) -> dict[str, Any]:
    """The arguments of a store's sampler for an algorithm, without the seed."""
    arguments: dict[str, Any] = {"batch_size": config.batch_size, "frame_stack": config.frame_stack}
    if algorithm.batch_kind == "windows":
        return {**arguments, "length": config.context_size}
    values = isinstance(config, ValueConfig)
    return {
        **arguments,
        "n_steps": config.n_steps if values else 1,
        "gamma": config.gamma if values else 1.0,
        "next_action": algorithm.next_action,
        "returns": algorithm.returns,
    }


def fields_of(value: Any) -> dict[str, Any]:
    """The observation as fields: a single array is the field ``observation``."""
    return value if isinstance(value, dict) else {"observation": value}


def placed(value: Tensor) -> Tensor:
    """The tensor at an address that suits the CPU's products (see `offrld.nets.aligned`)."""
    return aligned(value) if value.device.type == "cpu" else value


def view_observation(fields: dict[str, Tensor], scalers: Scalers, dtype: torch.dtype, device: torch.device, lead: int = 1) -> Observation:
    """Scale each field and put them together as `Space.view` says: vectors joined, an image by itself, a dict if there are images
    among several fields. ``lead`` axes come before a sample's."""
    parts = {}
    for name, scaler in scalers.observation.items():
        parts[name] = scaled(scaler, fields[name], dtype, device)
    if any(part.dim() == lead + 3 for part in parts.values()):
        return parts if len(parts) > 1 else next(iter(parts.values()))
    vectors = [part if part.dim() == lead + 1 else part.reshape(*part.shape[:lead], -1) for part in parts.values()]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)
