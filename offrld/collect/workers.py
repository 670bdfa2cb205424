"""Collectors over several processes: in step with each other (`MultiSyncCollector`), or each at its own pace (`MultiAsyncCollector`).

Each worker makes its own environments and policy (`WorkerPool`); batches come back over a pipe as plain arrays. A store has one writer:
the main process adds the steps of all workers (`SharedStore`).
"""

from __future__ import annotations

import abc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, Writer
from offrld.collect.batches import ABSENT, CollectedBatch, complete_trajectories, concatenate, split_trajectories
from offrld.collect.environments import Environments
from offrld.collect.into import open_writer
from offrld.collect.pool import WorkerPool
from offrld.collect.shared_store import SharedStore
from offrld.collect.spaces import schema_of_spaces
from offrld.collect.trained_behaviours import LearnerBehaviour, as_behaviour, is_learner
from offrld.collect.worker_process import from_arrays


class _Workers(abc.ABC):
    """What both kinds share: the pool of processes, the numbers of trajectories, the store."""

    def __init__(
        self,
        create_env_fn: Any,
        policy: Any = None,
        *,
        num_workers: int | None = None,
        policy_factory: Callable[[], Any] | None = None,
        frames_per_batch: int = 1000,
        total_frames: int = -1,
        seed: int = 0,
        deterministic: bool | None = None,
        split_trajs: bool = False,
        trajs_per_batch: int | None = None,
        postproc: Callable[[CollectedBatch], Any] | None = None,
        update_at_each_batch: bool = False,
        into: EpisodeStore | Writer | str | os.PathLike[str] | None = None,
        limit: int | None = None,
        sync_s: float = 2.0,
        timeout_s: float = 600.0,
        **options: Any,
    ) -> None:
        """
        Args:
            create_env_fn: an id, or a function that a new process can import (no lambda); or a list of them, one for each worker.
            num_workers: number of workers; by default the length of the list, or 1.
            policy: see `Collector`; a learner is sent as a checkpoint. Or
            policy_factory: makes the policy in each worker.
            frames_per_batch, total_frames, seed, split_trajs, trajs_per_batch, postproc, into, limit, sync_s: see `Collector`; they count
                all workers together. Environment i of all is first reset with ``seed + i``.
            update_at_each_batch: send the weights of ``policy`` to the workers before each batch.
            timeout_s: a worker that sends nothing for longer has failed.
            options: further arguments of each worker's `Collector`; ``init_random_frames`` is shared out among the workers.

        Raises:
            InvalidInput: something cannot be sent to a new process, or a worker's collector refuses an argument.
            WorkerFailed: a worker ended while it started.
        """
        several = isinstance(create_env_fn, Sequence) and not isinstance(create_env_fn, str)
        makers = list(create_env_fn) if several else [create_env_fn] * (num_workers or 1)
        if not makers or (several and num_workers not in (None, len(makers))):
            raise InvalidInput(f"num_workers is {num_workers} for {len(makers)} environments", hint="pass one for each worker")
        if num_workers is not None and num_workers < 1:
            raise InvalidInput(f"num_workers is {num_workers!r}", hint="pass a whole number from 1")
        if frames_per_batch < len(makers):
            raise InvalidInput(f"frames_per_batch {frames_per_batch} for {len(makers)} workers", hint="give each at least one step")
        self.frames_per_batch, self.total_frames, self.num_workers = frames_per_batch, total_frames, len(makers)
        self.frames = self.trajectories = self.batches = 0
        self._split, self._trajs, self._postproc, self._send_weights = split_trajs, trajs_per_batch, postproc, update_at_each_batch
        self._policy = policy
        self._numbers: list[dict[int, int]] = [{} for _ in makers]  # a worker's number of a trajectory -> that of all
        self._closing = ExitStack()
        self._store: SharedStore | None = None
        self._pool: WorkerPool | None = None
        try:
            if into is not None:
                self._store = SharedStore(self._open(makers[0], policy, into, limit), sync_s)
            shipped, factory = self._shipped(policy, policy_factory, deterministic)
            options |= {"deterministic": None if factory is not None else deterministic}
            if options.get("init_random_frames"):
                options["init_random_frames"] = -(-options["init_random_frames"] // self.num_workers)
            self._pool = WorkerPool(
                makers, shipped, factory, options, seed=seed, envs=int(options.get("envs", 1)), timeout_s=timeout_s, lost=self._cut
            )
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------------------- starting
    def _open(self, maker: Any, policy: Any, into: Any, limit: int | None) -> Writer:
        opened = Environments(maker)  # for its spaces
        try:
            name = policy if isinstance(policy, str) else "random" if policy is None else type(policy).__name__
            schema = schema_of_spaces(opened.observation_space, opened.action_space, opened.env_id, policy=name)
            return open_writer(into, schema, limit, opened.name, self._closing)
        finally:
            opened.close()

    def _shipped(self, policy: Any, factory: Any, deterministic: bool | None) -> tuple[Any, Callable[[], Any] | None]:
        """What goes to a new process: the policy, or the function that makes it there."""
        if factory is not None or not (is_learner(policy) and hasattr(policy, "save")):
            return policy, factory
        folder = tempfile.TemporaryDirectory(prefix="offrl-collect-")
        self._closing.callback(folder.cleanup)
        path = Path(folder.name) / "policy.safetensors"
        policy.save(path)
        return None, partial(LearnerBehaviour.load, str(path), deterministic=bool(deterministic))

    @property
    def pool(self) -> WorkerPool:
        """The workers; raises `InvalidInput` once they are closed."""
        if self._pool is None:
            raise InvalidInput("this collector is closed", hint="make another one")
        return self._pool

    # ------------------------------------------------------------------------------------------------------------- batches
    def _take(self, number: int) -> CollectedBatch:
        """Receive a worker's batch, number its trajectories over all workers, and add its steps to the store."""
        message, arrays = self.pool.receive(number)
        numbers = self._numbers[number]
        ids = arrays["traj_ids"]
        for local in dict.fromkeys(ids.T.ravel().tolist()):  # in the order in which they started
            if local != ABSENT and local not in numbers:
                numbers[local] = self.trajectories
                self.trajectories += 1
        traj_ids = np.array([numbers.get(local, ABSENT) for local in ids.ravel().tolist()], np.int64).reshape(ids.shape)
        batch = from_arrays({**arrays, "traj_ids": traj_ids})
        ends = {numbers[local]: metadata for local, metadata in message["ends"]}
        self.frames += batch.frames
        if self._store is not None:
            self._store.put(number * self.pool.width, batch, ends)
        for local, _ in message["ends"]:
            del numbers[local]
        return batch

    def _cut(self) -> None:
        """End the episodes under way in the store as truncated."""
        if self._store is not None:
            self._store.cut()

    # ------------------------------------------------------------------------------------------------------------- using it
    def __iter__(self) -> Iterator[Any]:
        """Yield batches until ``total_frames`` are collected."""
        batches = self._batches()
        if self._trajs is not None:
            batches = complete_trajectories(batches, self._trajs)
        for batch in batches:
            self.batches += 1
            batch = split_trajectories(batch) if self._split else batch
            yield batch if self._postproc is None else self._postproc(batch)

    @abc.abstractmethod
    def _batches(self) -> Iterator[CollectedBatch]:
        """Yield batches as they were collected, until ``total_frames`` are."""

    def _settle(self) -> None:  # noqa: B027  workers in step have no batch under way
        """Receive the batches that workers are collecting."""

    def update_policy_weights(self, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Send weights to the workers, which use them from the next batch on.

        Args:
            weights: name -> array; None: the present ones of the collector's ``policy`` (a learner, a torch module).
        """
        if weights is None:
            behaviour = as_behaviour(self._policy)
            if not hasattr(behaviour, "weights"):
                raise InvalidInput(f"{behaviour.name} has no weights to send", hint="pass weights: name -> array")
            weights = behaviour.weights()
        for number in range(self.num_workers):
            self.pool.send(number, {"do": "weights"}, weights)

    def set_seed(self, seed: int) -> int:
        """Start new trajectories everywhere, environment i of all seeded with ``seed + i``; returns the first unused seed."""
        for number in range(self.num_workers):
            self.pool.send(number, {"do": "reset", "seed": seed + number * self.pool.width})
        return seed + self.num_workers * self.pool.width

    def state_dict(self) -> dict[str, Any]:
        """The state to continue from, as JSON (see `Collector.state_dict`). Batches under way are received first."""
        self._settle()
        for number in range(self.num_workers):
            self.pool.send(number, {"do": "state"})
        workers = [self.pool.receive(number)[0]["state"] for number in range(self.num_workers)]
        return {"frames": self.frames, "batches": self.batches, "trajectories": self.trajectories, "workers": workers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. Trajectories under way are cut. Raises `InvalidInput` for another number of workers."""
        if len(state["workers"]) != self.num_workers:
            raise InvalidInput(f"the state is of {len(state['workers'])} workers, here are {self.num_workers}", hint="start as many")
        self._settle()
        self._cut()
        for number, worker in enumerate(state["workers"]):
            self.pool.send(number, {"do": "load_state", "state": worker})
            self._numbers[number].clear()
        self.frames, self.batches, self.trajectories = (int(state[name]) for name in ("frames", "batches", "trajectories"))

    def close(self) -> None:
        """End the workers and commit the store. May be called twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._cut()
        self._store = None
        self._closing.close()

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class MultiSyncCollector(_Workers):
    """Every batch holds steps of all workers, made with the same weights; the workers wait while the learner trains.

    Each worker makes its share of ``frames_per_batch``; the first ones make one more if it does not divide.

    Further arguments:
        preemptive_threshold: once this share of the workers (0 to 1) has finished its part, the others stop early; their missing
            frames are absent (``traj_ids`` -1, ``mask`` false).
        cat_results: ``time`` joins the parts along time: ``[T]``, or ``[N, T]`` of N environments a worker; ``stack`` gives
            ``[workers, ...]``; all parts then have the same size.
    """

    def __init__(
        self,
        create_env_fn: Any,
        policy: Any = None,
        *,
        preemptive_threshold: float | None = None,
        cat_results: str = "time",
        **options: Any,
    ) -> None:
        if preemptive_threshold is not None and not 0.0 < preemptive_threshold <= 1.0:
            raise InvalidInput(f"preemptive_threshold is {preemptive_threshold!r}", hint="pass a share of the workers, above 0 and up to 1")
        if cat_results not in ("time", "stack"):
            raise InvalidInput(f"cat_results is {cat_results!r}", hint="time or stack")
        super().__init__(create_env_fn, policy, **options)
        share, more = divmod(self.frames_per_batch, self.num_workers)
        if cat_results == "stack" and more:
            self.close()
            raise InvalidInput(
                f"frames_per_batch {self.frames_per_batch} is not a multiple of {self.num_workers} workers",
                hint="join the parts along time, or take a multiple",
            )
        self._shares = [share + (number < more) for number in range(self.num_workers)]
        self._threshold, self._stack = preemptive_threshold, cat_results == "stack"

    def _batches(self) -> Iterator[CollectedBatch]:
        while self.total_frames == -1 or self.frames < self.total_frames:
            if self._send_weights:
                self.update_policy_weights()
            yield self.rollout()

    def rollout(self) -> CollectedBatch:
        """The next batch as it was collected."""
        self.pool.stop.value = 0
        for number in range(self.num_workers):
            self.pool.send(number, {"do": "collect", "frames": self._shares[number]})
        left = set(range(self.num_workers))
        parts: dict[int, CollectedBatch] = {}
        enough = self.num_workers if self._threshold is None else max(1, int(np.ceil(self._threshold * self.num_workers)))
        while left:
            number = self.pool.first_of(left)
            parts[number] = self._take(number)
            left.discard(number)
            if len(parts) >= enough:
                self.pool.stop.value = 1
        batches = [parts[number] for number in range(self.num_workers)]
        if not self._stack:
            return concatenate(batches, batches[0].reward.ndim - 1)
        return concatenate([batch.map(lambda array: array[None]) for batch in batches], 0)


class MultiAsyncCollector(_Workers):
    """Every batch holds ``frames_per_batch`` steps of one worker, and comes as soon as it is finished.

    A worker continues as soon as its batch is received, so its weights may be older than the newest.
    """

    def __init__(self, create_env_fn: Any, policy: Any = None, **options: Any) -> None:
        self._collecting = False
        self._ready: list[CollectedBatch] = []  # received by `_settle`
        super().__init__(create_env_fn, policy, **options)

    def _batches(self) -> Iterator[CollectedBatch]:
        while self._ready or self.total_frames == -1 or self.frames < self.total_frames:
            yield self.rollout()

    def _settle(self) -> None:
        if self._collecting:
            self._ready += [self._take(number) for number in range(self.num_workers)]
            self._collecting = False

    def rollout(self) -> CollectedBatch:
        """The next batch of any worker."""
        if self._ready:
            return self._ready.pop(0)
        if self._send_weights:
            self.update_policy_weights()
        if not self._collecting:
            self._collecting = True
            for number in range(self.num_workers):
                self.pool.send(number, {"do": "collect", "frames": self.frames_per_batch})
        number = self.pool.first_of(set(range(self.num_workers)))
        batch = self._take(number)
        self.pool.send(number, {"do": "collect", "frames": self.frames_per_batch})
        return batch


class AsyncCollector(MultiAsyncCollector):
    """One worker that collects while the learner trains."""

    def __init__(self, create_env_fn: Any, policy: Any = None, **options: Any) -> None:
        super().__init__(create_env_fn, policy, num_workers=1, **options)


__all__ = ["AsyncCollector", "MultiAsyncCollector", "MultiSyncCollector"]
