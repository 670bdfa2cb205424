"""The transitions that a sampler may draw, and the tables with which the kernels find the episode of a transition number."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.reader import StoreReader


class Index:
    """The transitions of some episodes, numbered from 0 in the order of the episodes.

    Args:
        episodes: numbers of the episodes, or an EpisodeList (default all); a repeated one counts twice.
        next_action: leave out the last transition of a truncated episode, which has no next action.

    Attributes: table, guide, shift (see ``_gather_py.Gatherer``); records: those of the episodes with
    transitions; total: number of transitions; oldest: the lowest number of these episodes since the store began.

    Raises InvalidInput, EmptyStore.
    """

    def __init__(self, store: StoreReader, episodes: Any = None, next_action: bool = False) -> None:
        records = store.episode_table
        numbers = np.arange(len(records)) if episodes is None else episode_numbers(store, episodes)
        if episodes is not None:
            records = records[numbers]
        steps, terminated = records["steps"], (records["flags"] & layout.TERMINATED) != 0
        cut = ~terminated & (next_action | ((records["flags"] & layout.FINAL_MISSING) != 0))
        limit = steps - cut
        keep = limit > 0
        if not keep.any():
            raise EmptyStore(
                "there is no transition to sample",
                hint=f"{len(records)} episodes were given; a truncated episode of one step without its final observation has none",
            )
        self.oldest = store.first + int(numbers[keep].min())
        limit = limit[keep]
        table = np.zeros((len(limit) + 1, 4), np.int64)
        np.cumsum(limit, out=table[1:, 0])
        table[:-1, 1], table[:-1, 2] = records["first_row"][keep], limit
        table[:-1, 3] = np.where(terminated, steps, -steps)[keep]
        self.records, self.table, self.total = records[keep], table, int(table[-1, 0])
        self._without = records[~keep]  # episodes without a transition to sample
        # Buckets are not longer than the mean episode, so a look-up searches less than one step on average for any lengths.
        self.shift = max((self.total // len(limit)).bit_length() - 1, 0)
        buckets = np.arange(((self.total - 1) >> self.shift) + 1, dtype=np.int64) << self.shift
        self.guide = (np.searchsorted(table[:-1, 0], buckets, side="right") - 1).astype(np.int32)

    def numbers_of(self, rows: Any) -> np.ndarray:
        """Return the numbers of the transitions at these rows, int64, in their order, without last steps that ``next_action`` excludes.

        Raises InvalidInput for a row that is not a transition of the episodes, EmptyStore if no transition remains.
        """
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise InvalidInput("rows must be a list of row numbers, such as batch.index or store.episodes.transitions")
        rows = rows.astype(np.int64)
        episode, t = _find(self.table[:-1, 1], self.records["steps"], rows)
        lost = episode < 0
        if lost.any() and len(self._without):
            lost[lost] = _find(self._without["first_row"], self._without["steps"], rows[lost])[0] < 0
        if lost.any():
            raise InvalidInput(
                f"row {rows[lost][0]} is not a transition of the episodes to sample from", hint="pass rows of the same episodes"
            )
        numbers = (self.table[episode, 0] + t)[(episode >= 0) & (t < self.table[episode, 2])]
        if not len(numbers):
            raise EmptyStore("there is no transition to sample", hint=f"{len(rows)} rows were given")
        return numbers

    @property
    def longest(self) -> int:
        """Number of transitions of the longest episode."""
        return int(self.table[:-1, 2].max())

    @property
    def kernel(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The first arguments of a kernel."""
        return self.table, self.guide, self.shift


def _find(first: np.ndarray, steps: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the episode of each row (-1 if the row is not a step of any), and the time step in it."""
    order = np.argsort(first, kind="stable")
    episode = order[np.maximum(np.searchsorted(first[order], rows, side="right") - 1, 0)]
    t = rows - first[episode]
    return np.where((t >= 0) & (t < steps[episode]), episode, -1), t


def episode_numbers(store: StoreReader, episodes: Any) -> np.ndarray:
    """Return ``episodes`` as int64. Raises InvalidInput for a number that is not in the store."""
    other = getattr(episodes, "store", store)
    if other is not store and getattr(other, "path", None) != store.path:
        raise InvalidInput(f"the episodes given are of {getattr(other, 'path', other)}, not of {store.path}")
    records, numbers = store.episode_table, np.asarray(episodes)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise InvalidInput("episodes must be a list of episode numbers")
    if numbers.size and (numbers.min() < 0 or numbers.max() >= len(records)):
        raise InvalidInput(
            f"episode {int(numbers.min() if numbers.min() < 0 else numbers.max())} is not in the store, which has {len(records)}"
        )
    return numbers.astype(np.int64)
