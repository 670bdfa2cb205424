"""The collector: steps of a behaviour in one environment or several, as batches of exactly the asked size, into a store, or both.

The environment is not reset between batches. Into a store the steps go one by one; now and then the open episodes are made durable too, so
that a crash loses the last seconds and nothing else.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, Snapshot, Writer
from offrld.collect.batches import CollectedBatch, Rows, complete_trajectories, split_trajectories
from offrld.collect.behaviours import Copies, FunctionBehaviour
from offrld.collect.environments import Environments
from offrld.collect.explorers import Explorer, Exploring
from offrld.collect.into import SYNC_SHARE, open_writer
from offrld.collect.spaces import by_field, observation_fields, schema_of_spaces
from offrld.collect.trained_behaviours import as_behaviour
from offrld.collect.vector import TOLD, VectorSteps, number
from offrld.collect.watch import StepWatch


class Collector(VectorSteps):
    """Collects steps.

        with Collector("CartPole-v1", "policy.onnx", frames_per_batch=200, total_frames=10_000, into=store) as collector:
            for batch in collector: ...

    Attributes:
        frames: steps collected so far, over the collector's life.
        trajectories: trajectories begun so far.
        interruptor: asked after each step whether to end the batch early; the frames that are missing then are absent (``mask``).
        ends: where it is a list, number and metadata of each trajectory that ends are put into it.
        schema: of the steps, as a store holds them.
    """

    def __init__(
        self,
        env: Any,
        policy: Any = None,
        *,
        frames_per_batch: int | None = None,
        total_frames: int = -1,
        envs: int = 1,
        vectorization: str = "sync",
        seed: int = 0,
        deterministic: bool | None = None,
        explorer: Explorer | None = None,
        init_random_frames: int | None = None,
        max_frames_per_traj: int | None = None,
        reset_at_each_iter: bool = False,
        split_trajs: bool = False,
        trajs_per_batch: int | None = None,
        postproc: Callable[[CollectedBatch], Any] | None = None,
        into: EpisodeStore | Writer | str | os.PathLike[str] | None = None,
        limit: int | None = None,
        sync_s: float = 2.0,
        note: Mapping[str, Any] | None = None,
        keep: Sequence[Snapshot] = (),
        step_timeout_s: float | None = None,
        given_up: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            env: a gymnasium id, an environment, a vector environment, or a function that makes one.
            policy: whatever acts, see `as_behaviour`; None: uniform actions.
            frames_per_batch: steps in each batch, of all environments together; default: about 1,000.
            total_frames: steps over the collector's life, -1: endless; rounded up to whole batches.
            envs: environments side by side; ``vectorization``: ``sync`` or ``async`` (a process each).
            seed: environment i is first reset with ``seed + i``; the behaviour draws from a generator of ``seed``.
            deterministic: greedy actions of learners and models.
            explorer: what is mixed into the actions.
            init_random_frames: number of uniform actions at the start.
            max_frames_per_traj: steps after which a trajectory is cut (truncated) and its environment reset.
            reset_at_each_iter: reset all environments before each batch; what is under way is truncated.
            split_trajs: give batches cut into trajectories, ``[pieces, longest, ...]`` with a mask.
            trajs_per_batch: number of complete trajectories in each batch, padded likewise, instead of a number of steps.
            postproc: applied to each batch.
            into: a store, which is made where the path is free, or a writer of one; steps go into it as they are made.
            limit: of a store that is made: transitions that it holds; beyond them the oldest episodes go.
            sync_s: seconds between two moments from which on open episodes outlive a crash.
            note: goes into the metadata of every episode in the store.
            keep: snapshots of the store that somebody uses: a bounded one evicts nothing of them (``writer.keep`` changes them).
            step_timeout_s: a step or reset that takes longer is an `EnvironmentFailed`.
            given_up: called where even that does not end it, see `StepWatch`.

        Raises:
            Unknown, InvalidInput: environment or policy cannot be had, their spaces do not fit each other or the store, or a number is
                out of range.
        """
        self._closing = ExitStack()
        self.interruptor: Callable[[], bool] | None = None
        self.ends: list[tuple[int, Mapping[str, Any]]] | None = None
        try:
            self.envs = Environments(env, envs, vectorization)
            self._closing.callback(self.envs.close)
            self._settle(frames_per_batch, total_frames, init_random_frames, max_frames_per_traj, trajs_per_batch, split_trajs)
            self._reset_each, self._split, self._postproc = reset_at_each_iter, split_trajs, postproc
            space = self.envs.observation_space
            self._fields, self._stored = observation_fields(space), by_field(space)
            behaviour = as_behaviour(policy, deterministic=deterministic)
            if hasattr(behaviour, "check"):
                behaviour.check(self.envs, self.envs.name)
            if self.envs.vector is not None and not hasattr(behaviour, "act_batch"):
                behaviour = Copies(behaviour)
            self.behaviour = Exploring(behaviour, explorer, init_random_frames or 0) if explorer or init_random_frames else behaviour
            self.schema = schema_of_spaces(space, self.envs.action_space, self.envs.env_id, policy=self.behaviour.name)
            self.frames = self.trajectories = self.batches = 0
            self._seed: int | None = _whole("seed", seed, 0)
            self._rng = np.random.default_rng(seed)
            self._writer = None if into is None else open_writer(into, self.schema, limit, self.envs.name, self._closing, note, keep)
            self._note = dict(note or {})
            self._sync_s, self._next_sync = sync_s, time.monotonic() + sync_s
            if step_timeout_s is not None:
                watch = StepWatch(step_timeout_s, given_up)
                self.envs.limit(watch)
                self._closing.enter_context(watch)
            self._begin()
        except BaseException:
            self._closing.close()
            raise

    def _settle(self, per_batch: int | None, total: int, random: int | None, longest: int | None, trajs: int | None, split: bool) -> None:
        """Check the numbers."""
        n = self.envs.count
        per_batch = max(1, 1000 // n) * n if per_batch is None else _whole("frames_per_batch", per_batch, 1)
        self.frames_per_batch = per_batch
        if per_batch % n:
            below, above = per_batch // n * n, -(-per_batch // n) * n
            raise InvalidInput(
                f"frames_per_batch {per_batch} is not a multiple of the {n} environments", hint=f"give {below or n} or {above}"
            )
        self.total_frames = total if total == -1 else _whole("total_frames", total, 1)
        if total != -1 and total % per_batch and trajs is None:
            warnings.warn(f"total_frames {total} is rounded up to whole batches of {per_batch}", stacklevel=3)
        _whole("init_random_frames", max(0, random or 0), 0)
        self._longest = (1 << 62) if longest is None else _whole("max_frames_per_traj", longest, 1)
        self._trajs = None if trajs is None else _whole("trajs_per_batch", trajs, 1)
        if trajs is not None and split:
            raise InvalidInput("trajs_per_batch gives split trajectories already", hint="leave split_trajs out")

    def _begin(self) -> None:
        """The state of a collector that has not begun."""
        count = self.envs.count
        self._told: list[dict[str, Any]] = [{} for _ in range(count)]  # of the episodes under way, see `TOLD`
        self._reward = getattr(self.behaviour, "take_reward", None)
        self._open = np.zeros(count, bool)  # whose episode is under way
        self._traj = np.zeros(count, np.int64)
        self._length = np.zeros(count, np.int64)
        self._now: Any = None  # the observations to act on
        if self.envs.vector is not None:
            self.behaviour.begin_batch(self.envs.action_space, count, self._rng)

    @property
    def writer(self) -> Writer | None:
        """Of the store that is collected into."""
        return self._writer

    @property
    def store(self) -> EpisodeStore | None:
        """The store that is collected into, as its writer has it: it holds what was committed."""
        return None if self._writer is None else self._writer.store

    # ----------------------------------------------------------------------------------------------------------- collecting
    def __iter__(self) -> Iterator[Any]:
        """Batches, until ``total_frames`` are collected."""
        batches = self._batches()
        if self._trajs is not None:
            batches = complete_trajectories(batches, self._trajs)
        for batch in batches:
            batch = split_trajectories(batch) if self._split else batch
            yield batch if self._postproc is None else self._postproc(batch)

    def _batches(self) -> Iterator[CollectedBatch]:
        while self.total_frames == -1 or self.frames < self.total_frames:
            yield self.rollout()

    def rollout(self, frames: int | None = None) -> CollectedBatch:
        """The next batch as it was collected, of ``frames_per_batch`` steps by default."""
        frames = self.frames_per_batch if frames is None else frames
        if self._reset_each:
            self.reset()
        count = self.envs.count
        shape = (frames,) if self.envs.vector is None else (count, frames // count)
        rows = Rows(shape, self._fields, self.schema.action)
        self._collect(frames, rows)
        self.batches += 1
        return rows.batch()

    def run(self, frames: int) -> None:
        """Collect exactly this many steps into the store alone (of several environments the last step counts for some of them)."""
        if self._writer is None:
            raise InvalidInput("there is no store to collect into", hint="give into=, or ask for batches")
        self._collect(frames, None)

    def _collect(self, frames: int, rows: Rows | None) -> None:
        try:
            if self.envs.vector is None:
                self._steps(frames, rows)
                return
            ticks, left = divmod(frames, self.envs.count)
            self._ticks(ticks, rows)
            if left:
                self._last_tick(left)
        except BaseException:
            self.cut()
            raise

    def _steps(self, frames: int, rows: Rows | None) -> None:
        """Steps of a single environment. Everything that a step needs is in locals: this loop is what a step costs beside the two calls."""
        act, step, writer, behaviour, longest = self.behaviour.act, self.envs.step, self._writer, self.behaviour, self._longest
        stored, earned, sync_s = self._stored, self._reward, self._sync_s
        put, plain = None if writer is None else writer.step, "" in self._fields
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
                    behaviour.begin_episode(self.envs.action_space, self._rng)
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
        seed, self._seed = self._seed, None
        try:
            observation, info = self.envs.reset(seed=seed)
        except BaseException as error:
            raise self.envs.failed("the reset", error, f"after {self.frames} steps") from error
        self._told[0] = {name: number(info[name]) for name in TOLD if name in info}
        self._traj[0] = self.trajectories
        self.trajectories += 1
        return observation

    def _where(self, length: int) -> str:
        return f"at step {self.frames}, step {length} of its episode"

    def _metadata(self, env: int = 0) -> dict[str, Any]:
        """What to keep with the episode of ``env``: who acts, what explores, what the environment said, and the collector's own note."""
        own = getattr(self.behaviour, "episode_metadata", None)
        return {**({"policy": self.behaviour.name} if own is None else own(env)), **self._told[env], **self._note}

    # --------------------------------------------------------------------------------------------------------------- ending
    def _end(self, env: int) -> None:
        """End the episode of ``env`` in the store as truncated, if one is under way there."""
        if self._writer is not None and env in self._writer.open_episodes:
            if self._writer.open_episodes[env]:
                self._writer.end(env=env, metadata=self._metadata(env))
            else:
                self._writer.discard(env)

    def cut(self) -> None:
        """End what is under way as truncated; the next step begins with a reset."""
        for env in np.flatnonzero(self._open).tolist():
            self._end(env)
        self._open[:] = False
        self._length[:] = 0
        self._now = None

    def discard(self) -> None:
        """Drop what is under way, which then does not count; whole episodes are kept."""
        if self._writer is not None:
            for env, steps in self._writer.open_episodes.items():
                self._writer.discard(env)
                self.frames -= steps
        self._open[:] = False
        self._length[:] = 0
        self._now = None

    def reset(self, seed: int | None = None) -> None:
        """Begin new trajectories in all environments with the next step; ``seed`` as at the beginning."""
        self.cut()
        if seed is not None:
            self.set_seed(seed)

    def set_seed(self, seed: int) -> int:
        """Seed the environments' next reset; the first seed that is not used so."""
        self._seed = _whole("seed", seed, 0)
        return seed + self.envs.count

    def sync(self, pause_s: float = 0.0) -> None:
        """Make everything durable that was collected, the open episodes included."""
        if self._writer is not None:
            began = time.monotonic()
            self._writer.sync()
            self._next_sync = time.monotonic() + max(pause_s, SYNC_SHARE * (time.monotonic() - began))

    def close(self) -> None:
        """Cut what is under way, commit, and close what was opened here. May be called twice."""
        if self._writer is not None and self._open.any():
            self.cut()
        self._closing.close()
        self._writer = None

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------------------- state
    def update_policy_weights(self, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Give the behaviour other weights. None: they are shared with their owner, there is nothing to do."""
        if weights is not None:
            if not hasattr(self.behaviour, "load_weights"):
                raise InvalidInput(f"{self.behaviour.name} takes no weights", hint="learners and torch modules do")
            self.behaviour.load_weights(weights)

    def state_dict(self) -> dict[str, Any]:
        """The state to continue from, as JSON: counts, generator, explorer. Trajectories under way start over."""
        inner = getattr(self.behaviour, "state_dict", None)
        return {
            "frames": self.frames,
            "batches": self.batches,
            "trajectories": self.trajectories,
            "generator": self._rng.bit_generator.state,
            "behaviour": {} if inner is None or isinstance(self.behaviour, FunctionBehaviour) else inner(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. The environments are reset with seeds that its generator gives."""
        self.cut()
        self.frames, self.batches, self.trajectories = (int(state[name]) for name in ("frames", "batches", "trajectories"))
        self._rng.bit_generator.state = state["generator"]
        if hasattr(self.behaviour, "load_state_dict"):
            self.behaviour.load_state_dict(state["behaviour"])
        self._seed = int(self._rng.integers(2**31))


def collect(env: Any, policy: Any = None, *, steps: int, into: EpisodeStore | str | os.PathLike[str], **options: Any) -> EpisodeStore:
    """Collect a number of steps into a store, and return it; trajectories under way at the end are truncated.

    Args:
        env, policy, into: see `Collector`, whose further arguments ``options`` are (envs, explorer, seed, limit, deterministic, ...).

    Raises as `Collector` does, and `EnvironmentFailed` with everything up to there kept.
    """
    _whole("steps", steps, 1)
    with Collector(env, policy, into=into, **options) as collector:
        collector.run(steps)
    return into if isinstance(into, EpisodeStore) else EpisodeStore.open(into)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInput(f"{name} is {value!r}", hint=f"give a whole number from {least}")
    return int(value)


__all__ = ["Collector", "collect"]
