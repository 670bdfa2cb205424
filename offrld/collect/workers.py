"""Collectors over several processes: in step with each other (`MultiSyncCollector`), or each at its own pace (`MultiAsyncCollector`).

Processes are spawned, never forked; what acts and what is acted in is made there. Batches come back over a pipe as plain arrays. One store
has one writer: the main process puts the steps of all workers into it, each environment's as episodes of its own.
"""

from __future__ import annotations

import abc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

import numpy as np

from offrl.errors import InvalidInput, WorkerFailed, from_wire
from offrl_store import EpisodeStore, Writer
from offrld.collect.batches import ABSENT, CollectedBatch, complete_trajectories, concatenate, split_trajectories
from offrld.collect.environments import Environments
from offrld.collect.into import SYNC_SHARE, open_writer
from offrld.collect.spaces import schema_of_spaces
from offrld.collect.trained_behaviours import LearnerBehaviour, as_behaviour, is_learner
from offrld.collect.transport import pack, unpack
from offrld.collect.worker_process import from_arrays, serve

ENDS_S = 5.0  # for a worker to end after the command to


class _Workers(abc.ABC):
    """What both kinds share: the processes, the numbers of trajectories, the store."""

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
            create_env_fn: an id or a function that a new process finds by its name (no lambda); or a list, one for each worker.
            num_workers: how many, where it is not a list.
            policy: see `Collector`; a learner is sent as a checkpoint. Or
            policy_factory: makes it, in each worker.
            frames_per_batch, total_frames, seed, split_trajs, trajs_per_batch, postproc, into, limit, sync_s: see `Collector`, over all
                workers. The environment i of all is first reset with ``seed + i``.
            update_at_each_batch: send the weights of ``policy`` to the workers before each batch.
            timeout_s: a worker that says nothing for so long has failed.
            options: further arguments of each worker's `Collector`; ``init_random_frames`` is shared out among the workers.

        Raises:
            InvalidInput: what cannot be sent to a new process, or what a worker's collector refuses.
            WorkerFailed: a worker has ended while it was started.
        """
        several = isinstance(create_env_fn, Sequence) and not isinstance(create_env_fn, str)
        makers = list(create_env_fn) if several else [create_env_fn] * (num_workers or 1)
        if not makers or (several and num_workers not in (None, len(makers))):
            raise InvalidInput(f"num_workers is {num_workers} for {len(makers)} environments", hint="give one for each worker")
        if num_workers is not None and num_workers < 1:
            raise InvalidInput(f"num_workers is {num_workers!r}", hint="give a whole number from 1")
        if frames_per_batch < len(makers):
            raise InvalidInput(f"frames_per_batch {frames_per_batch} for {len(makers)} workers", hint="give each at least one step")
        self.frames_per_batch, self.total_frames, self.num_workers = frames_per_batch, total_frames, len(makers)
        self.frames = self.trajectories = self.batches = 0
        self._split, self._trajs, self._postproc, self._each = split_trajs, trajs_per_batch, postproc, update_at_each_batch
        self._timeout_s, self._policy = timeout_s, policy
        self._numbers: list[dict[int, int]] = [{} for _ in makers]  # a worker's number of a trajectory -> that of all
        self._under_way: dict[int, int] = {}  # environment of all -> its trajectory, while it is in the store
        self._closing = ExitStack()
        self._failed: set[int] = set()
        try:
            self._width = int(options.get("envs", 1))  # environments of one worker
            self._writer, self._sync_s = None, sync_s
            self._next_sync = time.monotonic() + sync_s
            if into is not None:
                self._writer = self._open(makers[0], policy, into, limit)
            shipped, factory = self._shipped(policy, policy_factory, deterministic)
            options |= {"deterministic": None if factory is not None else deterministic}
            if options.get("init_random_frames"):
                options["init_random_frames"] = -(-options["init_random_frames"] // self.num_workers)
            self._start(makers, shipped, factory, seed, options)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------------------- starting
    def _open(self, maker: Any, policy: Any, into: Any, limit: int | None) -> Writer:
        opened = Environments(maker)  # one to look at its spaces
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

    def _start(self, makers: list[Any], policy: Any, factory: Any, seed: int, options: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.RawValue("b", 0)
        self._processes, self._pipes = [], []
        for number, maker in enumerate(makers):
            mine, theirs = context.Pipe()
            arguments = (theirs, self._stop, maker, policy, factory, {**options, "seed": seed + number * self._width})
            process = context.Process(target=serve, args=arguments, name=f"collector {number}", daemon=True)
            try:
                process.start()
            except Exception as error:  # whatever pickling says: it is about what was given
                mine.close()
                theirs.close()
                raise InvalidInput(
                    f"environment or policy cannot be sent to a new process: {error}",
                    hint="name a function of a module, or give policy_factory",
                ) from None
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)
        for number in range(len(makers)):
            self._width = self._receive(number)[0]["envs"]

    # -------------------------------------------------------------------------------------------------------------- talking
    def _send(self, number: int, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] = {}) -> None:
        try:
            self._pipes[number].send_bytes(pack(message, arrays))
        except OSError:
            self._receive(number)  # raises, with what it has said before its end
            raise

    def _receive(self, number: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        pipe = self._pipes[number]
        try:
            if not pipe.poll(self._timeout_s):
                raise self._failure(number, f"has said nothing for {self._timeout_s:g} s")
            message, arrays = unpack(bytearray(pipe.recv_bytes()))  # so that the arrays can be written to
        except (EOFError, ConnectionResetError):
            self._processes[number].join(ENDS_S)
            raise self._failure(number, f"has ended: {_ending(self._processes[number].exitcode)}") from None
        if "error" in message:
            error = message["error"]
            self._failure(number, "")
            raise from_wire(error["code"], f"worker {number}: {error['message']}", error["hint"])
        return message, arrays

    def _failure(self, number: int, what: str) -> WorkerFailed:
        """A worker is lost: what is under way is truncated in the store, and kept."""
        self._failed.add(number)
        self._cut()
        return WorkerFailed(f"worker {number} of {self.num_workers} {what}", hint="its steps up to the last batch are kept")

    def _first_of(self, numbers: set[int]) -> int:
        """The first of these workers that has something to say."""
        ready = wait([self._pipes[number] for number in sorted(numbers)], self._timeout_s)
        if not ready:
            number = min(numbers)
            raise self._failure(number, f"has said nothing for {self._timeout_s:g} s")
        return self._pipes.index(ready[0])

    def _take(self, number: int) -> CollectedBatch:
        """A worker's batch, with the trajectories numbered over all workers; its steps go into the store."""
        message, arrays = self._receive(number)
        numbers = self._numbers[number]
        ids = arrays["traj_ids"]
        for local in dict.fromkeys(ids.T.ravel().tolist()):  # in the order of their begin
            if local != ABSENT and local not in numbers:
                numbers[local] = self.trajectories
                self.trajectories += 1
        batch = from_arrays(
            {**arrays, "traj_ids": np.array([numbers.get(each, ABSENT) for each in ids.ravel().tolist()], np.int64).reshape(ids.shape)}
        )
        ends = {numbers[local]: metadata for local, metadata in message["ends"]}
        self.frames += batch.frames
        if self._writer is not None:
            self._put(number, batch, ends)
        for local, _ in message["ends"]:
            del numbers[local]
        return batch

    # ------------------------------------------------------------------------------------------------------------ the store
    def _put(self, number: int, batch: CollectedBatch, ends: Mapping[int, Mapping[str, Any]]) -> None:
        """Steps of a worker into the store, each environment's in their order."""
        several = batch.reward.ndim == 2
        for row in range(self._width if several else 1):
            one = batch.map(lambda array: array[row]) if several else batch  # noqa: B023  used at once
            self._put_one(number * self._width + row, one, ends)
        if time.monotonic() >= self._next_sync:
            began = time.monotonic()
            self._writer.sync()
            self._next_sync = time.monotonic() + max(self._sync_s, SYNC_SHARE * (time.monotonic() - began))

    def _put_one(self, env: int, batch: CollectedBatch, ends: Mapping[int, Mapping[str, Any]]) -> None:
        writer = self._writer
        rewards, ids = batch.reward.tolist(), batch.traj_ids.tolist()
        for t in np.flatnonzero(batch.mask).tolist():
            if self._under_way.get(env) != ids[t]:
                writer.begin(_at(batch.observation, t), env)
                self._under_way[env] = ids[t]
            writer.step(batch.action[t], rewards[t], _at(batch.next_observation, t), env=env)
            if batch.done[t]:
                writer.end(bool(batch.terminated[t]), env=env, metadata=ends.get(ids[t]))
                del self._under_way[env]

    def _cut(self) -> None:
        if self._writer is not None:
            for env in list(self._under_way):
                self._writer.end(env=env)
            self._under_way.clear()
            self._writer.commit()

    # ------------------------------------------------------------------------------------------------------------- using it
    def __iter__(self) -> Iterator[Any]:
        """Batches, until ``total_frames`` are collected."""
        batches = self._batches()
        if self._trajs is not None:
            batches = complete_trajectories(batches, self._trajs)
        for batch in batches:
            self.batches += 1
            batch = split_trajectories(batch) if self._split else batch
            yield batch if self._postproc is None else self._postproc(batch)

    @abc.abstractmethod
    def _batches(self) -> Iterator[CollectedBatch]:
        """Batches as they were collected, until ``total_frames`` are."""

    def _settle(self) -> None:  # noqa: B027  workers in step have given everything
        """Take what the workers were asked for and have not given."""

    def update_policy_weights(self, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Send weights to the workers, where they count from the next batch on.

        Args:
            weights: name -> array; None: those that the collector's ``policy`` (a learner, a torch module) has now.
        """
        if weights is None:
            behaviour = as_behaviour(self._policy)
            if not hasattr(behaviour, "weights"):
                raise InvalidInput(f"{behaviour.name} has no weights to send", hint="give them: name -> array")
            weights = behaviour.weights()
        for number in range(self.num_workers):
            self._send(number, {"do": "weights"}, weights)

    def set_seed(self, seed: int) -> int:
        """Begin new trajectories everywhere, the environment i of all seeded with ``seed + i``; the first seed that is not used so."""
        for number in range(self.num_workers):
            self._send(number, {"do": "reset", "seed": seed + number * self._width})
        return seed + self.num_workers * self._width

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on later, as JSON holds it: see `Collector.state_dict`. Batches that are under way are given first."""
        self._settle()
        for number in range(self.num_workers):
            self._send(number, {"do": "state"})
        workers = [self._receive(number)[0]["state"] for number in range(self.num_workers)]
        return {"frames": self.frames, "batches": self.batches, "trajectories": self.trajectories, "workers": workers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of as many workers. Trajectories under way are cut; `InvalidInput` for another number of workers."""
        if len(state["workers"]) != self.num_workers:
            raise InvalidInput(f"the state is of {len(state['workers'])} workers, here are {self.num_workers}", hint="start as many")
        self._settle()
        self._cut()
        for number, each in enumerate(state["workers"]):
            self._send(number, {"do": "load_state", "state": each})
            self._numbers[number].clear()
        self.frames, self.batches, self.trajectories = (int(state[name]) for name in ("frames", "batches", "trajectories"))

    def close(self) -> None:
        """End the workers, commit what is in the store. May be called twice."""
        processes, pipes = getattr(self, "_processes", []), getattr(self, "_pipes", [])
        self._processes, self._pipes = [], []
        if hasattr(self, "_stop"):
            self._stop.value = 1
        for pipe in pipes:
            try:
                pipe.send_bytes(pack({"do": "stop"}, {}))
            except OSError:
                continue  # it has ended already
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(ENDS_S)
            if process.is_alive():
                process.terminate()
                process.join(ENDS_S)
            if process.is_alive():
                process.kill()
                process.join()
        if getattr(self, "_writer", None) is not None:
            self._cut()
            self._writer = None
        self._closing.close()

    shutdown = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class MultiSyncCollector(_Workers):
    """Every batch has the steps of all workers, made with the same weights; while the learner trains, they wait.

    Each worker makes its share of ``frames_per_batch``: one more for the first ones where it does not divide.

    Args (beside those of all):
        preemptive_threshold: once this share of the workers (0 to 1) has its part, the others stop early: the missing frames are
            absent (``traj_ids`` -1, ``mask`` false).
        cat_results: ``time`` joins the parts along time: ``[T]``, or ``[N, T]`` of N environments a worker; ``stack`` gives
            ``[workers, ...]``, where all parts have the same size.
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
            raise InvalidInput(f"preemptive_threshold is {preemptive_threshold!r}", hint="give a share of the workers, above 0 and up to 1")
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
            if self._each:
                self.update_policy_weights()
            yield self.rollout()

    def rollout(self) -> CollectedBatch:
        """The next batch as it was collected."""
        self._stop.value = 0
        for number in range(self.num_workers):
            self._send(number, {"do": "collect", "frames": self._shares[number]})
        left = set(range(self.num_workers))
        found: dict[int, CollectedBatch] = {}
        enough = self.num_workers if self._threshold is None else max(1, int(np.ceil(self._threshold * self.num_workers)))
        while left:
            number = self._first_of(left)
            found[number] = self._take(number)
            left.discard(number)
            if len(found) >= enough:
                self._stop.value = 1
        parts = [found[number] for number in range(self.num_workers)]
        if not self._stack:
            return concatenate(parts, parts[0].reward.ndim - 1)
        return concatenate([part.map(lambda array: array[None]) for part in parts], 0)


class MultiAsyncCollector(_Workers):
    """Every batch is one worker's, ``frames_per_batch`` steps, in the order in which they are done; a worker goes on as soon as its batch
    is taken, so that its weights may be older than the newest."""

    def __init__(self, create_env_fn: Any, policy: Any = None, **options: Any) -> None:
        self._asked = False
        self._ready: list[CollectedBatch] = []  # taken before they were asked for
        super().__init__(create_env_fn, policy, **options)

    def _batches(self) -> Iterator[CollectedBatch]:
        while self._ready or self.total_frames == -1 or self.frames < self.total_frames:
            yield self.rollout()

    def _settle(self) -> None:
        if self._asked:
            self._ready += [self._take(number) for number in range(self.num_workers)]
            self._asked = False

    def rollout(self) -> CollectedBatch:
        """The next batch of any worker."""
        if self._ready:
            return self._ready.pop(0)
        if self._each:
            self.update_policy_weights()
        if not self._asked:
            self._asked = True
            for number in range(self.num_workers):
                self._send(number, {"do": "collect", "frames": self.frames_per_batch})
        number = self._first_of(set(range(self.num_workers)))
        batch = self._take(number)
        self._send(number, {"do": "collect", "frames": self.frames_per_batch})
        return batch


class AsyncCollector(MultiAsyncCollector):
    """One worker that collects while the learner trains."""

    def __init__(self, create_env_fn: Any, policy: Any = None, **options: Any) -> None:
        super().__init__(create_env_fn, policy, num_workers=1, **options)


def _at(fields: Any, t: int) -> Any:
    return {name: array[t] for name, array in fields.items()} if isinstance(fields, dict) else fields[t]


def _ending(status: int | None) -> str:
    if status is None:
        return "it has closed its pipe and does not end"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


__all__ = ["AsyncCollector", "MultiAsyncCollector", "MultiSyncCollector"]
