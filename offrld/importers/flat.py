"""Flat arrays, one row per step, cut into episodes: the common part of D4RL, .npz and d3rlpy v1 files, tables and buffers.

An episode ends at a row with ``terminals`` (the task ended) or ``timeouts`` (truncated); if both are set, the task ended. The final
observation is known only with ``next_observations``. The arrays are read in blocks, in two passes. The first pass reads the flags and the
actions (and the observations, if there are next observations); the second pass reads everything while it yields the episodes. Actions of up
to `KEEP_BYTES` stay in memory between the passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from offrl_store import Field, Schema
from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.columns import BlockReader, Column, block_rows, blocks, check_scalar_rows, reward_dtype, same_length
from offrld.importers.source import BadEpisodes, Source, SourceEpisode, make_metadata
from offrld.importers.spaces import ActionScan, ActionSpace

Columns = Column | dict[str, Column]

#: Actions of up to this size are read once, because inflating them from a gzipped file takes longer than processing them.
KEEP_BYTES = 64 << 20

#: Largest number of episodes. Memory holds every end, and a compressed file of ones packs any number of ends into a few bytes.
MAX_EPISODES = 1 << 24


@dataclass(frozen=True)
class FlatArrays:
    """The columns of a flat source; all have N rows.

    Attributes:
        observations: one column, or columns by name.
        actions, rewards, terminals: ``[N]`` or ``[N, A]``; ``[N]``; flags ``[N]``.
        timeouts: flags ``[N]``, or None.
        next_observations: as ``observations``, or None.
        next_known: flags ``[N]``, 0 if the row of ``next_observations`` has no meaning; None if all are known.
        limit: steps after which an episode is cut if there are neither ``timeouts`` nor ``next_observations``; None: never.
        extra: further columns that are kept with each step, by name.
    """

    observations: Columns
    actions: Column
    rewards: Column
    terminals: Column
    timeouts: Column | None = None
    next_observations: Columns | None = None
    next_known: Column | None = None
    limit: int | None = None
    extra: dict[str, Column] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return self.actions.file

    def observation_columns(self) -> dict[str, Column]:
        return _named(self.observations)

    def next_columns(self) -> dict[str, Column]:
        return {} if self.next_observations is None else _named(self.next_observations)


def _named(columns: Columns) -> dict[str, Column]:
    return columns if isinstance(columns, dict) else {"observation": columns}


@dataclass(frozen=True)
class Cuts:
    """The ends of E episodes.

    Attributes:
        stop: the row after the last step, int64 ``[E]``.
        terminated: whether the task ended there, bool ``[E]``.
        final: whether the file holds the observation after the last action, bool ``[E]``.
    """

    stop: np.ndarray
    terminated: np.ndarray
    final: np.ndarray


def flat_source(
    arrays: FlatArrays,
    bad: BadEpisodes,
    *,
    format: str,
    env_id: str | None,
    space: ActionSpace | None,
    attributes: dict[str, Any],
    messages: list[str],
    discrete: bool | None = None,
    more: dict[str, Any] | None = None,
    **source: Any,
) -> Source:
    """Make a `Source` of flat arrays. Raises `InvalidInput` for invalid lengths, shapes and values.

    ``more``: further entries of the metadata. ``source``: further entries of ``metadata["source"]``.
    """
    check_shapes(arrays)
    scan = ActionScan(arrays.actions, bad.stated(space, arrays.file), discrete)
    cuts = find_cuts(arrays, messages)
    arrays = replace(arrays, actions=_scan_actions(arrays.actions, scan, cuts, bad))
    action, bounds = scan.field(messages)
    metadata = (
        make_metadata(env_id=env_id, bounds=bounds, format=format, file=arrays.file, attributes=attributes, **source)
        | scan.metadata
        | (more or {})
    )
    fields = {name: Field(column.dtype.name, column.shape) for name, column in arrays.observation_columns().items()}
    schema = Schema(
        observation=fields if isinstance(arrays.observations, dict) else fields["observation"],
        action=action,
        reward=Field(reward_dtype(arrays.rewards)),
        extra={name: Field(column.dtype.name, column.shape) for name, column in arrays.extra.items()},
        metadata=metadata,
    )
    return Source(format, schema, read_episodes(arrays, cuts, scan, bad), metadata, len(cuts.stop) - len(bad.skipped), bad, messages)


def _scan_actions(column: Column, scan: ActionScan, cuts: Cuts, bad: BadEpisodes) -> Column:
    """Scan all actions once. Returns the column to read them from later: in memory if it is small."""
    cached = np.empty((column.rows, *column.shape), column.dtype) if column.rows * column.row_bytes <= KEEP_BYTES else None
    for start, stop in blocks(column.rows, block_rows(column)):
        try:
            block = column.read(start, stop)
            scan.add(column, start, block)
        except InvalidInput:
            if not bad.skip:
                raise
            cached = None  # good episodes are then read one by one
            _scan_alone(column, start, stop, scan, cuts, bad)
        else:
            if cached is not None:
                cached[start:stop] = block
    return column if cached is None else Column(column.file, column.key, cached)


def _scan_alone(column: Column, start: int, stop: int, scan: ActionScan, cuts: Cuts, bad: BadEpisodes) -> None:
    """Scan the rows of a block episode by episode, to find the episodes that cannot be used."""
    number = int(np.searchsorted(cuts.stop, start, side="right"))
    while start < stop:
        end = min(stop, int(cuts.stop[number]))
        try:
            scan.add(column, start, column.read(start, end))
        except InvalidInput as error:
            bad.take(number, error)
        start, number = end, number + 1


def check_shapes(arrays: FlatArrays) -> None:
    """Raise `InvalidInput` unless all columns have the same number of rows and next observations the fields, dtypes and shapes of
    observations.

    Raises `EmptyStore` if there is no row.
    """
    observations, following = arrays.observation_columns(), arrays.next_columns()
    optional = [column for column in (arrays.timeouts, arrays.next_known) if column is not None]
    same_length(
        *observations.values(), arrays.actions, arrays.rewards, arrays.terminals, *optional, *following.values(), *arrays.extra.values()
    )
    if not arrays.actions.rows:
        raise EmptyStore(f"{arrays.file} holds no steps: its arrays have 0 rows", hint="give a file with at least one episode")
    for column in (arrays.rewards, arrays.terminals, *optional):
        check_scalar_rows(column)
    if following and following.keys() != observations.keys():
        raise InvalidInput(
            f"{arrays.file}: the observations are {', '.join(observations)}, the next observations {', '.join(following)}",
            hint="both need the same fields",
        )
    for name, column in following.items():
        if (column.shape, column.dtype) != (observations[name].shape, observations[name].dtype):
            raise InvalidInput(
                f"{arrays.file}: {column.key!r} holds {column.dtype} {column.shape} per row "
                f"and {observations[name].key!r} {observations[name].dtype} {observations[name].shape}",
                hint="both need the same dtype and shape",
            )


def find_cuts(arrays: FlatArrays, messages: list[str]) -> Cuts:
    """Find the ends of episodes. Adds one message for each kind of end that no flag of the file marks."""
    rows = arrays.actions.rows
    stop, terminated = _flagged(arrays)
    if arrays.next_observations is not None:
        jumps = np.setdiff1d(_jumps(arrays), stop)
        if len(jumps):
            messages.append(
                f"{len(jumps)} ends of episodes without a flag, where the next observation is not the observation of the following row"
            )
        stop, terminated = _with_cuts(stop, terminated, jumps)
    elif arrays.timeouts is None and arrays.limit is None:
        messages.append("there are no timeouts: episodes end at terminals only")
    elif arrays.timeouts is None and arrays.limit is not None:
        cut: list[int] = []
        start = 0
        for end in (*stop.tolist(), rows):
            cut += range(start + arrays.limit, end, arrays.limit)
            start = end
        messages.append(f"there are no timeouts: episodes are cut after {arrays.limit} steps ({len(cut)} of them)")
        stop, terminated = _with_cuts(stop, terminated, np.array(cut, np.int64))
    last = int(stop[-1]) if len(stop) else 0
    if last < rows:
        messages.append(f"the last {rows - last} rows follow no end of an episode: kept as a truncated episode")
        stop, terminated = _with_cuts(stop, terminated, np.array([rows]))
    return Cuts(stop, terminated, _final_known(arrays, stop))


def _flagged(arrays: FlatArrays) -> tuple[np.ndarray, np.ndarray]:
    """Return ``stop`` and ``terminated`` of the episodes whose end a flag marks."""
    ends, done, count = [], [], 0
    for start, stop in blocks(arrays.terminals.rows, block_rows(arrays.terminals)):
        terminal = arrays.terminals.read_flags(start, stop)
        end = terminal | arrays.timeouts.read_flags(start, stop) if arrays.timeouts is not None else terminal
        at = np.flatnonzero(end)
        ends.append(at + start + 1)
        done.append(terminal[at])
        count += len(at)
        _check_count(count, arrays.file)
    return np.concatenate(ends).astype(np.int64), np.concatenate(done)


def _check_count(count: int, file: str) -> None:
    if count > MAX_EPISODES:
        raise InvalidInput(
            f"{file} has more than {MAX_EPISODES:,} ends of episodes",
            hint="check that its flags mark the ends of episodes, or split the file",
        )


def _with_cuts(stop: np.ndarray, terminated: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge ends with further ones, which are truncations, in ascending order."""
    merged = np.concatenate([stop, cuts]).astype(np.int64)
    order = np.argsort(merged, kind="stable")
    return merged[order], np.concatenate([terminated, np.zeros(len(cuts), bool)])[order]


