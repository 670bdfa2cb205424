"""Frame stacks outside of samplers: a lazy list of stacks over frames that are stored once, and the conversion of stacks to frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from offrl_store.arguments import padding, whole
from offrl_store.errors import InvalidEpisode, InvalidInput
from offrl_store.index import episode_numbers
from offrl_store.schema import Episode
from offrl_store.store import EpisodeStore


class FrameStacks(Sequence):
    """A lazy list of the stack of ``k`` frames at each step, oldest first, [k*C, H, W], in the layout of d4rl-atari's ``stack=True``.

    A stack is a read-only view of the store's rows, made on demand (150 bytes each). At the first k-1 steps of an episode it is a padded
    copy, and in a bounded store always a copy. There is one item per step, in the order of ``episodes`` (default all); a slice returns
    another list. column: the observation's column. stack_pad: "zero", or "first" to repeat the first frame. Raises InvalidInput.
    """

    def __init__(
        self, store: EpisodeStore, k: int = 4, *, column: str = "observation", stack_pad: str = "zero", episodes: Any = None
    ) -> None:
        self.k, self._repeat, self._store = whole(k, "k", 1, 1 << 16), padding(stack_pad), store
        if not any(c.name == column and c.role == "observation" and c.field.shape for c in store.schema.columns):
            raise InvalidInput(f"{column!r} is not an observation with frames to stack")
        self._rows = store.column(column)
        numbers = np.arange(len(store)) if episodes is None else episode_numbers(store, episodes)
        records = store.episode_table[numbers]
        self._first, self._starts = records["first_row"], np.cumsum(records["steps"]) - records["steps"]
        self._oldest = store.first + int(numbers.min()) if len(numbers) else store.first
        self._range = range(int(records["steps"].sum()))

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = object.__new__(FrameStacks)
            part.__dict__.update(self.__dict__, _range=self._range[index])
            return part
        step = self._range[index]
        e = int(np.searchsorted(self._starts, step, side="right")) - 1
        t = step - int(self._starts[e])
        end = int(self._first[e]) + t + 1
        frames = self._rows[max(end - self.k, end - t - 1) : end]
        if len(frames) < self.k:
            missing = self.k - len(frames)
            before = np.repeat(frames[:1], missing, axis=0) if self._repeat else np.zeros((missing, *frames.shape[1:]), frames.dtype)
            frames = np.concatenate([before, frames])
        stack = frames.reshape(-1, *frames.shape[2:])
        if self._store.limit:
            stack = stack.copy()
            self._store.check_alive(self._oldest)
        return stack

    def __repr__(self) -> str:
        return f"<{len(self)} stacks of {self.k} frames of {self._store.path}>"


def unstack(episode: Episode, k: int, *, field: str | None = None, stack_pad: str = "zero") -> Episode:
    """Reduce stacks of ``k`` frames [T+1, k*C, ...], as a frame-stacking environment returns them, to their newest frames [T+1, C, ...].

    A sampler with ``frame_stack=k`` and this ``stack_pad`` restores the same stacks, from a k-th of the bytes. field: the name of the
    observation field, if there are several. Raises InvalidEpisode if a stack is not the one before shifted by a frame, or if the first one
    has another padding, because data would be lost.
    """
    k, repeat = whole(k, "k", 1, 1 << 16), padding(stack_pad)
    stacks = np.asarray(episode.observation if field is None else episode.observation[field])
    if stacks.ndim < 2 or stacks.shape[1] % k:
        raise InvalidEpisode(f"observations of shape {stacks.shape} are not stacks of {k} frames")
    frames = stacks.reshape(len(stacks), k, stacks.shape[1] // k, *stacks.shape[2:])
    newest = np.ascontiguousarray(frames[:, -1])
    moved = (frames[1:, :-1] == frames[:-1, 1:]).reshape(len(stacks) - 1, -1).all(1)
    first = frames[0, :-1] == (frames[0, -1] if repeat else np.zeros_like(frames[0, -1]))
    if not first.all():
        raise InvalidEpisode(
            f"the first stack is not padded with {'its first frame' if repeat else 'zeros'}",
            hint='the other stack_pad may fit: "zero" or "first"',
        )
    if not moved.all():
        raise InvalidEpisode(
            f"the stack of row {int(np.argmin(moved)) + 1} is not the one before, shifted by one frame",
            hint="was a frame skipped, or an episode joined to the next?",
        )
    return replace(episode, observation=newest if field is None else {**episode.observation, field: newest})
