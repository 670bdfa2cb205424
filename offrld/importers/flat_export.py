"""The common part of the flat exports (`d4rl_export`, `npz_export`): the arrays of all steps, and the declaration of the action space.

Both formats hold ``next_observations`` if the store has final observations, and ``next_observations_known`` if only some are known. Extra
fields become ``infos/NAME``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from offrl_store import EpisodeStore, Field
from offrl_store.errors import InvalidInput
from offrld.importers.columns import BLOCK_BYTES
from offrld.importers.spaces import kind_of


@dataclass(frozen=True)
class FlatColumn:
    """One array of a flat export: its key, the dtype and shape of a row, and the rows of episode ``i``, ``[T, ...]``."""

    key: str
    field: Field
    rows: Callable[[int], np.ndarray]


def flat_columns(store: EpisodeStore) -> list[FlatColumn]:
    """Return the arrays of a flat export, in the order of writing. Raises `InvalidInput` for several action fields."""
    schema = store.schema
    if not isinstance(schema.action, Field):
        raise InvalidInput(
            f"the dataset has several action fields ({', '.join(schema.action)})", hint="flat formats hold one; export it as 'store'"
        )
    episodes = store.episodes
    missing = store.episode_table["flags"] & 2 != 0  # FINAL_MISSING
    columns = []
    named = (
        {"": schema.observation}
        if isinstance(schema.observation, Field)
        else {f"/{name}": each for name, each in schema.observation.items()}
    )

    def observation(i: int, name: str) -> np.ndarray:
        value = episodes[i].observation
        return value[name[1:]] if name else value

    def before(i: int, name: str) -> np.ndarray:
        return observation(i, name)[: episodes[i].steps]

    def extra(i: int, name: str) -> np.ndarray:
        return episodes[i].extra[name]

    def following(i: int, name: str) -> np.ndarray:
        rows, steps = observation(i, name), episodes[i].steps
        return rows[1:] if len(rows) > steps else np.concatenate([rows[1:], np.zeros_like(rows[:1])])

    def known(i: int) -> np.ndarray:
        flags = np.ones(episodes[i].steps, bool)
        flags[-1] = not missing[i]
        return flags

    def ended(i: int, terminated: bool) -> np.ndarray:
        flags = np.zeros(episodes[i].steps, bool)
        flags[-1] = episodes[i].terminated == terminated
        return flags

    flag = Field("bool")
    for name, field in named.items():
        columns.append(FlatColumn(f"observations{name}", field, partial(before, name=name)))
    columns.append(FlatColumn("actions", schema.action, lambda i: episodes[i].action))
    columns.append(FlatColumn("rewards", schema.reward, lambda i: episodes[i].reward))
    columns.append(FlatColumn("terminals", flag, lambda i: ended(i, True)))
    columns.append(FlatColumn("timeouts", flag, lambda i: ended(i, False)))
    if not missing.all():
        for name, field in named.items():
            columns.append(FlatColumn(f"next_observations{name}", field, partial(following, name=name)))
        if missing.any():
            columns.append(FlatColumn("next_observations_known", flag, known))
    for name, field in schema.extra.items():
        columns.append(FlatColumn(f"infos/{name}", field, partial(extra, name=name)))
    return columns


def joined(column: FlatColumn, count: int) -> Iterator[np.ndarray]:
    """Yield the rows of all episodes in blocks.

    Short episodes share a block, so that the cost of writing depends on bytes, not on episodes.
    """
    parts: list[np.ndarray] = []
    size = 0
    for i in range(count):
        parts.append(column.rows(i))
        size += parts[-1].nbytes
        if size >= BLOCK_BYTES:
            yield np.concatenate(parts)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts)


def declared(store: EpisodeStore) -> dict[str, Any]:
    """Return the values beside the flat arrays from which an import restores the action space and the environment."""
    action, metadata = store.schema.action, store.metadata
    values: dict[str, Any] = {"env_id": metadata["env_id"]} if isinstance(metadata.get("env_id"), str) else {}
    if metadata.get("bounds") == "inferred":
        return values
    if action.discrete:
        values["action_n"] = action.n
    else:
        bounds = {"action_low": action.low, "action_high": action.high}
        values |= {key: np.asarray(bound, np.float64) for key, bound in bounds.items() if bound is not None}
        if kind := kind_of(metadata):
            values["action_kind"] = kind
    return values
