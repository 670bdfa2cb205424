"""Sources that keep every episode in arrays of its own: what Minari and d3rlpy v2 have in common.

A recorded episode may hold several ends (a task that goes on after a success); it is then given out in pieces that share the observation at
the seam. Every recorded episode is in memory once, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl_store import Episode, Field, Schema
from offrl_store.errors import EmptyStore, InvalidInput

from .columns import Column, check_scalar_rows, reward_dtype, same_length
from .source import Source, make_metadata
from .spaces import ActionScan, ActionSpace


@dataclass(frozen=True)
class Recording:
    """One recorded episode.

    Attributes:
        observations: one column or named ones, T+1 rows, or T where the final observation is missing.
        actions, rewards: T rows.
        ends: ``(stop, terminated)`` of each end in it, rising; the last one is T.
    """

    observations: Column | dict[str, Column]
    actions: Column
    rewards: Column
    ends: list[tuple[int, bool]]

    def named(self) -> dict[str, Column]:
        return self.observations if isinstance(self.observations, dict) else {"observation": self.observations}


def ends_of(terminated: np.ndarray, truncated: np.ndarray, key: str, messages: list[str]) -> list[tuple[int, bool]]:
    """The ends of a recording from its flags ``[T]``; its last row is an end in any case, and a cut where neither flag is set."""
    at = sorted({*np.flatnonzero(terminated | truncated).tolist(), len(terminated) - 1})
    if len(at) > 1:
        messages.append(f"{key} goes on after an end at step {at[0]}: given out as {len(at)} episodes")
    return [(int(row) + 1, bool(terminated[row])) for row in at]


def episodic_source(
    recordings: Callable[[], Iterator[Recording]], count: int, *, file: str, format: str, env_id: str | None, space: ActionSpace | None,
    attributes: dict[str, Any], messages: list[str], discrete: bool | None = None, **source: Any,
) -> Source:  # fmt: skip
    """The recordings as a `Source`; ``recordings`` gives them anew each time it is called. They are gone through once for their actions."""
    first: Recording | None = None
    scan: ActionScan | None = None
    episodes = 0
    for recording in recordings():
        if first is None or scan is None:
            first, scan = recording, ActionScan(recording.actions, space, discrete)
        _check_same(first, recording)
        scan.add(recording.actions, 0, recording.actions.read(0, recording.actions.rows))
        episodes += len(recording.ends)
    if first is None or scan is None:
        raise EmptyStore(f"{file} holds no steps in its {count} episodes", hint="give a dataset with at least one step")
    action, bounds = scan.field(messages)
    metadata = make_metadata(env_id=env_id, bounds=bounds, format=format, file=file, attributes=attributes, **source)
    fields = {name: Field(column.dtype.name, column.shape) for name, column in first.named().items()}
    schema = Schema(
        observation=fields if isinstance(first.observations, dict) else fields["observation"],
        action=action, reward=Field(reward_dtype(first.rewards)), metadata=metadata,
    )  # fmt: skip
    return Source(format, schema, _episodes(recordings, scan, reward_dtype(first.rewards)), metadata, episodes, messages)


def _check_same(first: Recording, recording: Recording) -> None:
    """Lengths within a recording, and the same fields, dtypes and shapes as in the first one."""
    same_length(recording.actions, recording.rewards)
    check_scalar_rows(recording.rewards)
    steps, named, expected = recording.actions.rows, recording.named(), first.named()
    if named.keys() != expected.keys():
        raise InvalidInput(
            f"{recording.actions.file}: {recording.actions.key!r} comes with the observations {', '.join(named)}, "
            f"the first episode with {', '.join(expected)}",
            hint="all episodes need the same fields",
        )
    for column in named.values():
        if column.rows not in (steps, steps + 1):
            raise InvalidInput(
                f"{column.file}: {column.key!r} has {column.rows} rows and {recording.actions.key!r} has {steps}",
                hint="an episode of T actions has T+1 observations (T where the final one is missing)",
            )
    pairs = [(named[name], expected[name]) for name in named] + [(recording.actions, first.actions), (recording.rewards, first.rewards)]
    for column, model in pairs:
        if (column.shape, column.dtype) != (model.shape, model.dtype):
            raise InvalidInput(
                f"{column.file}: {column.key!r} holds {column.dtype} {column.shape} and {model.key!r} {model.dtype} {model.shape} per row",
                hint="all episodes need the same dtype and shape",
            )


def _episodes(recordings: Callable[[], Iterator[Recording]], scan: ActionScan, reward: str) -> Iterator[Episode]:
    for recording in recordings():
        observations = {name: column.read_finite(0, column.rows) for name, column in recording.named().items()}
        actions = scan.convert(recording.actions.read(0, recording.actions.rows))
        rewards = recording.rewards.read_finite(0, recording.rewards.rows).reshape(len(actions)).astype(reward, copy=False)
        start = 0
        for stop, terminated in recording.ends:
            parts = {name: rows[start : stop + 1] for name, rows in observations.items()}
            yield Episode(
                observation=parts if isinstance(recording.observations, dict) else parts["observation"],
                action=actions[start:stop], reward=rewards[start:stop], terminated=terminated,
            )  # fmt: skip
            start = stop
