"""Sources with separate arrays per episode: the common part of Minari, d3rlpy v2, robomimic, LeRobot and gen_dgrl.

A recording may have several ends, if the task continues after a success. It is then split into episodes; two neighbours share the
observation between them. Memory holds one recording at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offrl_store import Field, Schema
from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.columns import MAX_EPISODE_BYTES, Column, check_scalar_rows, reward_dtype, same_length
from offrld.importers.source import BadEpisodes, Source, SourceEpisode, make_metadata
from offrld.importers.spaces import ActionScan, ActionSpace


@dataclass(frozen=True)
class Recording:
    """One recorded episode.

    Attributes:
        observations: one column, or columns by name; T+1 rows, or T if the final observation is missing.
        actions, rewards: T rows.
        ends: ``(stop, terminated)`` of each end, ascending; the last stop is T.
        extra: further columns that are kept with each step, T rows, by name.
        metadata: a JSON object that each of its episodes keeps, or None.
    """

    observations: Column | dict[str, Column]
    actions: Column
    rewards: Column
    ends: list[tuple[int, bool]]
    extra: dict[str, Column] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None

    def named(self) -> dict[str, Column]:
        return self.observations if isinstance(self.observations, dict) else {"observation": self.observations}


def ends_of(terminated: np.ndarray, truncated: np.ndarray, key: str, number: int, notes: dict[int, str]) -> list[tuple[int, bool]]:
    """Return the ends of a recording from its flags ``[T]``. The last row is always an end; without a flag it is a truncation.

    If there are several ends, ``notes[number]`` gets a line about it.
    """
    at = sorted({*np.flatnonzero(terminated | truncated).tolist(), len(terminated) - 1})
    if len(at) > 1:
        notes[number] = f"{key} continues after an end at step {at[0]}: imported as {len(at)} episodes"
    return [(int(row) + 1, bool(terminated[row])) for row in at]


def episodic_source(
    recording: Callable[[int], Recording | None],
    count: int,
    bad: BadEpisodes,
    *,
    file: str,
    format: str,
    env_id: str | None,
    space: ActionSpace | None,
    attributes: dict[str, Any],
    messages: list[str],
    discrete: bool | None = None,
    more: dict[str, Any] | None = None,
    **source: Any,
) -> Source:
    """Make a `Source` of recordings. They are read twice: first to scan their actions, then when the source yields its episodes.

    Args:
        recording: opens recording i of ``count``; returns None if it has no step. Raises `InvalidInput` if it cannot be used.
        more: further entries of the metadata.
        source: further entries of ``metadata["source"]``.

    Raises `InvalidInput`, and `EmptyStore` if no recording has a step.
    """
    first: Recording | None = None
    scan: ActionScan | None = None
    episodes = 0
    for number in range(count):
        try:
            each = recording(number)
            if each is None:
                continue
            if first is None or scan is None:
                _check_same(each, each)
                first, scan = each, ActionScan(each.actions, bad.stated(space, file), discrete)
            _check_same(first, each)
            scan.add(each.actions, 0, each.actions.read(0, each.actions.rows))
            episodes += len(each.ends)
        except InvalidInput as error:
            bad.take(number, error)
    if first is None or scan is None:
        raise EmptyStore(f"{file} holds no steps in its {count} episodes{_why(bad)}", hint="give a dataset with at least one step")
    action, bounds = scan.field(messages)
    metadata = (
        make_metadata(env_id=env_id, bounds=bounds, format=format, file=file, attributes=attributes, **source)
        | scan.metadata
        | (more or {})
    )
    fields = {name: Field(column.dtype.name, column.shape) for name, column in first.named().items()}
    schema = Schema(
        observation=fields if isinstance(first.observations, dict) else fields["observation"],
        action=action,
        reward=Field(reward_dtype(first.rewards)),
        extra={name: Field(column.dtype.name, column.shape) for name, column in first.extra.items()},
        metadata=metadata,
    )
    return Source(format, schema, _episodes(recording, count, scan, bad), metadata, episodes, bad, messages)


def _why(bad: BadEpisodes) -> str:
    return f" that can be used: {next(iter(bad.skipped.values())).why}" if bad.skipped else ""


def _check_same(first: Recording, recording: Recording) -> None:
    """Raise `InvalidInput` if columns of a recording differ in length, or if its fields, dtypes or shapes differ from the first
    recording's.
    """
    same_length(recording.actions, recording.rewards, *recording.extra.values())
    check_scalar_rows(recording.rewards)
    steps = recording.actions.rows
    for kind, named, expected in (("observations", recording.named(), first.named()), ("extras", recording.extra, first.extra)):
        if named.keys() != expected.keys():
            raise InvalidInput(
                f"{recording.actions.file}: {recording.actions.key!r} comes with the {kind} {', '.join(named) or 'none'}, "
                f"the first episode with {', '.join(expected) or 'none'}",
                hint="all episodes need the same fields",
            )
    for column in recording.named().values():
        if column.rows not in (steps, steps + 1):
            raise InvalidInput(
                f"{column.file}: {column.key!r} has {column.rows} rows and {recording.actions.key!r} has {steps}",
                hint="an episode of T actions has T+1 observations (T where the final one is missing)",
            )
    pairs = [(recording.actions, first.actions), (recording.rewards, first.rewards)]
    pairs += [(column, first.named()[name]) for name, column in recording.named().items()]
    pairs += [(column, first.extra[name]) for name, column in recording.extra.items()]
    for column, model in pairs:
        if (column.shape, column.dtype) != (model.shape, model.dtype):
            raise InvalidInput(
                f"{column.file}: {column.key!r} holds {column.dtype} {column.shape} and {model.key!r} {model.dtype} {model.shape} per row",
                hint="all episodes need the same dtype and shape",
            )
        if column.rows * column.row_bytes > MAX_EPISODE_BYTES:
            raise InvalidInput(
                f"{column.file}: {column.key!r} is one episode of {column.rows * column.row_bytes:,} bytes",
                hint=f"an episode may take {MAX_EPISODE_BYTES:,} bytes per array; the header may be damaged",
            )


def _episodes(recording: Callable[[int], Recording | None], count: int, scan: ActionScan, bad: BadEpisodes) -> Iterator[SourceEpisode]:
    for number in range(count):
        if number in bad:
            continue
        try:
            pieces = _pieces(recording(number), number, scan)
        except InvalidInput as error:
            bad.take(number, error)
        else:
            yield from pieces


def _pieces(recording: Recording | None, number: int, scan: ActionScan) -> list[SourceEpisode]:
    """Return the episodes of a recording, one per end."""
    if recording is None:
        return []
    observations = {name: column.read_finite(0, column.rows) for name, column in recording.named().items()}
    actions = scan.convert(recording.actions.read(0, recording.actions.rows))
    rewards = recording.rewards.read_rewards(recording.rewards.read_finite(0, recording.rewards.rows), 0)
    extra = {name: column.read(0, column.rows) for name, column in recording.extra.items()}
    pieces, start = [], 0
    for stop, terminated in recording.ends:
        parts = {name: rows[start : stop + 1] for name, rows in observations.items()}
        pieces.append(
            SourceEpisode(
                observation=parts if isinstance(recording.observations, dict) else parts["observation"],
                action=actions[start:stop],
                reward=rewards[start:stop],
                terminated=terminated,
                extra={name: rows[start:stop] for name, rows in extra.items()},
                number=number,
                metadata=recording.metadata,
            )
        )
        start = stop
    return pieces
