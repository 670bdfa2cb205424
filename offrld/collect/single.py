"""The stepper of a single environment."""

from __future__ import annotations

import time
from typing import Any

from offrld.collect.batches import Rows
from offrld.collect.stepper import EPISODE_INFOS, Stepper, number


class SingleStepper(Stepper):
    """Steps one environment."""

    def steps(self, frames: int, rows: Rows | None) -> None:
        """See `Stepper.steps`.

        All that a step reads is in locals: this loop is what a step costs beside the calls of policy and environment.
        """
        act, step, writer, behaviour, longest = self.behaviour.act, self.envs.step, self.writer, self.behaviour, self._longest
        stored, earned, sync_s = self._stored, self._reward, self._sync_s
        put, plain = None if writer is None else writer.step, "" in self.fields
        clock = time.monotonic
        observation, open_ = self._now, bool(self._open[0])
        length, traj = int(self._length[0]), int(self._traj[0])
        done_frames, stop = 0, self.interruptor
        if rows is not None:
            seen, after = list(rows.observation.items()), list(rows.next_observation.items())
        try:
            while done_frames < frames:
                if not open_:
                    observation = self._reset_one()
                    behaviour.begin_episode(self.envs.action_space, self.rng)
                    length, traj, open_ = 0, int(self._traj[0]), True
                    if writer is not None:
                        writer.begin(stored(observation))
                action = act(observation)
                if rows is not None:
                    at = stored(observation)
                    for name, array in seen:  # before the step: some environments write the next observation into the same array
                        array[done_frames] = at[name] if name else at
                try:
                    following, reward, terminated, truncated, _ = step(action)
                except BaseException as error:
                    raise self.envs.failed("a step", error, self._where(length)) from error
                length += 1
                if length >= longest and not terminated:
                    truncated = True
                if put is not None:
                    put(action, reward, following if plain else stored(following))
                if rows is not None:
                    at = stored(following)
                    for name, array in after:
                        array[done_frames] = at[name] if name else at
                    rows.take_action(done_frames, action)
                    rows.reward[done_frames] = reward
                    rows.terminated[done_frames], rows.truncated[done_frames] = terminated, truncated and not terminated
                    rows.traj_ids[done_frames], rows.mask[done_frames] = traj, True
                done_frames += 1
                self.frames += 1
                if earned is not None:
                    earned(reward)
                observation = following
                if terminated or truncated:
                    open_ = False
                    if writer is not None:
                        writer.end(bool(terminated), metadata=self._metadata(0))
                    if self.ends is not None:
                        self.ends.append((traj, self._metadata(0)))
                if put is not None and clock() >= self._next_sync:
                    self.sync(sync_s)
                if stop is not None and stop():
                    break
        finally:
            self._now, self._open[0], self._length[0] = observation, open_, length

    def _reset_one(self) -> Any:
        seed, self.seed = self.seed, None
        try:
            observation, info = self.envs.reset(seed=seed)
        except BaseException as error:
            raise self.envs.failed("the reset", error, f"after {self.frames} steps") from error
        self._infos[0] = {name: number(info[name]) for name in EPISODE_INFOS if name in info}
        self._traj[0] = self.trajectories
        self.trajectories += 1
        return observation


__all__ = ["SingleStepper"]
