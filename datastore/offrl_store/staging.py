"""Open episodes: their steps are gathered in memory, staged in a file per episode at a sync, and recovered by the next writer after a
crash.

A staging file is `open/ENV.NUMBER`. It consists of blocks, each with some steps of one episode; a last block (END) may record how the
episode ended. A block is a BLOCK header and its bytes, column after column in the order of the schema. The first block of a file holds the
episode's first observation; every later observation is stored with the step that led to it. Bytes after the last whole block are a torn
write.
"""

from __future__ import annotations

import contextlib
import operator
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.disk import write_all
from offrl_store.errors import InvalidEpisode
from offrl_store.schema import Column, Schema
from offrl_store.validate import CheckedEpisode, check_values, convert_rows

FOLDER = "open"
MAGIC, END_MAGIC = b"OFFRLSTG", b"OFFRLEND"
# magic, checksum of the bytes after the header, observations, steps, first step, the store's chain_start, checksum of the 48 bytes before
BLOCK = struct.Struct("<8sIIqq16sI4x")
# magic, data_crc of the record, flags, number of the episode, steps, the store's chain_start, checksum of the 48 bytes before
END = struct.Struct("<8sIIqq16sI4x")
CHECKED = 48
FLUSH_STEPS, FLUSH_BYTES = 1024, 4 << 20  # up to here, steps wait as Python values: each costs a copy instead of an array
SPILL_BYTES = 64 << 20  # an open episode keeps at most this much in memory; the rest is in its file
Take = Callable[[Any], Any]


@dataclass
class Chunk:
    """Some steps of an open episode: an array per column, or None if they are only in its file, at ``offset``."""

    steps: int
    observations: int
    arrays: list[np.ndarray] | None
    offset: int = -1


def taker(column: Column) -> Take:
    """Return a function that copies a row of a column: to a Python number for shape (), else to bytes. It raises InvalidEpisode."""
    field, dtype, shape = column.field, column.field.dtype, column.field.shape
    where = f"a step, field {column.name}"

    def number(value: Any) -> Any:
        try:
            if dtype.kind == "f":
                if column.role != "reward" and getattr(value, "dtype", dtype) != dtype:  # environments return rewards as Python numbers
                    return convert_rows(np.asarray(value)[None], field, where)[0]
                return float(value)
            if dtype.kind == "b":
                return bool(value)
            return operator.index(value)
        except (TypeError, ValueError) as error:
            raise InvalidEpisode(f"{where}: {value!r} is not one {dtype.name}") from error

    def row(value: Any) -> bytes:
        if value.__class__ is np.ndarray and value.dtype == dtype and value.shape == shape:
            return value.tobytes()
        return convert_rows(np.asarray(value)[None] if hasattr(value, "dtype") else [value], field, where).tobytes()

    return number if shape == () else row


