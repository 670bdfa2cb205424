"""The stepper of several environments: one call acts in all of them; each has its own episodes, numbers and ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from offrld.collect.batches import ABSENT, Rows
from offrld.collect.stepper import EPISODE_INFOS, Stepper, number


class VectorStepper(Stepper):
    """Steps several environments together."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.behaviour.begin_batch(self.envs.action_space, self.envs.count, self.rng)

    def steps(self, frames: int, rows: Rows | None) -> None:
        """See `Stepper.steps`."""
        ticks, left = divmod(frames, self.envs.count)
        self._ticks(ticks, rows)
        if left:
            self._last_tick(left)

    def _ticks(self, ticks: int, rows: Rows | None) -> None:
        """Make ``ticks`` steps in every environment."""
        envs, writer, behaviour = self.envs, self.writer, self.behaviour
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

    def _fill(self, arrays: Mapping[str, np.ndarray], t: int, observations: Any) -> None:
        stored = self._stored(observations)
        for name, array in arrays.items():
            array[:, t] = stored[name] if name else stored

    def _reset_all(self) -> None:
        seed, self.seed = self.seed, None
        try:
            self._now = self.envs.reset_all(seed)
        except BaseException as error:
            raise self.envs.failed("the reset", error, f"after {self.frames} steps") from error
        self._begin_in(np.arange(self.envs.count), self._now)

    def _begin_in(self, envs: np.ndarray, observations: Any) -> None:
        """Start an episode in each of these environments, with its row of the observations."""
        stored = self._stored(observations)
        for env in envs.tolist():
            self._infos[env] = {name: number(self.envs.infos[name][env]) for name in EPISODE_INFOS if name in self.envs.infos}
            self._traj[env], self._open[env], self._length[env] = self.trajectories, True, 0
            self.trajectories += 1
            if self.writer is not None:
                self.writer.begin({name: array[env] for name, array in stored.items()} if isinstance(stored, Mapping) else stored[env], env)

    def _last_tick(self, left: int) -> None:
        """Make one more step, which counts in the first ``left`` environments only; the episodes of the others end before it."""
        for env in range(left, self.envs.count):
            self._end(env)
        frames = self.frames
        self._ticks(1, None)
        self.frames = frames + left
        for env in range(left, self.envs.count):
            if self.writer is not None:
                self.writer.discard(env)
        self.cut()


__all__ = ["VectorStepper"]
