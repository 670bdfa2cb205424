"""The collector: steps of a behaviour in one environment or several, as batches of a fixed size, into a store, or both.

The environment is not reset between batches. Steps go into a store one by one; every few seconds the open episodes are made durable too, so
that a crash loses only the last seconds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, Snapshot, Writer
from offrld.collect.batches import CollectedBatch, Rows, complete_trajectories, split_trajectories
from offrld.collect.behaviours import Behaviour, Copies, FunctionBehaviour
from offrld.collect.environments import Environments
from offrld.collect.explorers import Explorer, Exploring
from offrld.collect.into import open_writer
from offrld.collect.single import SingleStepper
from offrld.collect.spaces import schema_of_spaces
from offrld.collect.stepper import Stepper
from offrld.collect.trained_behaviours import as_behaviour
from offrld.collect.vector import VectorStepper
from offrld.collect.watch import StepWatch


class Collector:
    """Collects steps, which its `Stepper` makes.

        with Collector("CartPole-v1", "policy.onnx", frames_per_batch=200, total_frames=10_000, into=store) as collector:
            for batch in collector: ...

    Attributes:
        envs: the environments.
        behaviour: acts in them.
        stepper: makes the steps.
        batches: batches collected so far.
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
            policy: acts; see `as_behaviour`. None: uniform actions.
            frames_per_batch: steps in each batch, of all environments together; default: about 1,000.
            total_frames: steps over the collector's life, rounded up to whole batches; -1: no limit.
            envs: number of environments; ``vectorization``: ``sync`` or ``async`` (a process each).
            seed: environment i is first reset with ``seed + i``; the behaviour draws from a generator of ``seed``.
            deterministic: greedy actions of learners and models.
            explorer: mixes random actions or noise into the policy's.
            init_random_frames: number of uniform actions at the start.
            max_frames_per_traj: steps after which a trajectory is cut (truncated) and its environment reset.
            reset_at_each_iter: reset all environments before each batch; the episodes under way are truncated.
            split_trajs: cut batches into trajectories, ``[pieces, longest, ...]`` with a mask.
            trajs_per_batch: number of complete trajectories in each batch, padded likewise, instead of a number of steps.
            postproc: applied to each batch.
            into: receives the steps as they are made: a store, its path (created if it does not exist), or a writer.
            limit: transitions that a new store holds; beyond them it drops its oldest episodes.
            sync_s: seconds between two moments from which on open episodes outlive a crash.
            note: goes into the metadata of every episode in the store.
            keep: snapshots of the store that somebody uses: a bounded one evicts nothing of them (``writer.keep`` changes them).
            step_timeout_s: a step or reset that takes longer is an `EnvironmentFailed`.
            given_up: called where even that does not end it, see `StepWatch`.

        Raises:
            Unknown, InvalidInput: environment or policy does not exist, their spaces do not fit each other or the store, or a number is
                out of range.
        """
        self._closing = ExitStack()
        try:
            self.envs = Environments(env, envs, vectorization)
            self._closing.callback(self.envs.close)
            self._check(frames_per_batch, total_frames, init_random_frames, trajs_per_batch, split_trajs)
            self._reset_each, self._split, self._postproc = reset_at_each_iter, split_trajs, postproc
            longest = (1 << 62) if max_frames_per_traj is None else _whole("max_frames_per_traj", max_frames_per_traj, 1)
            acting = self._acting(policy, deterministic)
            self.behaviour: Any = Exploring(acting, explorer, init_random_frames or 0) if explorer or init_random_frames else acting
            self.schema = schema_of_spaces(
                self.envs.observation_space, self.envs.action_space, self.envs.env_id, policy=self.behaviour.name
            )
            self.batches = 0
            _whole("seed", seed, 0)
            writer = None if into is None else open_writer(into, self.schema, limit, self.envs.name, self._closing, note, keep)
            if step_timeout_s is not None:
                watch = StepWatch(step_timeout_s, given_up)
                self.envs.limit(watch)
                self._closing.enter_context(watch)
            kind: type[Stepper] = SingleStepper if self.envs.vector is None else VectorStepper
            self.stepper = kind(self.envs, self.behaviour, writer, seed=seed, longest=longest, sync_s=sync_s, note=note or {})
        except BaseException:
            self._closing.close()
            raise

    def _acting(self, policy: Any, deterministic: bool | None) -> Behaviour | Copies:
        """The behaviour of a policy, checked against the environments; in several, one copy for each if it acts on one observation."""
        behaviour = as_behaviour(policy, deterministic=deterministic)
        if hasattr(behaviour, "check"):
            behaviour.check(self.envs, self.envs.name)
        return behaviour if self.envs.vector is None or hasattr(behaviour, "act_batch") else Copies(behaviour)

    def _check(self, per_batch: int | None, total: int, random: int | None, trajs: int | None, split: bool) -> None:
        """Check the numbers."""
        n = self.envs.count
        per_batch = max(1, 1000 // n) * n if per_batch is None else _whole("frames_per_batch", per_batch, 1)
        self.frames_per_batch = per_batch
        if per_batch % n:
            below, above = per_batch // n * n, -(-per_batch // n) * n
            raise InvalidInput(
                f"frames_per_batch {per_batch} is not a multiple of the {n} environments", hint=f"pass {below or n} or {above}"
            )
        self.total_frames = total if total == -1 else _whole("total_frames", total, 1)
        if total != -1 and total % per_batch and trajs is None:
            warnings.warn(f"total_frames {total} is rounded up to whole batches of {per_batch}", stacklevel=3)
        _whole("init_random_frames", max(0, random or 0), 0)
        self._trajs = None if trajs is None else _whole("trajs_per_batch", trajs, 1)
        if trajs is not None and split:
            raise InvalidInput("trajs_per_batch already returns split trajectories", hint="leave split_trajs out")

    @property
    def frames(self) -> int:
        """Steps collected so far, over the collector's life."""
        return self.stepper.frames

    @frames.setter
    def frames(self, frames: int) -> None:
        self.stepper.frames = frames

    @property
    def trajectories(self) -> int:
        """Trajectories started so far."""
        return self.stepper.trajectories

    @property
    def writer(self) -> Writer | None:
        """Of the store that takes the steps; None without a store."""
        return self.stepper.writer

    @property
    def store_writer(self) -> Writer:
        """The writer; raises `InvalidInput` without a store."""
        if self.stepper.writer is None:
            raise InvalidInput("there is no store to collect into", hint="pass into=, or ask for batches")
        return self.stepper.writer

    @property
    def store(self) -> EpisodeStore | None:
        """The store that takes the steps, as its writer has it: it holds what was committed."""
        return None if self.writer is None else self.writer.store

    # ----------------------------------------------------------------------------------------------------------- collecting
    def __iter__(self) -> Iterator[Any]:
        """Yield batches until ``total_frames`` are collected."""
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
        rows = Rows(shape, self.stepper.fields, self.schema.action)
        self._collect(frames, rows)
        self.batches += 1
        return rows.batch()

    def run(self, frames: int) -> None:
        """Collect exactly this many steps into the store only. With several environments the last step counts for some of them."""
        _ = self.store_writer  # raises without a store
        self._collect(frames, None)

    def _collect(self, frames: int, rows: Rows | None) -> None:
        try:
            self.stepper.steps(frames, rows)
        except BaseException:
            self.cut()
            raise

    # --------------------------------------------------------------------------------------------------------------- ending
    def cut(self) -> None:
        """End the episodes under way as truncated; the next step starts with a reset."""
        self.stepper.cut()

    def discard(self) -> None:
        """Drop the episodes under way, whose steps no longer count; whole episodes are kept."""
        self.stepper.discard()

    def reset(self, seed: int | None = None) -> None:
        """Start new trajectories in all environments with the next step; ``seed``: as at creation."""
        self.cut()
        if seed is not None:
            self.set_seed(seed)

    def set_seed(self, seed: int) -> int:
        """Seed the environments' next reset; returns the first seed that it leaves unused."""
        self.stepper.seed = _whole("seed", seed, 0)
        return seed + self.envs.count

    def sync(self) -> None:
        """Make all collected steps durable, those of open episodes included."""
        self.stepper.sync()

    def close(self) -> None:
        """End the episodes under way, commit, and close all that the collector opened. May be called twice."""
        self.stepper.close()
        self._closing.close()
        self.stepper.writer = None

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------------------- state
    def update_policy_weights(self, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Give the behaviour other weights; None changes nothing, because the behaviour shares its owner's."""
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
            "generator": self.stepper.rng.bit_generator.state,
            "behaviour": {} if inner is None or isinstance(self.behaviour, FunctionBehaviour) else inner(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. Its generator gives the seeds of the environments' next reset."""
        self.cut()
        self.batches = int(state["batches"])
        stepper = self.stepper
        stepper.frames, stepper.trajectories = int(state["frames"]), int(state["trajectories"])
        stepper.rng.bit_generator.state = state["generator"]
        if hasattr(self.behaviour, "load_state_dict"):
            self.behaviour.load_state_dict(state["behaviour"])
        stepper.seed = int(stepper.rng.integers(2**31))


def collect(env: Any, policy: Any = None, *, steps: int, into: EpisodeStore | str | os.PathLike[str], **options: Any) -> EpisodeStore:
    """Collect a number of steps into a store and return it. Trajectories under way at the end are truncated.

    Args:
        env, policy, into, options: arguments of `Collector`.

    Raises:
        EnvironmentFailed: the environment failed; the store keeps all steps before.
        Unknown, InvalidInput: see `Collector`.
    """
    _whole("steps", steps, 1)
    with Collector(env, policy, into=into, **options) as collector:
        collector.run(steps)
    return into if isinstance(into, EpisodeStore) else EpisodeStore.open(into)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInput(f"{name} is {value!r}", hint=f"pass a whole number from {least}")
    return int(value)


__all__ = ["Collector", "collect"]
