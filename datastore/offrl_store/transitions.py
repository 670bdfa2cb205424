"""Single transitions as in d3rlpy: a lazy list, each transition linked to the previous and the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store.errors import InvalidInput
from offrl_store.reader import StoreReader
from offrl_store.schema import Episode


@dataclass(frozen=True, eq=False)
class Transition:
    """Step ``t`` of episode ``number``. Values are read from the episode on demand, as views if possible."""

    episode: Episode
    number: int
    t: int

    @property
    def observation(self) -> Any:
        return _each(self.episode.observation, lambda rows: rows[self.t])

    @property
    def action(self) -> Any:
        return _each(self.episode.action, lambda rows: rows[self.t])

    @property
    def reward(self) -> float:
        return float(self.episode.reward[self.t])

    @property
    def next_observation(self) -> Any:
        """The observation after the action; zeros if the final one is missing."""
        return _each(self.episode.observation, lambda rows: rows[self.t + 1] if self.t + 1 < len(rows) else np.zeros_like(rows[0]))

    @property
    def next_action(self) -> Any:
        """The action after the next; zeros after the last step."""
        return _each(self.episode.action, lambda rows: rows[self.t + 1] if self.t + 1 < len(rows) else np.zeros_like(rows[0]))

    @property
    def terminal(self) -> bool:
        """Whether the task ended with this step."""
        return self.episode.terminated and self.t == self.episode.steps - 1

    @property
    def rewards_to_go(self) -> np.ndarray:
        """The rewards from this step to the episode's end."""
        return self.episode.reward[self.t :]

    @property
    def next(self) -> Transition | None:
        """The next transition; None after the last one that can be sampled."""
        lost = self.episode.final_missing and not self.episode.terminated
        return Transition(self.episode, self.number, self.t + 1) if self.t + 1 < self.episode.steps - lost else None

    @property
    def previous(self) -> Transition | None:
        """The previous transition; None before the first of the episode."""
        return Transition(self.episode, self.number, self.t - 1) if self.t else None

    def __repr__(self) -> str:
        return f"Transition(episode={self.number}, t={self.t}, reward={self.reward:.6g}, terminal={self.terminal})"


class TransitionList(Sequence):
    """Transitions of a store as a sequence: an index returns a Transition, a slice another list. Samplers accept it as ``rows``."""

    def __init__(self, store: StoreReader, rows: np.ndarray) -> None:
        self.store, self.rows = store, rows  # int64, the rows of the transitions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TransitionList(self.store, self.rows[index])
        row = int(self.rows[index])
        number = int(np.searchsorted(self.store.episode_table["first_row"], row, side="right")) - 1
        return Transition(self.store.read_episode(number), number, row - int(self.store.episode_table["first_row"][number]))

    @property
    def numbers(self) -> np.ndarray:
        """The episode of each transition, int64."""
        return np.searchsorted(self.store.episode_table["first_row"], self.rows, side="right").astype(np.int64) - 1

    @property
    def steps(self) -> np.ndarray:
        """The time step of each transition within its episode, from 0, int64."""
        return self.rows - self.store.episode_table["first_row"][self.numbers]

    def take(self, indices: Any) -> TransitionList:
        """Return the list of the transitions at these indices. Raises InvalidInput."""
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(self))):
            raise InvalidInput(f"indices must be whole numbers from 0 to {len(self) - 1}")
        return TransitionList(self.store, self.rows[indices.astype(np.int64)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the rows."""
        return np.array(self.rows, dtype) if copy is not False else self.rows

    def __repr__(self) -> str:
        return f"<{len(self)} transitions of {self.store.path}>"


def transition_rows(store: StoreReader, numbers: np.ndarray) -> np.ndarray:
    """Return the rows of all transitions of these episodes that can be sampled, in their order, int64."""
    records = store.episode_table[numbers]
    count = records["steps"] - (records["flags"] == layout.FINAL_MISSING)
    starts = np.cumsum(count) - count
    return np.arange(int(count.sum()), dtype=np.int64) + np.repeat(records["first_row"] - starts, count)


def _each(value: Any, take: Callable[[np.ndarray], Any]) -> Any:
    return {name: take(rows) for name, rows in value.items()} if isinstance(value, Mapping) else take(value)
