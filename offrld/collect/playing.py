"""Training by rollouts, in pieces like `OnlineTraining`: what a train-online job runs for an algorithm that learns from its own play."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld.collect.on_policy import OnPolicy


class PlayTraining:
    """Whole rollouts and their updates, the steps kept in a store.

    Attributes:
        round_steps: steps of all environments in a rollout: what `advance` goes on by.
        store: what is gathered.
        returns: of the episodes that have ended since they were last read.
    """

    def __init__(self, learner: Any, env: Any, into: Any, **options: Any) -> None:
        """``options``: as of `Collector`: envs, limit, max_frames_per_traj, step_timeout_s, note, ..."""
        self.learner = learner
        self._playing = OnPolicy(learner, env, into=into, **options)
        self.collector = self._playing.collector
        self.store: EpisodeStore = self.collector.store
        self.round_steps = learner.config.rollout_steps * self.collector.envs.count
        self.returns: list[float] = []
        self._metrics: list[Mapping[str, float]] = []

    @property
    def step(self) -> int:
        """Steps of all environments in the rollouts that were learned from."""
        return self._playing.steps

    def advance(self, steps: int) -> None:
        """So many steps, a multiple of ``round_steps``. Raises `EnvironmentFailed` with everything kept."""
        if steps % self.round_steps:
            raise InvalidInput(f"{steps} steps are no whole rollouts of {self.round_steps}")
        for _ in range(steps // self.round_steps):
            played = self._playing.round()
            self.returns += played.returns
            self._metrics.append(played.metrics)

    def take_metrics(self) -> dict[str, dict[int, float]]:
        """The losses' means and ``rollout_return`` (mean over the episodes that have ended) since the last call."""
        seed = self.learner.seeds[0]
        means = {name: float(np.mean([each[name] for each in self._metrics])) for name in (self._metrics[0] if self._metrics else ())}
        if self.returns:
            means["rollout_return"] = float(np.mean(self.returns))
        self._metrics, self.returns = [], []
        return {name: {seed: value} for name, value in means.items()}

    def commit(self) -> None:
        """Make what has ended durable."""
        self.collector.writer.commit()

    def due_until(self, step: int) -> int:
        """None: steps that were played after the checkpoint are of a policy that is gone."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {"collector": self.collector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.collector.load_state_dict(state["collector"])

    def close(self) -> None:
        """Cut what is under way (truncated), commit, close what was made here."""
        self._playing.close()


__all__ = ["PlayTraining"]
