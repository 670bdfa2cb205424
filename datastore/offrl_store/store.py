"""EpisodeStore: a folder of memory-mapped columns and the log of its episodes, for reading; snapshots pin what a job saw."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from offrl_store import eviction
from offrl_store import format as layout
from offrl_store.disk import disk_errors, publish, sync_folder, write_synced
from offrl_store.errors import InvalidInput, SnapshotEvicted, StoreCorrupt, StoreExists, StoreNotFound
from offrl_store.meta import MetaReader
from offrl_store.mixing import select
from offrl_store.prioritized import PrioritizedSampler
from offrl_store.sampler import TransitionSampler
from offrl_store.schema import Column, Episode, Schema
from offrl_store.stats import stats as compute_stats
from offrl_store.transitions import TransitionList, transition_rows
from offrl_store.windows import WindowSampler
from offrl_store.writer import Writer


@dataclass(frozen=True)
class Snapshot:
    """A moment of a store: its first episode, how many there were, and the hash chain over their records. ``str`` and ``parse`` invert."""

    first: int
    count: int
    chain: str

    def __str__(self) -> str:
        return f"{self.first}:{self.count}:{self.chain}"

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Raises InvalidInput for anything but FIRST:COUNT:CHAINHEX."""
        parts = str(text).split(":")
        try:
            first, count, chain = int(parts[0]), int(parts[1]), bytes.fromhex(parts[2]).hex()
            if len(parts) != 3 or len(chain) != 32 or first < 0 or count < 0:
                raise ValueError
        except (ValueError, IndexError) as error:
            raise InvalidInput(f"{text!r} is no snapshot", hint="a snapshot reads FIRST:COUNT:CHAINHEX") from error
        return cls(first, count, chain)


