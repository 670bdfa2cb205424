"""The loop of a collector over environments side by side: one call acts in all of them; each has its episodes, ids and ends of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from offrl_store import Writer
from offrld.collect.batches import ABSENT, Rows
from offrld.collect.environments import Environments

TOLD = ("level_seed",)  # what an environment says of an episode when it begins, kept in the episode's metadata


class VectorSteps:
    """The part of `Collector` that makes steps where it has several environments; the names below are the collector's."""

    envs: Environments
    behaviour: Any
    frames: int
    trajectories: int
    ends: list[tuple[int, Mapping[str, Any]]] | None
    interruptor: Callable[[], bool] | None
    _writer: Writer | None
    _stored: Callable[[Any], Any]
    _reward: Callable[[Any], None] | None
    _told: list[dict[str, Any]]
    _open: np.ndarray
    _traj: np.ndarray
    _length: np.ndarray
    _longest: int
    _now: Any
    _seed: int | None
    _sync_s: float
    _next_sync: float

    def _ticks(self, ticks: int, rows: Rows | None) -> None:
        """Steps of several environments at once."""
        envs, writer, behaviour = self.envs, self._writer, self.behaviour
        for t in range(ticks):
            if self._now is None:
                self._reset_all()
            starts = self._length == 0
            actions = np.asarray(behaviour.act_batch(self._now, starts))
            if rows is not None:
                self._fill(rows.observation, t, self._now)  # before the step, as some environments write into the same arrays
            try:
                observations, rewards, terminated, truncated, absent, now = envs.step_all(actions)
            except BaseException as error:
                raise envs.failed("a step", error, self._where(int(self._length.max()))) from error
            here = ~absent
            self._length[here] += 1
            terminated, truncated = terminated & here, truncated & here
            done = terminated | truncated
            cut = (self._length >= self._longest) & here & ~done
            if cut.any():
                truncated = truncated | cut
            if rows is not None:
                self._fill(rows.next_observation, t, observations)
                rows.take_action((slice(None), t), actions)
                rows.reward[:, t] = rewards
                rows.terminated[:, t], rows.truncated[:, t] = terminated, truncated & ~terminated
                rows.traj_ids[:, t], rows.mask[:, t] = np.where(here, self._traj, ABSENT), here
            if writer is not None:
                writer.step_batch(actions, rewards, self._stored(observations), terminated, truncated, metadata=self._metadata)
            self.frames += int(np.count_nonzero(here))
            if self._reward is not None:
                self._reward(rewards)
            begun = absent
            if self.ends is not None:
                self.ends += [(int(self._traj[env]), self._metadata(env)) for env in np.flatnonzero(done | cut).tolist()]
            if done.any() or cut.any():
                try:
                    now, begin = envs.begin_after(done, cut, now)
                except BaseException as error:
                    raise envs.failed("a reset", error, f"after {self.frames} steps") from error
                self._open[done | cut] = False
                self._begin_in(np.flatnonzero(begin), now)
                begun = absent | begin
            if begun.any():
                self._length[begun] = 0
                for env in np.flatnonzero(absent):
                    self._open[env], self._traj[env] = True, self.trajectories
                    self.trajectories += 1
            self._now = now
            if writer is not None and time.monotonic() >= self._next_sync:
                self.sync(self._sync_s)
            if self.interruptor is not None and self.interruptor():
                break

    def _fill(self, arrays: Mapping[str, np.ndarray], t: int, given: Any) -> None:
        given = self._stored(given)
        for name, array in arrays.items():
            array[:, t] = given[name] if name else given

    def _reset_all(self) -> None:
        seed, self._seed = self._seed, None
        try:
            self._now = self.envs.reset_all(seed)
        except BaseException as error:
            raise self.envs.failed("the reset", error, f"after {self.frames} steps") from error
        self._begin_in(np.arange(self.envs.count), self._now)

    def _begin_in(self, envs: np.ndarray, observations: Any) -> None:
        """Episodes begin in these environments, each with its row of the observations."""
        stored = self._stored(observations)
        for env in envs.tolist():
            self._told[env] = {name: number(self.envs.infos[name][env]) for name in TOLD if name in self.envs.infos}
            self._traj[env], self._open[env], self._length[env] = self.trajectories, True, 0
            self.trajectories += 1
            if self._writer is not None:
                self._writer.begin({name: each[env] for name, each in stored.items()} if isinstance(stored, Mapping) else stored[env], env)

    def _last_tick(self, left: int) -> None:
        """One step more of which the first ``left`` environments' count; what is under way in the others ends before it."""
        for env in range(left, self.envs.count):
            self._end(env)
        frames = self.frames
        self._ticks(1, None)
        self.frames = frames + left
        for env in range(left, self.envs.count):
            self._writer.discard(env)
        self.cut()


def number(value: Any) -> Any:
    """A number of an info as JSON holds it."""
    return value.item() if hasattr(value, "item") else value


__all__ = ["TOLD", "VectorSteps", "number"]