def _jumps(arrays: FlatArrays) -> np.ndarray:
    """Find the rows whose next observation is not the observation of the following row. Returns each row + 1, as ``stop`` does.

    Differences within rounding (1e-5 relative, 1e-6 absolute) are ignored, and so are unknown next observations.
    """
    names, known = arrays.next_columns(), arrays.next_known
    pairs = {name: (column, names[name]) for name, column in arrays.observation_columns().items()}
    jumps, count = [], 0
    before: dict[str, np.ndarray] = {}  # the next observation of the last row of the block before, [1, ...]
    before_known = np.ones(1, bool)
    for start, stop in blocks(arrays.actions.rows, block_rows(*names.values())):
        # Compare the next observations of rows start-1 .. stop-2 with the observations of rows start .. stop-1.
        first = max(start, 1)
        differs = np.zeros(stop - first, bool)
        for name, (column, following) in pairs.items():
            nexts = following.read(start, stop)
            expected = np.concatenate([before[name], nexts[:-1]]) if start else nexts[:-1]
            differs |= _differs(expected, column.read(start, stop)[first - start :])
            before[name] = nexts[-1:]
        if known is not None:
            flags = known.read_flags(start, stop)
            differs &= np.concatenate([before_known, flags[:-1]]) if start else flags[:-1]
            before_known = flags[-1:]
        jumps.append(np.flatnonzero(differs) + first)
        count += len(jumps[-1])
        _check_count(count, arrays.file)
    return np.concatenate(jumps)