class EpisodeStore:
    """Whole episodes on disk, read through memory maps. Opening costs the episodes, never the rows.

    Any number of readers may have a store open while one writer appends; a reader sees the episodes of its last ``refresh``.
    """

    def __init__(self, path: Path, schema: Schema, pinned: Snapshot | None, limit: Mapping[str, int] | None = None) -> None:
        """Use ``create`` or ``open``."""
        self.path, self.schema, self.limit = path, schema, dict(limit or {})
        self._pinned = pinned
        self._first = 0
        self._columns: dict[str, np.ndarray] = {}
        self._log = self._read(None)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], schema: Schema, *, limit_transitions: int | None = None, limit_bytes: int | None = None
    ) -> EpisodeStore:
        """Make an empty store. ``path`` must not exist or be an empty folder: StoreExists. It appears whole or not at all.

        With a limit it is bounded, first in, first out: a commit that makes it larger gives the oldest episodes back to the file system
        (never the newest one).
        """
        limit = eviction.checked_limit(limit_transitions, limit_bytes)
        path = Path(os.path.abspath(path))
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise StoreExists(f"{path} exists already", hint="choose another path, or open the store that is there")
        temporary = path.parent / f".{path.name}.creating-{secrets.token_hex(4)}"
        with disk_errors(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                (temporary / layout.COLUMN_FOLDER).mkdir(parents=True)
                for column in schema.columns:
                    layout.column_path(temporary, column.name).touch()
                for name, content in ((layout.LOG_FILE, layout.dump_header()), (layout.SCHEMA_FILE, layout.dump_schema(schema, limit))):
                    write_synced(temporary / name, content, new=True)
                sync_folder(temporary / layout.COLUMN_FOLDER)
                sync_folder(temporary)
                try:
                    publish(temporary, path)
                except FileExistsError as error:
                    raise StoreExists(f"{path} exists already", hint="another process created it just now") from error
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return cls(path, schema, None, limit)

    @classmethod
    def open(cls, path: str | os.PathLike[str], snapshot: Snapshot | str | None = None) -> EpisodeStore:
        """Open a store for reading (``writer()`` adds to it). With a snapshot it stays at exactly those episodes.

        Raises StoreNotFound, StoreCorrupt (damaged or cut files, a snapshot of another store), SnapshotEvicted.
        """
        path = Path(os.path.abspath(path))
        pinned = Snapshot.parse(snapshot) if isinstance(snapshot, str) else snapshot
        try:
            with disk_errors(path, "read"):
                schema, limit = layout.load_schema(path)
                return cls(path, schema, pinned, limit)
        except IsADirectoryError as error:
            raise StoreCorrupt(f"{error.filename or path / layout.LOG_FILE} is a folder", hint="restore the file from a copy") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return EpisodeStore.open, (str(self.path), self._pinned)

    # --- Reading the log --------------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Take in what was committed since; returns how many episodes came (0 for a store opened at a snapshot).

        A bounded store may have lost its oldest episodes as well: ``first`` says how many. Raises StoreCorrupt, and SnapshotEvicted where
        episodes of the snapshot are gone.
        """
        if self._pinned is not None:
            self.check_alive()
            return 0
        before = self._log
        self._log = self._read(before)
        return self._log.count - before.count

    def _read(self, known: layout.Log | None) -> layout.Log:
        """The log as it is now, ``known`` being what was read of it before; maps the columns to fit it."""
        file = self.path / layout.LOG_FILE
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                log = layout.read_log(descriptor, file, self.schema, known)
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            if not self.path.is_dir():
                raise StoreNotFound(f"there is no episode store at {self.path}") from error
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error
        first = log.first
        if self._pinned is not None:
            pin, first = self._pinned, self._pinned.first
            checkable = pin.count == 0 or log.base < pin.count <= log.count
            if pin.count > log.count or first > pin.count or (checkable and log.chain(pin.count).hex() != pin.chain):
                raise StoreCorrupt(
                    f"snapshot {pin} is not of the store at {self.path}, which holds {log.count} episodes",
                    hint="the dataset was replaced since; submit the job again to use the new one",
                )
            if first < log.first:
                raise self._evicted(first, log.first)
            log = replace(log, table=log.table[: pin.count - log.base])
        if known is None or log.count != known.count:
            self._columns = {column.name: self._map(column, log.rows) for column in self.schema.columns}
        else:
            for column in self.schema.columns:
                self._check_size(layout.column_path(self.path, column.name), column, log.rows)
        log.table.setflags(write=False)
        self._first = first
        return log

    # --- Bounded stores ---------------------------------------------------------------------------------------------------------

    @property
    def first(self) -> int:
        """How many episodes came before the oldest one that this reader sees: 0 but in a bounded store."""
        return self._first

    def check_alive(self, first: int | None = None) -> None:
        """Raise SnapshotEvicted if the episode numbered ``first`` since the store began (default: the oldest this reader sees) is gone.

        To be called after rows were read: what was read before is right if this returns. Free of cost in a store without a limit, one
        read of 64 bytes otherwise. A sampler gives the ``first`` of when it was made.
        """
        if self.limit:
            if self._guard is None:
                self._guard = eviction.Guard(self.path / layout.LOG_FILE)
            kept, first = self._guard.first(), self._first if first is None else first
            if kept > first:
                raise self._evicted(first, kept)

    _guard: eviction.Guard | None = None

    def _evicted(self, first: int, kept: int) -> SnapshotEvicted:
        return SnapshotEvicted(
            f"episodes {first} to {kept - 1} of {self.path} were evicted to keep its limit",
            hint="refresh and sample anew, or have the writer keep the snapshot: store.writer(keep=[snapshot])",
        )

    def _check_size(self, file: Path, column: Column, rows: int) -> None:
        try:
            size = os.stat(file).st_size
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error
        if size < rows * column.field.row_bytes:
            raise StoreCorrupt(
                f"{file} is cut: {size} bytes, {rows * column.field.row_bytes} are needed for {rows} rows",
                hint="restore the file from a copy",
            )

    def _map(self, column: Column, rows: int) -> np.ndarray:
        """The first ``rows`` rows of a column as a read-only array over a memory map."""
        file, field = layout.column_path(self.path, column.name), column.field
        self._check_size(file, column, rows)
        if rows == 0:
            array = np.empty((0, *field.shape), field.dtype)
            array.setflags(write=False)
            return array
        with open(file, "rb") as handle:
            memory = mmap.mmap(handle.fileno(), rows * field.row_bytes, prot=mmap.PROT_READ)
        return np.frombuffer(memory, field.dtype).reshape(rows, *field.shape)

    # --- What is inside -------------------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.schema.metadata)

    @property
    def episode_table(self) -> np.ndarray:
        """One record per episode: first_row, steps, return, flags (``offrl_store.format`` names the bits) and checksums. Read-only."""
        return self._log.since(self._first)

    @property
    def episodes(self) -> EpisodeList:
        """All episodes, list-like; each is made when asked for, as views of the maps."""
        return EpisodeList(self, np.arange(len(self)))

    def column(self, name: str) -> np.ndarray:
        """All rows of a column, read-only: "observation", "observation.camera", "action", "reward", "extra.NAME". Raises InvalidInput.

        The rows first_row .. first_row + steps of an episode are its own; the last holds the final observation and zeros elsewhere.
        """
        try:
            return self._columns[name]
        except KeyError as error:
            raise InvalidInput(f"there is no column {name!r}", hint="the store has " + ", ".join(self._columns)) from error

    def __len__(self) -> int:
        """Number of episodes."""
        return self._log.count - self._first

    @property
    def step_count(self) -> int:
        """Sum of T over the episodes."""
        return int(self.episode_table["steps"].sum())

    @property
    def transition_count(self) -> int:
        """What can be sampled: every step but the last of a truncated episode whose final observation is missing."""
        return self.step_count - int(np.count_nonzero(self.episode_table["flags"] == layout.FINAL_MISSING))

    @property
    def nbytes(self) -> int:
        """Bytes of the episodes' rows and records on disk."""
        rows = self.step_count + len(self)
        return rows * self.schema.row_bytes + (len(self) + 1) * layout.SIZE

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64."""
        return np.ascontiguousarray(self.episode_table["return"])

    def snapshot(self) -> Snapshot:
        """What this reader sees now, to be opened again with ``open(path, snapshot)``."""
        return Snapshot(self._first, self._log.count, self._log.chain(self._log.count).hex())

    def episode_metadata(self, number: int) -> dict[str, Any]:
        """What was given as the metadata of episode ``number`` (from 0, as in ``episodes``) when it was written; {} without any.

        Raises SnapshotEvicted, and StoreCorrupt where its line may be a damaged one.
        """
        if not 0 <= number < len(self):
            raise InvalidInput(f"episode {number} is not in the store, which has {len(self)}")
        if self._meta is None:
            self._meta = MetaReader(self.path)
        found = self._meta.get(self._first + number, self._log.count)
        self.check_alive(self._first + number)  # else its line may be gone
        return found

    _meta: MetaReader | None = None

    def stats(self) -> dict[str, Any]:
        """Mean, std, min and max of returns, lengths and every field; computed once and kept in the folder. See ``offrl_store.stats``."""
        return compute_stats(self)

    def remove(self) -> None:
        """Delete the store's folder. Raises StoreLocked while a writer has it."""
        with contextlib.closing(self.writer()):
            os.rename(self.path / layout.SCHEMA_FILE, self.path / ".removed")  # from here on it is no store, however this ends
        shutil.rmtree(self.path)

    def __repr__(self) -> str:
        limit = "".join(f" limit_{name}={value}" for name, value in self.limit.items())
        returns = f" returns={self.returns.min():.6g}..{self.returns.max():.6g}" if len(self) else ""
        fields = ", ".join(f"{c.name}: {c.field.dtype.name}{list(c.field.shape)}" for c in self.schema.columns)
        counts = f"episodes={len(self)} transitions={self.transition_count} bytes={self.nbytes}{returns}{limit}"
        return f"<EpisodeStore {self.path} {counts} ({fields})>"

    # --- Writing and sampling ---------------------------------------------------------------------------------------------------

    def writer(self, keep: Sequence[Snapshot | str] = (), commit_s: float | None = None) -> Writer:
        """The one writer, to be used in a ``with`` block. Raises StoreLocked while another has it; this store sees what it commits.

        keep: snapshots whose episodes a bounded store must not evict meanwhile, though it grows beyond its limit. commit_s: commit by
        itself when an episode ends and the last commit is so many seconds ago.
        """
        if self._pinned is not None:
            raise InvalidInput(f"the store was opened at snapshot {self._pinned} and cannot be written", hint="open it without a snapshot")
        return Writer(self, [Snapshot.parse(str(snapshot)) for snapshot in keep], commit_s)

    def transitions(
        self,
        batch_size: int,
        seed: int,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        next_action: Any = False,
        episodes: Any = None,
        extra: Sequence[str] = (),
        out: Any = None,
        *,
        replacement: bool = True,
        drop_last: bool = True,
        returns: bool = False,
        failure_return: float | None = None,
        step_reward: float = 0.0,
        reward: Any = None,
        rows: Any = None,
    ) -> TransitionSampler:
        """A sampler of transitions over the episodes there are now (``episodes``: only these numbers; ``rows``: only the transitions at
        these rows), uniform with repetitions or in epochs (``replacement=False``). See TransitionSampler.
        """
        return TransitionSampler(
            self,
            batch_size=batch_size,
            seed=seed,
            n_steps=n_steps,
            gamma=gamma,
            frame_stack=frame_stack,
            stack_pad=stack_pad,
            next_action=next_action,
            episodes=episodes,
            extra=extra,
            out=out,
            replacement=replacement,
            drop_last=drop_last,
            returns=returns,
            failure_return=failure_return,
            step_reward=step_reward,
            reward=reward,
            rows=rows,
        )

    def windows(
        self,
        batch_size: int,
        length: int,
        seed: int,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        episodes: Any = None,
        extra: Sequence[str] = (),
        out: Any = None,
        *,
        replacement: bool = True,
        drop_last: bool = True,
        reward: Any = None,
        rows: Any = None,
    ) -> WindowSampler:
        """A sampler of ``length`` steps in a row, left-padded, with mask, time steps and returns-to-go. See WindowSampler."""
        return WindowSampler(
            self,
            batch_size=batch_size,
            length=length,
            seed=seed,
            frame_stack=frame_stack,
            stack_pad=stack_pad,
            episodes=episodes,
            extra=extra,
            out=out,
            replacement=replacement,
            drop_last=drop_last,
            reward=reward,
            rows=rows,
        )

    def prioritized(
        self,
        batch_size: int,
        alpha: float = 0.6,
        beta: float = 0.4,
        seed: int = 0,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        next_action: bool = False,
        episodes: Any = None,
        extra: Sequence[str] = (),
        out: Any = None,
        *,
        eps: float = 1e-6,
        returns: bool = False,
    ) -> PrioritizedSampler:
        """A sampler of transitions in proportion to priority^alpha, with importance weights. See PrioritizedSampler."""
        return PrioritizedSampler(
            self,
            batch_size=batch_size,
            alpha=alpha,
            beta=beta,
            eps=eps,
            seed=seed,
            n_steps=n_steps,
            gamma=gamma,
            frame_stack=frame_stack,
            stack_pad=stack_pad,
            next_action=next_action,
            episodes=episodes,
            extra=extra,
            out=out,
            returns=returns,
        )

    def select(
        self,
        *,
        min_return: float | None = None,
        max_return: float | None = None,
        min_steps: int | None = None,
        max_steps: int | None = None,
        terminated: bool | None = None,
        top_fraction: float | None = None,
    ) -> np.ndarray:
        """Numbers of the episodes that meet every condition given, to be used as ``episodes=``. See ``offrl_store.mixing.select``."""
        return select(
            self,
            min_return=min_return,
            max_return=max_return,
            min_steps=min_steps,
            max_steps=max_steps,
            terminated=terminated,
            top_fraction=top_fraction,
        )

    def read_episode(self, number: int) -> Episode:
        """Episode ``number`` (from 0) as read-only views of the maps (copies in a bounded store). Raises SnapshotEvicted."""
        record = self.episode_table[number]
        first, steps, flags = int(record["first_row"]), int(record["steps"]), int(record["flags"])
        rows = {"observation": steps if flags & layout.FINAL_MISSING else steps + 1}

        def part(role: str) -> Any:
            values = {c.key: self._columns[c.name][first : first + rows.get(role, steps)] for c in self.schema.columns if c.role == role}
            if self.limit:  # the rows may be gone when the caller looks at them
                values = {key: array.copy() for key, array in values.items()}
            return values.get(None, values)

        episode = Episode(part("observation"), part("action"), part("reward"), bool(flags & layout.TERMINATED), part("extra"))
        self.check_alive(self._first + number if number >= 0 else self._log.count + number)
        return episode


class EpisodeList(Sequence[Episode]):
    """Episodes of a store as a sequence: an index gives an Episode, a slice another EpisodeList. Goes where samplers take ``episodes``."""

    def __init__(self, store: EpisodeStore, numbers: np.ndarray) -> None:
        self.store, self.numbers = store, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> EpisodeList: ...

    def __getitem__(self, index: int | slice) -> Episode | EpisodeList:
        if isinstance(index, slice):
            return EpisodeList(self.store, self.numbers[index])
        return self.store.read_episode(int(self.numbers[index]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The episodes' numbers."""
        return np.array(self.numbers, dtype) if copy is not False else self.numbers

    def take(self, indices: Any) -> EpisodeList:
        """The list of the episodes at these indices. Raises InvalidInput."""
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(self))):
            raise InvalidInput(f"indices must be whole numbers from 0 to {len(self) - 1}")
        return EpisodeList(self.store, self.numbers[indices.astype(np.int64)])

    @property
    def transitions(self) -> TransitionList:
        """The transitions of these episodes, list-like and lazy: what can be sampled, in the order of the list."""
        return TransitionList(self.store, transition_rows(self.store, self.numbers))

    def __repr__(self) -> str:
        return f"<{len(self)} episodes of {self.store.path}>"