class Layout:
    """The shared part of a store's open episodes: how the rows of each column are copied and joined."""

    def __init__(self, schema: Schema, start: bytes, folder: Path) -> None:
        self.schema, self.start, self.folder, self.number = schema, start, folder, 0
        self.new_names = False  # whether the folder has names that are not durable yet
        self.spare: list[OpenEpisode] = []  # for reuse: to make an episode and to collect its reference cycle costs 14 us
        self.columns = schema.columns
        self.takers = [taker(column) for column in self.columns]
        roles = [column.role for column in self.columns]
        self.observed = [role == "observation" for role in roles]
        self.roles = {role: [i for i, other in enumerate(roles) if other == role] for role in ("observation", "action", "reward", "extra")}
        self.flush_steps = max(1, min(FLUSH_STEPS, FLUSH_BYTES // schema.row_bytes))
        # Most stores have one array per role and no extras; they take a faster path.
        self.plain = len(self.columns) == 3 and all(column.key is None for column in self.columns)

    def values(self, role: str, value: Any) -> list[Any]:
        """Return the caller's values for a role, in the order of its columns. Raises InvalidEpisode."""
        columns = [self.columns[i] for i in self.roles[role]]
        if len(columns) == 1 and columns[0].key is None:
            return [value]
        if not columns and not value:
            return []
        try:
            if len(value) == len(columns):
                return [value[column.key] for column in columns]
        except (KeyError, TypeError, IndexError):
            pass
        names = ", ".join(str(column.key) for column in columns) or "none"
        raise InvalidEpisode(f"a step: {role} does not have the fields of the schema", hint=f"pass a dict with these fields: {names}")

    def place(self, env: int) -> Path:
        """Return the name of a new file; the first call creates the folder."""
        os.makedirs(self.folder, exist_ok=True)
        self.number += 1
        self.new_names = True
        return self.folder / f"{env}.{self.number}"

    def join(self, i: int, values: list[Any], where: str) -> np.ndarray:
        """Join the waiting rows of column ``i`` to an array. Raises InvalidEpisode for a whole number that its dtype does not hold."""
        field = self.columns[i].field
        if field.shape:
            return np.frombuffer(b"".join(values), field.dtype).reshape(len(values), *field.shape)
        try:
            return np.array(values, field.dtype)
        except OverflowError:
            return convert_rows(values, field, f"{where}, field {self.columns[i].name}")  # names the row


class OpenEpisode:
    """An episode that has begun and not ended."""

    __slots__ = ("add", "broken", "bytes", "chunks", "env", "file", "layout", "path", "rows", "staged", "steps")

    def __init__(self, layout: Layout, env: int) -> None:
        self.layout, self.env = layout, env
        self.chunks: list[Chunk] = []
        self.rows: list[list[Any]] = [[] for _ in layout.columns]  # values that wait to be joined
        self.steps = self.bytes = self.staged = 0  # steps and bytes of the chunks; how many chunks are in the file
        self.path: Path | None = None
        self.file = -1
        self.broken = False  # a step was refused after others had been joined with it
        self.add = self._adder() if layout.plain else self._add

    @classmethod
    def begun(cls, layout: Layout, env: int, observation: Any) -> OpenEpisode:
        """Start an episode with its first observation. Raises InvalidEpisode."""
        episode = layout.spare.pop() if layout.spare else cls(layout, env)
        episode.env = env
        episode.begin(observation)
        return episode

    def begin(self, observation: Any) -> None:
        """Take the first observation. Raises InvalidEpisode."""
        layout, where = self.layout, f"env {self.env}, the first observation"
        for i, value in zip(layout.roles["observation"], layout.values("observation", observation), strict=True):
            row = layout.takers[i](value)
            check_values(layout.join(i, [row], where), layout.columns[i], where)
            self.rows[i].append(row)

    def again(self) -> None:
        """Empty this object for reuse. The lists of rows stay the same objects, because ``add`` holds them."""
        for rows in self.rows:
            rows.clear()
        self.chunks, self.steps, self.bytes, self.staged, self.path, self.broken = [], 0, 0, 0, None, False

    def _adder(self) -> Callable[..., None]:
        """Return ``add`` for one observation field, one action field and no extras, with all that it needs in local variables."""
        (observations, actions, rewards), (observe, act, _) = self.rows, self.layout.takers
        reward_of = self.layout.takers[2]
        observed, acted, rewarded = observations.append, actions.append, rewards.append
        field, limit = self.layout.columns[0].field, self.layout.flush_steps
        array, dtype, shape = np.ndarray, field.dtype, field.shape
        direct = shape != ()
        plain_reward = self.layout.columns[2].field.dtype.kind == "f"
        whole = self.layout.columns[1].field.shape == () and self.layout.columns[1].field.dtype.kind in "iu"

        def add(action: Any, reward: Any, observation: Any, extra: Any) -> None:
            if extra:
                self.layout.values("extra", extra)
            if direct and observation.__class__ is array and observation.dtype == dtype and observation.shape == shape:
                observation = observation.tobytes()
            else:
                observation = observe(observation)
            if not (whole and action.__class__ is int):
                action = act(action)
            if not (plain_reward and reward.__class__ is float):
                reward = reward_of(reward)
            observed(observation)
            acted(action)
            rewarded(reward)
            if len(rewards) >= limit:
                self.flush()

        return add

    def _add(self, action: Any, reward: Any, observation: Any, extra: Any) -> None:
        layout = self.layout
        values = [*layout.values("observation", observation), *layout.values("action", action), reward, *layout.values("extra", extra)]
        copies = [take(value) for take, value in zip(layout.takers, values, strict=True)]  # all before any is added
        for rows, value in zip(self.rows, copies, strict=True):
            rows.append(value)
        if len(self.rows[layout.roles["reward"][0]]) >= layout.flush_steps:
            self.flush()

    @property
    def step_count(self) -> int:
        return self.steps + len(self.rows[self.layout.roles["reward"][0]])

    def flush(self) -> None:
        """Join the waiting rows to a chunk and check their values. Raises InvalidEpisode."""
        if any(self.rows):
            arrays = self._joined()
            for rows in self.rows:
                rows.clear()
            self.put(arrays)

    def _joined(self) -> list[np.ndarray]:
        """Join the waiting rows of each column. Raises InvalidEpisode."""
        try:
            return [self.layout.join(i, rows, self.where) for i, rows in enumerate(self.rows)]
        except InvalidEpisode:
            self.broken = True
            raise

    @property
    def where(self) -> str:
        """The name of the waiting rows in messages."""
        return f"env {self.env}, steps from {self.steps}"

    def put(self, arrays: list[np.ndarray]) -> None:
        """Add a chunk after the waiting rows: arrays of the fields' dtypes, owned by this episode. Raises InvalidEpisode."""
        self.flush()
        try:
            for column, array in zip(self.layout.columns, arrays, strict=True):
                if len(array):
                    check_values(array, column, self.where)
        except InvalidEpisode:
            self.broken = True
            raise
        steps = len(arrays[self.layout.roles["reward"][0]])
        self.chunks.append(Chunk(steps, len(arrays[0]), arrays))
        self.steps += steps
        self.bytes += sum(array.nbytes for array in arrays)
        if self.bytes > SPILL_BYTES:
            self.stage()
            for chunk in self.chunks:
                chunk.arrays = None
            self.bytes = 0

    # --- The file ---------------------------------------------------------------------------------------------------------------

    def stage(self) -> None:
        """Write the chunks that are not in the file yet, without a sync."""
        if self.staged == len(self.chunks):
            return
        if self.file < 0:
            self.path = self.layout.place(self.env)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        offset = self.file_end()
        first = sum(chunk.steps for chunk in self.chunks[: self.staged])
        for chunk in self.chunks[self.staged :]:
            payload = b"".join(array.tobytes() for array in self._arrays(chunk))
            head = BLOCK.pack(MAGIC, zlib.crc32(payload), chunk.observations, chunk.steps, first, self.layout.start, 0)[:CHECKED]
            write_all(self.file, head + struct.pack("<I4x", zlib.crc32(head)) + payload, offset)
            chunk.offset = offset + BLOCK.size
            offset, first = chunk.offset + len(payload), first + chunk.steps
        self.staged = len(self.chunks)

    def file_end(self) -> int:
        """Return the offset of the next block, at the end of the last chunk in the file."""
        if not self.staged:
            return 0
        chunk = self.chunks[self.staged - 1]
        return chunk.offset + self._size(chunk)

    def _size(self, chunk: Chunk) -> int:
        return sum(
            column.field.row_bytes * (chunk.observations if seen else chunk.steps)
            for column, seen in zip(self.layout.columns, self.layout.observed, strict=True)
        )

    def mark_end(self, number: int, steps: int, flags: int, data_crc: int) -> None:
        """Write the END block, before the record: the next writer must not take this episode of the store for an open one."""
        head = END.pack(END_MAGIC, data_crc, flags, number, steps, self.layout.start, 0)[:CHECKED]
        write_all(self.file, head + struct.pack("<I4x", zlib.crc32(head)), self.file_end())

    def whole(self, terminated: bool) -> CheckedEpisode:
        """Return the episode for the columns. Raises InvalidEpisode. Waiting rows of a short episode are not checked: the columns do so."""
        if not self.chunks:
            return CheckedEpisode(self.step_count, terminated, False, tuple(self._joined()))
        self.flush()
        parts = [self._arrays(chunk) for chunk in self.chunks]
        arrays = tuple(parts[0] if len(parts) == 1 else (np.concatenate(column) for column in zip(*parts, strict=True)))
        return CheckedEpisode(self.steps, terminated, False, arrays)

    def _arrays(self, chunk: Chunk) -> list[np.ndarray]:
        """Return the arrays of a chunk, read from the file if they are no longer in memory."""
        if chunk.arrays is not None:
            return chunk.arrays
        return self.arrays_of(os.pread(self.file, self._size(chunk), chunk.offset), chunk.steps, chunk.observations)

    def arrays_of(self, raw: bytes, steps: int, observations: int) -> list[np.ndarray]:
        arrays, at = [], 0
        for column, seen in zip(self.layout.columns, self.layout.observed, strict=True):
            field, rows = column.field, observations if seen else steps
            arrays.append(np.frombuffer(raw, np.uint8, rows * field.row_bytes, at).view(field.dtype).reshape(rows, *field.shape))
            at += rows * field.row_bytes
        return arrays

    def close(self, remove: bool = False) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
            if remove and self.path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)


@dataclass(frozen=True)
class Ended:
    """The content of an END block: the episode of the store that an open episode became."""

    number: int
    steps: int
    flags: int
    data_crc: int


def load(layout: Layout, path: Path) -> tuple[OpenEpisode | None, Ended | None, int]:
    """Read an open episode from its file. Returns the episode, its end if recorded, and the bytes of a torn tail.

    The episode is None if the file has no whole block.
    """
    env = int(path.name.split(".")[0])
    episode, ended, at = OpenEpisode(layout, env), None, 0
    raw = path.read_bytes()
    while at + BLOCK.size <= len(raw):
        head = raw[at : at + BLOCK.size]
        magic, crc, count, steps, number, start, own = BLOCK.unpack(head)
        if zlib.crc32(head[:CHECKED]) != own or start != layout.start or any(head[CHECKED + 4 :]):
            break
        if magic == END_MAGIC:
            ended = Ended(steps, number, count, crc)
            at += BLOCK.size
            break
        chunk = Chunk(steps, count, None, at + BLOCK.size)
        size = episode._size(chunk)
        payload = raw[chunk.offset : chunk.offset + size]
        if len(payload) < size or zlib.crc32(payload) != crc or number != episode.steps:
            break
        chunk.arrays = episode.arrays_of(payload, steps, count)
        episode.chunks.append(chunk)
        episode.steps += steps
        episode.bytes += size
        at = chunk.offset + size
    if not episode.chunks:
        return None, None, len(raw)
    episode.staged, episode.path = len(episode.chunks), path
    return episode, ended, len(raw) - at


def files(path: Path) -> list[Path]:
    """Return the staging files of a store; of one environment, the older file first."""
    try:
        names = os.listdir(path / FOLDER)
    except FileNotFoundError:
        return []
    parts = [name.split(".") for name in names]
    keys = sorted((int(part[0]), int(part[1])) for part in parts if len(part) == 2 and all(p.isdecimal() for p in part))
    return [path / FOLDER / f"{env}.{number}" for env, number in keys]


# --- Batches of steps -------------------------------------------------------------------------------------------------------------


class BatchBlock:
    """The latest steps of N environments that step together, [C, N, ...] per column. Episodes take their rows when they end."""

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout, self.count = layout, count
        self.capacity = max(1, min(256, FLUSH_BYTES // (layout.schema.row_bytes * count) + 1))
        self.arrays = [np.zeros((self.capacity, count, *column.field.shape), column.field.dtype) for column in layout.columns]
        self.filled = 0
        self.start = [0] * count  # first row of the block that the open episode of each environment has not taken
        self.open = np.zeros(count, bool)  # which environments have an open episode whose steps come in batches

    def take(self, env: int, final: list[Any] | None = None) -> list[np.ndarray] | None:
        """Return an environment's rows since the last call, or None without any. ``final`` replaces the last observation."""
        start, self.start[env] = self.start[env], self.filled
        if start == self.filled:
            return None
        rows = [array[start : self.filled, env].copy() for array in self.arrays]
        if final is not None:
            for i, value in zip(self.layout.roles["observation"], final, strict=True):
                rows[i][-1] = convert_rows(np.asarray(value)[None], self.layout.columns[i].field, f"env {env}, the final observation")[0]
        return rows