def _differs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return for each row whether two blocks differ by more than rounding; NaN differs from everything."""
    if left.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            unequal = ~(np.abs(left - right) <= 1e-6 + 1e-5 * np.abs(right))
    else:
        unequal = left != right
    return unequal.any(axis=tuple(range(1, unequal.ndim)))


def _final_known(arrays: FlatArrays, stop: np.ndarray) -> np.ndarray:
    """Return for each episode whether the row of its last step has a next observation."""
    if arrays.next_observations is None:
        return np.zeros(len(stop), bool)
    known = np.ones(len(stop), bool)
    if arrays.next_known is not None:
        for low, high in blocks(arrays.next_known.rows, block_rows(arrays.next_known)):
            inside = (stop > low) & (stop <= high)
            known[inside] = arrays.next_known.read_flags(low, high)[stop[inside] - 1 - low]
    return known


def read_episodes(arrays: FlatArrays, cuts: Cuts, scan: ActionScan, bad: BadEpisodes) -> Iterator[SourceEpisode]:
    """Yield the episodes in order. Every column is read once, in blocks."""
    reader = _EpisodeReader(arrays, scan, bad.skip)
    start = 0
    for number, (stop, terminated, final) in enumerate(zip(cuts.stop.tolist(), cuts.terminated.tolist(), cuts.final.tolist(), strict=True)):
        if number not in bad:
            try:
                episode = reader.read(number, start, stop, terminated, final)
            except InvalidInput as error:
                bad.take(number, error)
            else:
                yield episode
        start = stop


class _EpisodeReader:
    """Reads rows of all columns as episodes. ``alone``: check each episode by itself, so that a bad one does not affect its neighbours."""

    def __init__(self, arrays: FlatArrays, scan: ActionScan, alone: bool) -> None:
        self._observations = {name: BlockReader(column, finite=not alone) for name, column in arrays.observation_columns().items()}
        self._following = {name: BlockReader(column, finite=False) for name, column in arrays.next_columns().items()}
        self._actions, self._rewards = BlockReader(arrays.actions, finite=False), BlockReader(arrays.rewards, finite=not alone)
        self._extra = {name: BlockReader(column, finite=False) for name, column in arrays.extra.items()}
        self._single, self._scan, self._alone = not isinstance(arrays.observations, dict), scan, alone

    def read(self, number: int, start: int, stop: int, terminated: bool, final: bool) -> SourceEpisode:
        parts = {name: reader.rows(start, stop) for name, reader in self._observations.items()}
        reward = self._rewards.rows(start, stop)
        if self._alone:
            for name, rows in parts.items():
                self._observations[name].column.check_finite(rows, start)
            self._rewards.column.check_finite(reward, start)
        if final:
            for name, reader in self._following.items():
                row = reader.rows(stop - 1, stop)
                reader.column.check_finite(row, stop - 1)
                parts[name] = np.concatenate([parts[name], row])
        return SourceEpisode(
            observation=parts["observation"] if self._single else parts,
            action=self._scan.convert(self._actions.rows(start, stop)),
            reward=self._rewards.column.read_rewards(reward, start),
            terminated=terminated,
            extra={name: self._extra_rows(reader, start, stop) for name, reader in self._extra.items()},
            number=number,
        )

    @staticmethod
    def _extra_rows(reader: BlockReader, start: int, stop: int) -> np.ndarray:
        reader.column.check_whole(start, stop)
        return reader.rows(start, stop)
