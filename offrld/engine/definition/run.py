"""A training run: everything that stays constant from its first update to its last."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from offrl.errors import Unknown
from offrld.engine.definition.algorithm import KINDS, Algorithm, Stage
from offrld.engine.definition.space import Space
from offrld.preprocess.scalers import Scaler


class Scalers:
    """The fitted scalers of a run: one per observation field, one of actions, one of rewards; None leaves values as they are."""

    def __init__(self, observation: dict[str, Scaler | None], action: Scaler | None, reward: Scaler | None) -> None:
        self.observation, self.action, self.reward = observation, action, reward

    def tensors(self) -> dict[str, Tensor]:
        """Return the fitted tensors by flat names, for checkpoints."""
        scalers = {f"observation.{name}": s for name, s in self.observation.items()} | {"action": self.action, "reward": self.reward}
        return {f"{name}.{part}": tensor for name, s in scalers.items() if s is not None for part, tensor in s.tensors().items()}


@dataclass(frozen=True, eq=False)
class Run:
    """An algorithm with its settings and networks, for some seeds, on a device.

    Attributes:
        nets: the networks, one attribute each.
        seeds: the seeds, each an independent training run.
        dtype: dtype of parameters and batches.
        stacked: whether one view of the training state holds all seeds, rather than one view each.
    """

    algorithm: Algorithm
    config: Any
    nets: Any
    space: Space
    scalers: Scalers
    seeds: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    stacked: bool = False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training; at least one."""
        algorithm, config = self.algorithm, self.config
        return tuple(algorithm.stages(config)) if algorithm.stages else (Stage("train", algorithm.schedule(config)),)

    @property
    def batch_type(self) -> type:
        """The type of batch that the losses take: `Batch`, `Windows` or `Rollout`."""
        return KINDS[self.algorithm.batch_kind]

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The seeds of each view of the training state."""
        return [self.seeds] if self.stacked else [(seed,) for seed in self.seeds]

    def seed(self, seed: int | None) -> int:
        """Return ``seed``, or the first seed for None; raise `Unknown` for a seed that was not trained."""
        if seed is not None and seed not in self.seeds:
            raise Unknown(f"seed {seed} was not trained", hint=f"trained seeds: {', '.join(map(str, self.seeds))}")
        return self.seeds[0] if seed is None else seed

    def stage(self, k: int) -> Stage:
        """Return the stage of update ``k``."""
        for stage in self.stages[:-1]:
            if stage.updates is None or k < stage.updates:
                return stage
            k -= stage.updates
        return self.stages[-1]

    def stage_end(self, k: int) -> int | None:
        """Return the first update after ``k`` that belongs to another stage; None in the last stage."""
        end = 0
        for stage in self.stages[:-1]:
            end += stage.updates or 0
            if stage.updates is not None and end > k:
                return end
        return None

    def with_config(self, config: Any) -> Run:
        """Return the same run with other settings."""
        return dataclasses.replace(self, config=config, nets=self.algorithm.nets(config, self.space))
