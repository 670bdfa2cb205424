"""Steppers: what makes steps. A behaviour acts in environments; the steps go into the rows of a batch, into a store, or both.

`SingleStepper` (single.py) steps one environment, `VectorStepper` (vector.py) several at once. A `Collector` drives one of them.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from offrl_store import Writer
from offrld.collect.batches import Rows
from offrld.collect.environments import Environments
from offrld.collect.into import SYNC_SHARE
from offrld.collect.spaces import by_field, observation_fields

EPISODE_INFOS = ("level_seed",)  # infos of a reset that go into the metadata of the episode that starts with it


class Stepper(abc.ABC):
    """The episodes under way, their place in the store, and the counts: what both steppers share.

    Args:
        behaviour: acts.
        writer: of the store that takes the steps; None: no store.
        seed: environment i is first reset with ``seed + i``; the behaviour draws from a generator of ``seed``.
        longest: steps after which a trajectory is cut.
        sync_s: seconds between two moments from which on open episodes outlive a crash.
        note: goes into the metadata of every episode in the store.

    Attributes:
        fields: observation field -> its schema field, "" for a plain observation.
        rng: the generator of the behaviour's random numbers.
        seed: of the next reset; None: the environments choose.
        frames, trajectories: steps made and trajectories started so far.
        interruptor: called after each step; a true result ends the call of `steps` early.
        ends: if it is a list, number and metadata of each trajectory that ends are appended to it.
    """

    def __init__(
        self, envs: Environments, behaviour: Any, writer: Writer | None, *, seed: int, longest: int, sync_s: float, note: Mapping[str, Any]
    ) -> None:
        self.envs, self.behaviour, self.writer = envs, behaviour, writer
        self.fields = observation_fields(envs.observation_space)
        self.rng = np.random.default_rng(seed)
        self.seed: int | None = seed
        self.frames = self.trajectories = 0
        self.interruptor: Callable[[], bool] | None = None
        self.ends: list[tuple[int, Mapping[str, Any]]] | None = None
        self._stored = by_field(envs.observation_space)
        self._reward = getattr(behaviour, "take_reward", None)
        self._longest, self._note = longest, dict(note)
        self._sync_s, self._next_sync = sync_s, time.monotonic() + sync_s
        self._infos: list[dict[str, Any]] = [{} for _ in range(envs.count)]  # of the episodes under way, see `EPISODE_INFOS`
        self._open = np.zeros(envs.count, bool)  # environments with an episode under way
        self._traj = np.zeros(envs.count, np.int64)  # its number
        self._length = np.zeros(envs.count, np.int64)  # its steps so far
        self._now: Any = None  # the observations to act on

    @abc.abstractmethod
    def steps(self, frames: int, rows: Rows | None) -> None:
        """Make ``frames`` steps, of all environments together, and put them into ``rows`` and into the store."""

    def cut(self) -> None:
        """End the episodes under way as truncated; the next step starts with a reset."""
        for env in np.flatnonzero(self._open).tolist():
            self._end(env)
        self._forget()

    def discard(self) -> None:
        """Drop the episodes under way, whose steps no longer count; whole episodes are kept."""
        if self.writer is not None:
            for env, steps in self.writer.open_episodes.items():
                self.writer.discard(env)
                self.frames -= steps
        self._forget()

    def sync(self, pause_s: float = 0.0) -> None:
        """Make all collected steps durable, those of open episodes included; the next sync is at least ``pause_s`` away."""
        if self.writer is not None:
            began = time.monotonic()
            self.writer.sync()
            self._next_sync = time.monotonic() + max(pause_s, SYNC_SHARE * (time.monotonic() - began))

    def close(self) -> None:
        """End the episodes under way; no step may follow."""
        if self.writer is not None and self._open.any():
            self.cut()

    def _end(self, env: int) -> None:
        """End the episode of ``env`` in the store as truncated, if one is under way there."""
        if self.writer is not None and env in self.writer.open_episodes:
            if self.writer.open_episodes[env]:
                self.writer.end(env=env, metadata=self._metadata(env))
            else:
                self.writer.discard(env)

    def _forget(self) -> None:
        self._open[:] = False
        self._length[:] = 0
        self._now = None

    def _metadata(self, env: int = 0) -> dict[str, Any]:
        """The metadata of the episode of ``env``: who acts, what explores, the infos of its reset, and the collector's own note."""
        own = getattr(self.behaviour, "episode_metadata", None)
        return {**({"policy": self.behaviour.name} if own is None else own(env)), **self._infos[env], **self._note}

    def _where(self, length: int) -> str:
        return f"at step {self.frames}, step {length} of its episode"


def number(value: Any) -> Any:
    """A number of an info as JSON holds it."""
    return value.item() if hasattr(value, "item") else value


__all__ = ["EPISODE_INFOS", "Stepper", "number"]
