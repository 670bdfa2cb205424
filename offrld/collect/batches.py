"""The batches of a collector: steps as NumPy arrays, and their trajectories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl.errors import InvalidInput

Fields = np.ndarray | dict[str, np.ndarray]
ABSENT = -1  # the trajectory number of an absent frame


@dataclass(frozen=True, eq=False)
class CollectedBatch:
    """Steps in the order in which they were made: ``[T, ...]`` of one environment, ``[N, T, ...]`` of N side by side.

    The environment is not reset between two batches: a trajectory may start in one and end in a later one. The observation after a step
    belongs to the step, also if the next row is the first of a new trajectory.

    Attributes:
        observation, next_observation: before and after the step; a dict for Dict spaces (dots join nested names).
        action: as the environment took it.
        reward: float32.
        terminated, truncated, done: bool; done is either of them. A cut at the longest length is a truncation.
        traj_ids: int64; trajectories are numbered from 0, over all environments, workers and batches; -1 for an absent frame.
        mask: bool, whether the frame is present: false in the padding of split trajectories and in batches that ended early.
    """

    observation: Fields
    action: np.ndarray
    reward: np.ndarray
    next_observation: Fields
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    traj_ids: np.ndarray
    mask: np.ndarray

    @property
    def frames(self) -> int:
        """Number of frames that are present."""
        return int(np.count_nonzero(self.mask))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(T,)``, ``(N, T)``, or after a split (trajectories, longest)."""
        return self.reward.shape

    def flat(self) -> CollectedBatch:
        """The present frames along one axis, environment after environment."""
        mask = self.mask
        return self.map(lambda array: array[mask])

    def split(self) -> CollectedBatch:
        """See `split_trajectories`."""
        return split_trajectories(self)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> CollectedBatch:
        """Apply ``change`` to every array."""
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            changed[field.name] = {name: change(array) for name, array in value.items()} if isinstance(value, dict) else change(value)
        return CollectedBatch(**changed)

    def to_torch(self, device: Any = "cpu") -> dict[str, Any]:
        """Return the arrays as tensors by name, a dict of them for Dict observations."""
        import torch

        def tensor(array: np.ndarray) -> Any:
            return torch.from_numpy(array).to(device)

        return {
            field.name: {name: tensor(array) for name, array in value.items()} if isinstance(value, dict) else tensor(value)
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)
        }

    def __repr__(self) -> str:
        def shown(value: Fields) -> str:
            if isinstance(value, dict):
                return "{" + ", ".join(f"{name}: {shown(array)}" for name, array in value.items()) + "}"
            return f"{value.dtype}{list(value.shape)}"

        parts = ", ".join(f"{field.name} {shown(getattr(self, field.name))}" for field in dataclasses.fields(self))
        return f"CollectedBatch({self.frames} frames: {parts})"


def split_trajectories(batch: CollectedBatch) -> CollectedBatch:
    """Make each piece of a trajectory a row, ``[pieces, longest, ...]``; zeros after its end, and ``mask`` false.

    The rows have the order of their trajectories' numbers. A trajectory that spans two batches stays in two pieces.
    """
    flat = batch.flat()
    ids = flat.traj_ids
    order = np.argsort(ids, kind="stable")
    numbers, starts, lengths = np.unique(ids[order], return_index=True, return_counts=True)
    longest = int(lengths.max()) if len(lengths) else 0
    piece = np.repeat(np.arange(len(numbers)), lengths)
    place = np.arange(len(ids)) - np.repeat(starts, lengths)

    def padded(array: np.ndarray) -> np.ndarray:
        out = np.zeros((len(numbers), longest, *array.shape[1:]), array.dtype)
        out[piece, place] = array[order]
        return out

    rows = flat.map(padded)
    return dataclasses.replace(rows, traj_ids=np.where(rows.mask, rows.traj_ids, ABSENT))


def concatenate(batches: Sequence[CollectedBatch], axis: int) -> CollectedBatch:
    """Join batches along an axis of their common shape."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: joined([value[name] for value in values]) for name in values[0]}
        return np.concatenate(values, axis)

    names = [field.name for field in dataclasses.fields(CollectedBatch)]
    return CollectedBatch(**{name: joined([getattr(batch, name) for batch in batches]) for name in names})


def complete_trajectories(batches: Iterable[CollectedBatch], count: int) -> Iterator[CollectedBatch]:
    """Yield batches of ``count`` complete trajectories each, in the order of their ends, ``[count, longest, ...]`` with a mask.

    Trajectories that do not end within ``batches`` are left out.
    """
    pieces: dict[int, list[CollectedBatch]] = {}
    ready: list[CollectedBatch] = []
    for batch in batches:
        flat = batch.flat()
        for number in dict.fromkeys(flat.traj_ids.tolist()):
            mine = flat.traj_ids == number
            piece = flat.map(lambda array: array[mine])  # noqa: B023  used at once
            pieces.setdefault(number, []).append(piece)
            if piece.done[-1]:
                ready.append(concatenate(pieces.pop(number), 0))
        while len(ready) >= count:
            yield split_trajectories(concatenate(ready[:count], 0))
            del ready[:count]


class Rows:
    """The arrays of a batch while it is filled, one time step after the other.

    Args:
        shape: ``(T,)`` or ``(N, T)``.
        fields: observation field -> its schema field, "" for a plain observation.
        action: its schema field.
    """

    def __init__(self, shape: tuple[int, ...], fields: dict[str, Any], action: Any) -> None:
        self.observation = {name: np.zeros((*shape, *field.shape), field.dtype) for name, field in fields.items()}
        self.next_observation = {name: np.zeros_like(array) for name, array in self.observation.items()}
        self.action = np.zeros((*shape, *action.shape), action.dtype)
        self.reward = np.zeros(shape, np.float32)
        self.terminated, self.truncated = np.zeros(shape, bool), np.zeros(shape, bool)
        self.traj_ids = np.full(shape, ABSENT, np.int64)
        self.mask = np.zeros(shape, bool)

    def take_action(self, at: Any, action: Any) -> None:
        """Store actions; raises `InvalidInput` if the dtype of the environment's actions does not hold them."""
        self.action[at] = action
        if not np.array_equal(self.action[at], action):
            raise InvalidInput(
                f"the action {np.asarray(action).tolist()} does not fit {self.action.dtype.name}, the dtype of the environment's actions",
                hint="let the policy give actions of the environment's space",
            )

    def batch(self) -> CollectedBatch:
        """Return the batch; it shares the arrays."""

        def fields(arrays: dict[str, np.ndarray]) -> Fields:
            return arrays.get("", arrays)

        return CollectedBatch(
            observation=fields(self.observation),
            action=self.action,
            reward=self.reward,
            next_observation=fields(self.next_observation),
            terminated=self.terminated,
            truncated=self.truncated,
            done=self.terminated | self.truncated,
            traj_ids=self.traj_ids,
            mask=self.mask,
        )


__all__ = ["ABSENT", "CollectedBatch", "Rows", "complete_trajectories", "concatenate", "split_trajectories"]
