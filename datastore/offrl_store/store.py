"""EpisodeStore: a folder of memory-mapped columns and the log of its episodes, for reading; snapshots pin what a job saw."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import format as layout
from .errors import InvalidInput, StoreCorrupt, StoreExists, StoreNotFound
from .sampler import TransitionSampler
from .schema import Column, Episode, Schema
from .writer import Writer, disk_errors, sync_folder


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

    def __init__(self, path: Path, schema: Schema, pinned: Snapshot | None) -> None:
        """Use ``create`` or ``open``."""
        self.path, self.schema = path, schema
        self._pinned = pinned
        self._table = np.empty(0, layout.RECORD)
        self._first = 0
        self._columns: dict[str, np.ndarray] = {}
        self._read()

    @classmethod
    def create(cls, path: str | os.PathLike[str], schema: Schema) -> EpisodeStore:
        """Make an empty store. ``path`` must not exist or be an empty folder: StoreExists. It appears whole or not at all."""
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
                for name, content in ((layout.LOG_FILE, layout.dump_header()), (layout.SCHEMA_FILE, layout.dump_schema(schema))):
                    with open(temporary / name, "xb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                sync_folder(temporary / layout.COLUMN_FOLDER)
                sync_folder(temporary)
                try:
                    os.rename(temporary, path)
                except OSError as error:
                    if path.exists() and not isinstance(error, PermissionError):
                        raise StoreExists(f"{path} exists already", hint="another process created it just now") from error
                    raise
                sync_folder(path.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return cls(path, schema, None)

    @classmethod
    def open(cls, path: str | os.PathLike[str], snapshot: Snapshot | str | None = None) -> EpisodeStore:
        """Open a store for reading (``writer()`` adds to it). With a snapshot it stays at exactly those episodes.

        Raises StoreNotFound, StoreCorrupt (damaged or cut files, a snapshot of another store).
        """
        path = Path(os.path.abspath(path))
        pinned = Snapshot.parse(snapshot) if isinstance(snapshot, str) else snapshot
        with disk_errors(path, "read"):
            return cls(path, layout.load_schema(path), pinned)

    def __reduce__(self) -> tuple[Any, ...]:
        return EpisodeStore.open, (str(self.path), self._pinned)

    # --- Reading the log --------------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Take in what was committed since; returns how many episodes came (0 for a store opened at a snapshot).

        Raises StoreCorrupt.
        """
        if self._pinned is not None:
            return 0
        before = len(self._table)
        self._read()
        return len(self._table) - before

    def _read(self) -> None:
        file = self.path / layout.LOG_FILE
        known = self._table if len(self._table) else None
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
        table = log.table
        if self._pinned is not None:
            pin = self._pinned
            if pin.count > len(table) or layout.record_chain(table, pin.count, self.schema).hex() != pin.chain or pin.first < log.first:
                raise StoreCorrupt(f"snapshot {pin} is not of the store at {self.path}, which holds {len(table)} episodes",
                                   hint="the dataset was replaced since; submit the job again to use the new one")
            table = table[:pin.count]
        rows = int(table["first_row"][-1] + table["steps"][-1]) + 1 if len(table) else 0
        if not self._columns or len(table) != len(self._table):
            self._columns = {column.name: self._map(column, rows) for column in self.schema.columns}
        else:
            for column in self.schema.columns:
                self._check_size(layout.column_path(self.path, column.name), column, rows)
        table.setflags(write=False)
        self._table, self._first = table, log.first

    def _check_size(self, file: Path, column: Column, rows: int) -> None:
        try:
            size = os.stat(file).st_size
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{file} is missing", hint="restore the file from a copy") from error
        if size < rows * column.field.row_bytes:
            raise StoreCorrupt(f"{file} is cut: {size} bytes, {rows * column.field.row_bytes} are needed for {rows} rows",
                               hint="restore the file from a copy")

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
        return self._table[self._first:]

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
        return len(self._table) - self._first

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
        return Snapshot(self._first, len(self._table), layout.record_chain(self._table, len(self._table), self.schema).hex())

    def __repr__(self) -> str:
        fields = ", ".join(f"{c.name}: {c.field.dtype.name}{list(c.field.shape)}" for c in self.schema.columns)
        return f"<EpisodeStore {self.path} episodes={len(self)} transitions={self.transition_count} bytes={self.nbytes} ({fields})>"

    # --- Writing and sampling ---------------------------------------------------------------------------------------------------

    def writer(self) -> Writer:
        """The one writer, to be used in a ``with`` block. Raises StoreLocked while another has it; this store sees what it commits."""
        if self._pinned is not None:
            raise InvalidInput(f"the store was opened at snapshot {self._pinned} and cannot be written", hint="open it without a snapshot")
        return Writer(self)

    def transitions(self, batch_size: int, seed: int, n_steps: int = 1, gamma: float = 0.99, frame_stack: int = 1, stack_pad: str = "zero",
                    next_action: bool = False, episodes: Any = None, extra: Sequence[str] = (), out: Any = None) -> TransitionSampler:
        """A sampler of uniform transitions over the episodes there are now (``episodes``: only these numbers). See TransitionSampler."""
        return TransitionSampler(self, batch_size=batch_size, seed=seed, n_steps=n_steps, gamma=gamma, frame_stack=frame_stack,
                                 stack_pad=stack_pad, next_action=next_action, episodes=episodes, extra=extra, out=out)

    def read_episode(self, number: int) -> Episode:
        """Episode ``number`` (from 0) as read-only views of the maps."""
        record = self.episode_table[number]
        first, steps, flags = int(record["first_row"]), int(record["steps"]), int(record["flags"])
        rows = {"observation": steps if flags & layout.FINAL_MISSING else steps + 1}

        def part(role: str) -> Any:
            values = {c.key: self._columns[c.name][first:first + rows.get(role, steps)] for c in self.schema.columns if c.role == role}
            return values.get(None, values)

        return Episode(part("observation"), part("action"), part("reward"), bool(flags & layout.TERMINATED), part("extra"))


class EpisodeList(Sequence):
    """Episodes of a store as a sequence: an index gives an Episode, a slice another EpisodeList."""

    def __init__(self, store: EpisodeStore, numbers: np.ndarray) -> None:
        self._store, self._numbers = store, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return EpisodeList(self._store, self._numbers[index])
        return self._store.read_episode(int(self._numbers[index]))

    def __repr__(self) -> str:
        return f"<{len(self)} episodes of {self._store.path}>"

