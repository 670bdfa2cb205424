"""The sampler of windows: batches of consecutive steps for sequence models, with mask, time steps and returns-to-go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from offrl_store.arguments import Outputs, as_bytes, extras, padding, single, stacked, whole
from offrl_store.index import Index
from offrl_store.kernels import kernels
from offrl_store.reader import StoreReader
from offrl_store.returns import returns_of, rewards
from offrl_store.rng import stream_id
from offrl_store.sampler import Sampler
from offrl_store.schema import Schema

STREAM = stream_id("windows")


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """B windows of L steps, valid until the next call on the same sampler. Steps before the episode, on the left, are zeros.

    Attributes:
        observation: [B, L, ...] in the field's dtype; a dict of arrays if the schema has several fields.
        action: [B, L, A] floats or [B, L] int64; a dict of arrays if the schema has several fields.
        reward: float32 [B, L].
        mask: float32 [B, L], 1 for a real step.
        timesteps: int64 [B, L], from 1 within the episode, 0 for padding.
        returns_to_go: float32 [B, L], the undiscounted sum of the rewards from the step to the episode's end, also beyond the window.
        terminal: float32 [B, L], 1 only at the last step of a terminated episode.
        index: int64 [B], the row of the last step.
        extra: the requested extras, [B, L, ...].
        dataset: int64 [B], index of the store in a mix; None otherwise.
    """

    observation: Any
    action: Any
    reward: np.ndarray
    mask: np.ndarray
    timesteps: np.ndarray
    returns_to_go: np.ndarray
    terminal: np.ndarray
    index: np.ndarray
    extra: Mapping[str, np.ndarray] = dataclass_field(default_factory=dict)
    dataset: np.ndarray | None = None


class WindowSampler(Sampler[WindowBatch]):
    """Samples windows; their last steps are drawn over the transitions. Batch k is a pure function of (the snapshot, seed, k, arguments).

    The semantics are those of d3rlpy's trajectory slicers. length: L. frame_stack, stack_pad: as in TransitionSampler, at each step.
    episodes, extra, replacement, drop_last, reward, out (by the names of WindowBatch): as in TransitionSampler. rows: rows of last steps.
    Raises InvalidInput and EmptyStore.
    """

    def __init__(
        self,
        store: StoreReader,
        *,
        batch_size: int,
        length: int,
        seed: int,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        episodes: Any = None,
        extra: Sequence[str] = (),
        replacement: bool = True,
        drop_last: bool = True,
        reward: Any = None,
        out: Any = None,
        rows: Any = None,
        stream: int = STREAM,
    ) -> None:
        self.length = whole(length, "length", 1, 1 << 31)
        self.frame_stack = whole(frame_stack, "frame_stack", 1, 1 << 16)
        self._repeat_first = padding(stack_pad)
        self.schema: Schema = store.schema
        self._extra = extras(self.schema, extra)
        index = Index(store, episodes)
        super().__init__(
            store, index, batch_size=batch_size, seed=seed, stream=stream, replacement=replacement, drop_last=drop_last, rows=rows
        )
        outputs = Outputs(out)
        self._reward = reward
        self._build(store, index, outputs)
        outputs.finish()
        self._check()

    def _build(self, store: StoreReader, index: Index, outputs: Outputs) -> None:
        """Make the arrays of the batch and the kernel that fills them."""
        shape = (self.batch_size, self.length)
        parts: dict[str, Any] = {name: outputs.take(name, None, shape, "f4") for name in ("reward", "mask", "returns_to_go", "terminal")}
        parts["timesteps"] = outputs.take("timesteps", None, shape, "i8")
        parts["index"] = outputs.take("index", None, shape[:1], "i8")
        reward = rewards(store, self._reward)
        kernel = kernels().Windows(
            *index.kernel,
            reward,
            returns_of(reward, index.records, 1.0),
            parts["reward"],
            parts["mask"],
            parts["returns_to_go"],
            parts["terminal"],
            parts["timesteps"],
            parts["index"],
        )
        roles: dict[str, dict[Any, np.ndarray]] = {"observation": {}, "action": {}, "extra": {}}
        for column in self.schema.columns:
            role, field = column.role, column.field
            if role not in roles or (role == "extra" and column.key not in self._extra):
                continue
            rows, k = store.column(column.name), self.frame_stack if role == "observation" else 1
            is_whole = role == "action" and field.dtype.kind in "iub"
            out = outputs.take(role, column.key, (*shape, *stacked(field, k)), np.dtype("i8") if is_whole else field.dtype)
            roles[role][column.key] = out
            if is_whole and field.dtype.itemsize < 8:
                kernel.add_int64(rows.reshape(len(rows), -1), out.reshape(self.batch_size, -1))
            else:
                kernel.add_copy(as_bytes(rows), as_bytes(out), k, self._repeat_first)
        self._kernel = kernel
        self._batch = WindowBatch(observation=single(roles["observation"]), action=single(roles["action"]), extra=roles["extra"], **parts)
