"""Spaces instead of a dataset: observations and actions given explicitly, or those of an environment.

A learner built from them acts, trains on the caller's batches (`update`), and loads checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import Field, Schema
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space, space_of
from offrld.preprocess.rewards import RewardScaler, fit_reward
from offrld.preprocess.scalers import ActionScaler, fit_action, observation_between


@dataclass(frozen=True)
class Shapes:
    """Spaces without data.

    Attributes:
        space: the spaces of observations and actions.
        bounds: observation field -> (low, high), if known; observation scalers are fitted from them.
    """

    space: Space
    bounds: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        observation: Any,
        *,
        actions: int | None = None,
        action_size: int | None = None,
        low: Any = -1.0,
        high: Any = 1.0,
    ) -> Shapes:
        """Create shapes from explicit spaces.

        Args:
            observation: a shape (float32, or uint8 for images ``(C, H, W)``), a store's `Field`, or a dict of them by field.
            actions: the number of discrete actions, or
            action_size: the dimensions of continuous actions, with bounds ``low`` and ``high``, each a number or ``[action_size]``.

        Raises:
            InvalidInput: neither or both kinds of actions, or a shape that no network supports.
        """
        if actions is not None and action_size is None:
            action = Field("int64", low=0, high=actions - 1)
        elif action_size is not None and actions is None:
            action = Field("float32", (action_size,), low=low, high=high)
        else:
            raise InvalidInput("give either actions=N for N discrete actions, or action_size=A for continuous ones")
        fields = {k: _field(v) for k, v in observation.items()} if isinstance(observation, Mapping) else _field(observation)
        return cls(space_of(Schema(observation=fields, action=action), {}))

    @classmethod
    def of_env(cls, env: Any) -> Shapes:
        """Create shapes from a gymnasium environment or its id: Box or Dict of Box observations, Box or Discrete actions.

        Raises:
            InvalidInput: a space of another kind, or actions without bounds.
        """
        if isinstance(env, str):
            from offrl.rollout import make_env

            opened = make_env(env)
            try:
                return cls.of_env(opened)
            finally:
                opened.close()
        from gymnasium.spaces import Box, Dict, Discrete

        seen, done = env.observation_space, env.action_space
        boxes = dict(seen.spaces) if isinstance(seen, Dict) else {"observation": seen}
        fields, bounds = {}, {}
        for name, box in boxes.items():
            if not isinstance(box, Box):
                raise InvalidInput(f"observation {name!r} of the environment is {box}", hint="networks support vectors and images (Box)")
            fields[name], bounds[name] = Field(np.dtype(box.dtype).name, box.shape), (box.low, box.high)
        if isinstance(done, Discrete):
            action = Field("int64", low=0, high=int(done.n) - 1)
        elif isinstance(done, Box) and np.isfinite(done.low).all() and np.isfinite(done.high).all():
            action = Field("float32", (int(np.prod(done.shape)),), low=done.low.reshape(-1), high=done.high.reshape(-1))
        else:
            raise InvalidInput(f"the environment's action space is {done}", hint="use Box with finite bounds, or Discrete")
        schema = Schema(observation=fields if isinstance(seen, Dict) else fields["observation"], action=action)
        source = f"env:{env.spec.id}" if getattr(env, "spec", None) is not None else "env"
        space = dataclasses.replace(space_of(schema, {}), source=source)
        return cls(space, bounds)

    def scalers(self, config: Any, dtype: torch.dtype, device: torch.device) -> Scalers:
        """Build the scalers of ``config`` from bounds and from statistics in the settings.

        Raises:
            InvalidInput: a scaler needs data; the hint names the settings for its statistics.
        """
        fields = self.space.observation
        bounds = {}
        for name, (stored, shape) in fields.items():
            if name in self.bounds:
                low, high = self.bounds[name]
                bounds[name] = np.asarray(low, stored), np.asarray(high, stored)
            else:
                bounds[name] = _cast((np.full(shape, -np.inf), np.full(shape, np.inf)), stored)
        frames = getattr(config, "frame_stack", 1)
        observation = observation_between(config.observation_scaler, bounds, dtype, device)
        observation = {name: scaler if scaler is None else scaler.stacked(frames) for name, scaler in observation.items()}
        action = None
        if not self.space.discrete:
            action = fit_action(getattr(config, "action_scaler", ActionScaler()), *self.space.bounds, dtype, device)
        spec = getattr(config, "reward_scaler", RewardScaler())
        return Scalers(observation, action, fit_reward(spec, _no_rewards, _no_rewards, dtype, device))


def _no_rewards() -> Any:
    raise InvalidInput("the reward scaler needs data to fit on, and there is none", hint="set its statistics: reward_scaler.mean, std")


def _field(field: Any) -> Field:
    if isinstance(field, Field):
        return field
    shape = tuple(field)
    return Field("uint8" if len(shape) == 3 else "float32", shape)


def _cast(bounds: tuple[np.ndarray, np.ndarray], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return np.full_like(bounds[0], limits.min, dtype), np.full_like(bounds[1], limits.max, dtype)
    return bounds[0].astype(dtype), bounds[1].astype(dtype)
