"""Writing step by step: the part of the Writer that gathers episodes while they are played, in one environment or in many."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store import meta, staging
from offrl_store.disk import disk_errors, sync_files, sync_folder
from offrl_store.errors import InvalidEpisode, InvalidInput
from offrl_store.reader import Snapshot
from offrl_store.schema import Schema
from offrl_store.validate import CheckedEpisode, convert_rows


class StepWriter(ABC):
    """Writes steps with ``begin``, ``step``, ``end`` and ``sync``. `Writer` adds whole episodes, commits and the files.

    An ended episode is durable after the next ``commit``, like an appended one. An open episode survives a crash up to the last ``sync``,
    and the next writer continues it.
    """

    _schema: Schema
    _path: Path
    _pending: list[tuple[int, int, float, int, int]]
    _committed: int

    def __init__(self) -> None:
        self._open: dict[int, staging.OpenEpisode] = {}
        self._ended: list[tuple[int, staging.OpenEpisode]] = []
        self._batch: staging.BatchBlock | None = None

    # --- One step ---------------------------------------------------------------------------------------------------------------

    def begin(self, observation: Any, env: int = 0) -> None:
        """Begin an episode of environment ``env`` with the observation of its reset.

        An open episode of that environment (after an early reset or a crash) ends as truncated. Raises InvalidEpisode.
        """
        self._check_open()
        if isinstance(env, bool) or not isinstance(env, (int, np.integer)) or env < 0:
            raise InvalidInput(f"env {env!r} is not a whole number from 0", hint="number the environments from 0")
        env = int(env)
        episode = staging.OpenEpisode.begun(self._layout, env, observation)
        if env in self._open:
            if self._settled(env).step_count:
                self._finish(env, False)
            else:
                self.discard(env)
        if self._batch is not None and env < self._batch.count:
            self._batch.open[env] = False
        self._open[env] = episode

    def step(
        self,
        action: Any,
        reward: Any,
        observation: Any,
        terminated: bool = False,
        truncated: bool = False,
        env: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a step, with the results of ``gymnasium``'s step: the observation after the action, and flags, either of which ends the
        episode.

        Arrays are copied. Values are checked when up to 1,024 steps are joined, at the end and at a sync. A NaN, or an action outside its
        bounds, then raises InvalidEpisode, and the open episode is dropped, because one of its steps would be missing.
        """
        try:
            episode = self._open[env]
        except KeyError:
            self._check_open()
            raise InvalidInput(f"env {env} has no open episode", hint="call begin(observation) with the observation of its reset") from None
        if self._batch is not None:
            self._settled(env)
        try:
            episode.add(action, reward, observation, extra)
        except InvalidEpisode as error:
            self._drop_broken(episode, error)
            raise
        if terminated or truncated:
            self._finish(env, bool(terminated))

    def end(self, terminated: bool = False, truncated: bool = False, env: int = 0, metadata: Mapping[str, Any] | None = None) -> int:
        """End the open episode of ``env``, as truncated unless ``terminated``. Returns its number.

        metadata: a JSON object to store with it. Raises InvalidEpisode if it has no step.
        """
        self._check_open()
        if env not in self._open:
            raise InvalidInput(f"env {env} has no open episode", hint="it has ended already, or begin(observation) was not called")
        text = meta.checked(metadata)
        return self._finish(env, bool(terminated), text)

    def discard(self, env: int = 0) -> None:
        """Drop the open episode of ``env``, its staged steps included."""
        episode = self._open.pop(env, None)
        if episode is not None:
            if self._batch is not None and env < self._batch.count:
                self._batch.take(env)
                self._batch.open[env] = False
            episode.close(remove=True)

    @property
    def open_episodes(self) -> dict[int, int]:
        """Environment -> steps of its open episode, including those that a crash left to this writer."""
        return {env: self._settled(env).step_count for env in list(self._open)}

    # --- A step of many ---------------------------------------------------------------------------------------------------------

    def step_batch(
        self,
        actions: Any,
        rewards: Any,
        observations: Any,
        terminated: Any,
        truncated: Any,
        final_observations: Any = None,
        extra: Mapping[str, Any] | None = None,
        metadata: Callable[[int], Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Add a step of N environments, numbered 0 to N-1, as ``gymnasium``'s vector environments return it: every array has N rows.

        An environment without an open episode begins one with its observation; its action and reward are ignored. This suits
        ``AutoresetMode.NEXT_STEP``, in which the step after an end is the reset. With ``SAME_STEP`` pass ``final_observations`` (only the
        rows of ending episodes are read); the observation is then that of the reset. Call ``begin`` for the first observations. metadata:
        returns the metadata of an environment's episode that ends with this step.
        """
        self._check_open()
        count = len(rewards)
        batch = self._batch
        if batch is None:
            batch = self._batch = staging.BatchBlock(self._layout, count)
        if count != batch.count:
            raise InvalidInput(
                f"a batch of {count} steps, but earlier batches had {batch.count}",
                hint="use the same number of environments in every batch",
            )
        arrays = self._batch_arrays(actions, rewards, observations, extra, count)
        done = np.logical_or(terminated, truncated)
        if done.shape != (count,):
            raise InvalidInput(f"terminated and truncated have shape {done.shape}; expected ({count},)")
        if batch.filled == batch.capacity:
            self._settle_all()
        now = batch.filled
        for block, array in zip(batch.arrays, arrays, strict=True):
            block[now] = array
        batch.filled = now + 1
        if np.count_nonzero(batch.open) < count:
            for env in np.flatnonzero(~batch.open).tolist():
                if env in self._open:
                    batch.start[env] = now
                else:
                    self.begin(_row(observations, env), env)
                    batch.start[env] = now + 1
                    done[env] = False
                batch.open[env] = True
        if np.count_nonzero(done):
            for env in np.flatnonzero(done).tolist():
                final = None
                if final_observations is not None:
                    final = [values[env] for values in self._layout.values("observation", final_observations)]
                self._settled(env, final)
                self._finish(env, bool(terminated[env]), None if metadata is None else meta.checked(metadata(env)))
                if final is not None:
                    self.begin(_row(observations, env), env)
                    batch.start[env], batch.open[env] = now + 1, True

    def _batch_arrays(self, actions: Any, rewards: Any, observations: Any, extra: Any, count: int) -> list[np.ndarray]:
        rules = self._layout
        values = [*rules.values("observation", observations), *rules.values("action", actions), rewards, *rules.values("extra", extra)]
        arrays = []
        for column, value in zip(rules.columns, values, strict=True):
            field, array = column.field, np.asarray(value)
            if (array.dtype is not field.dtype and array.dtype != field.dtype) or array.shape[1:] != field.shape:
                if column.role == "reward" and array.dtype.kind == "f" and field.dtype.kind == "f":
                    array = array.astype(field.dtype)  # gymnasium always returns float64 rewards
                else:
                    array = convert_rows(value, field, f"a batch of steps, field {column.name}")
            if len(array) != count:
                raise InvalidEpisode(f"a batch of steps, field {column.name} has {len(array)} rows for {count} rewards")
            arrays.append(array)
        return arrays

    def _settled(self, env: int, final: list[Any] | None = None) -> staging.OpenEpisode:
        """Return the open episode of ``env`` after it has taken its rows of the batches."""
        episode = self._open[env]
        if self._batch is not None and env < self._batch.count and self._batch.open[env]:
            rows = self._batch.take(env, final)
            if rows is not None:
                try:
                    episode.put(rows)
                except InvalidEpisode as error:
                    self._drop_broken(episode, error)
                    raise
        return episode

    def _settle_all(self) -> None:
        batch = self._batch
        if batch is not None:
            for env in np.flatnonzero(batch.open).tolist():
                self._settled(env)
            batch.filled = 0
            batch.start = [0] * batch.count

    # --- Ending and syncing -----------------------------------------------------------------------------------------------------

    def _finish(self, env: int, terminated: bool, metadata: str | None = None) -> int:
        episode = self._settled(env)
        if not episode.step_count:
            raise InvalidEpisode(f"env {env}: the episode has no step", hint="an episode has at least one action and reward")
        number = self._committed + len(self._pending)
        try:
            self._put(episode.whole(terminated), episode.where)
        except InvalidEpisode as error:
            self._drop(episode, error)
            raise
        del self._open[env]
        if self._batch is not None and env < self._batch.count:
            self._batch.open[env] = False
        if episode.file >= 0:
            self._ended.append((number, episode))
        else:
            episode.again()
            self._layout.spare.append(episode)
        self._meta.add(number, metadata)
        self._commit_if_due()
        return number

    def _drop_broken(self, episode: staging.OpenEpisode, error: InvalidEpisode) -> None:
        if episode.broken:
            self._drop(episode, error)

    def _drop(self, episode: staging.OpenEpisode, error: InvalidEpisode) -> None:
        self.discard(episode.env)
        error.hint = f"the open episode of env {episode.env} was dropped; {error.hint}".rstrip("; ")

    def sync(self) -> Snapshot:
        """Commit, and make the steps of the open episodes durable, each in a file of its own. Raises DiskFull."""
        snapshot = self.commit()
        self._settle_all()
        with disk_errors(self._path):
            for episode in list(self._open.values()):
                try:
                    episode.flush()
                except InvalidEpisode as error:
                    self._drop_broken(episode, error)
                    raise
            for episode in self._open.values():
                episode.stage()
            sync_files([episode.file for episode in self._open.values() if episode.file >= 0])
            if self._layout.new_names:
                sync_folder(self._layout.folder)
                sync_folder(self._path)
                self._layout.new_names = False
        return snapshot

    def _mark_ended(self) -> None:
        """Write END blocks to the files of ended episodes, before their records."""
        for number, episode in self._ended:
            _, steps, _, flags, data_crc = self._pending[number - self._committed]
            episode.mark_end(number, steps, flags, data_crc)
        sync_files([episode.file for _, episode in self._ended])

    def _forget_ended(self) -> None:
        ended, self._ended = self._ended, []
        for _, episode in ended:
            episode.close(remove=True)

    def _leave_ended(self) -> None:
        """Keep the files of episodes whose rows did not reach the disk, for the next writer."""
        ended, self._ended = self._ended, []
        for _, episode in ended:
            episode.close()

    def _leave_steps(self) -> None:
        self._leave_ended()
        left, self._open, self._batch = self._open, {}, None
        for episode in left.values():
            episode.close()

    def _begin_steps(self) -> None:
        """Recover the open episodes that the previous writer left when it closed or crashed."""
        self._layout = staging.Layout(self._schema, layout.chain_start(self._schema), self._path / staging.FOLDER)
        self._open, self._ended = {}, []
        log = self._found
        for path in staging.files(self._path):
            self._layout.number = max(self._layout.number, int(path.name.split(".")[1]))
            episode, ended, _ = staging.load(self._layout, path)
            if ended is not None and ended.number < log.base:
                episode = None  # an episode of the store that was evicted since; the previous writer handled unrecorded ones
            elif ended is not None and ended.number < log.count:
                record = log.table[ended.number - log.base]
                if (record["steps"], record["flags"], record["data_crc"]) == (ended.steps, ended.flags, ended.data_crc):
                    episode = None  # its record was written, so it is an episode of the store
            if episode is None:
                path.unlink()
                continue
            episode.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.ftruncate(episode.file, episode.file_end())
            if episode.env in self._open:
                self._finish(episode.env, False)  # the older of two is complete: it ended before the newer one began
            self._open[episode.env] = episode
            if ended is not None and ended.steps == episode.steps:
                self._finish(episode.env, bool(ended.flags & layout.TERMINATED))

    # Defined by Writer.
    _found: layout.Log
    _layout: staging.Layout
    _meta: meta.MetaWriter

    @abstractmethod
    def _check_open(self) -> None: ...

    @abstractmethod
    def _commit_if_due(self) -> None: ...

    @abstractmethod
    def _put(self, checked: CheckedEpisode, where: str) -> None: ...

    @abstractmethod
    def commit(self) -> Snapshot: ...


def _row(values: Any, env: int) -> Any:
    return {key: rows[env] for key, rows in values.items()} if isinstance(values, Mapping) else values[env]
