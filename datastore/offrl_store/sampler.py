"""The transitions sampler: batches drawn uniformly over the transitions of a store, made while sampling from rows stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import format as layout
from .errors import EmptyStore, InvalidInput
from .kernels import kernels
from .rng import stream_id
from .schema import Column, Field, Schema

if TYPE_CHECKING:
    from .store import EpisodeStore

STREAM = stream_id("transitions")
SHARED_BLOCK_BYTES = 1024  # from this row size on, observation and next observation share one block: fewer bytes to copy


@dataclass(frozen=True, eq=False)
class Batch:
    """B transitions, valid until the next call on the same sampler (the arrays are filled again).

    observation, next_observation [B, ...] in the field's dtype, action [B, A] (floats) or [B] int64, each a dict of arrays where the
    schema has several fields; reward (discounted n-step sum), terminal (0 or 1), discount (gamma^steps used) float32 [B]; index int64 [B],
    the row; next_action like action (None unless asked for); extra: the extras asked for.
    """

    observation: Any
    action: Any
    reward: np.ndarray
    next_observation: Any
    terminal: np.ndarray
    discount: np.ndarray
    index: np.ndarray
    next_action: Any = None
    extra: Mapping[str, np.ndarray] = dataclass_field(default_factory=dict)


class TransitionSampler:
    """Uniform transitions with replacement. Batch k is a pure function of (the store's snapshot, seed, k, the arguments).

    n_steps, gamma: the reward is the sum of gamma^i r over at most n steps, ending at the episode's end.
    frame_stack, stack_pad: each observation is the last k frames along its first axis, oldest first; the time before the episode
    is zeros ("zero") or its first frame ("first"). A missing final observation is zeros.
    next_action: the action where the return ends, zeros at a terminal; the last transition of a truncated episode, which has none, is not
    sampled.
    episodes: numbers of the episodes to sample from (default all). extra: names of extra fields to add to the batch.
    out: arrays to fill, by the names of Batch; others are allocated once. Each must be writable, of the batch's shape and dtype, and
    contiguous within a sample. Without ``out``, stacked pixels come as two overlapping views of one block.
    Raises InvalidInput and EmptyStore. One sampler serves one thread.
    """

    def __init__(self, store: EpisodeStore, *, batch_size: int, seed: int, n_steps: int = 1, gamma: float = 0.99,
                 frame_stack: int = 1, stack_pad: str = "zero", next_action: bool = False, episodes: Any = None,
                 extra: Sequence[str] = (), out: Any = None) -> None:
        self.batch_size = _whole(batch_size, "batch_size", 1, 1 << 31)
        self.seed = _whole(seed, "seed", 0, (1 << 64) - 1)
        self.n_steps = _whole(n_steps, "n_steps", 1, 1 << 62)
        self.gamma = _number(gamma, "gamma", 0.0, 1.0)
        self.frame_stack = _whole(frame_stack, "frame_stack", 1, 1 << 16)
        if stack_pad not in ("zero", "first"):
            raise InvalidInput(f"stack_pad {stack_pad!r} is unknown", hint='use "zero" or "first"')
        self._repeat_first = stack_pad == "first"
        self.schema: Schema = store.schema
        unknown = [name for name in extra if name not in self.schema.extra]
        if unknown:
            raise InvalidInput(f"there is no extra field {unknown[0]!r}", hint="the store has " + (", ".join(self.schema.extra) or "none"))
        index = _episode_index(store.episode_table, episodes, next_action)
        self.transition_count = int(index[0][-1, 0])
        self._step = 0
        self._given = dict(out or {})
        self._build(store, index, next_action, tuple(extra))
        if self._given:
            raise InvalidInput(f"out has no use for {next(iter(self._given))!r}", hint="names are those of Batch")

    def _build(self, store: EpisodeStore, index: tuple[np.ndarray, np.ndarray, int], next_action: bool, extra: tuple[str, ...]) -> None:
        """Make the arrays of the batch and the kernel that fills them."""
        n = self.batch_size
        by_role = {role: [c for c in self.schema.columns if c.role == role] for role in ("observation", "action", "extra")}
        scalars = {name: self._out(name, None, (n,), np.dtype(dtype)) for name, dtype in
                   (("reward", "f4"), ("terminal", "f4"), ("discount", "f4"), ("index", "i8"))}
        powers = self.gamma ** np.arange(min(self.n_steps, int(index[0][:-1, 2].max())) + 1, dtype=np.float64)
        kernel = kernels().Transitions(*index, powers, store.column("reward"), scalars["reward"], scalars["terminal"],
                                       scalars["discount"], scalars["index"])
        observation, after = {}, {}
        for column in by_role["observation"]:
            observation[column.key], after[column.key] = self._add_observation(kernel, store, column)
        action = {column.key: self._add_action(kernel, store, column, "action") for column in by_role["action"]}
        following = {column.key: self._add_action(kernel, store, column, "next_action") for column in by_role["action"] if next_action}
        extras = {}
        for column in by_role["extra"]:
            if column.key in extra:
                extras[column.key] = self._out("extra", column.key, (n, *column.field.shape), column.field.dtype)
                kernel.add_copy(_bytes(store.column(column.name)), _bytes(extras[column.key]), 1, False, False)
        self._kernel = kernel
        self._batch = Batch(observation=_single(observation), action=_single(action), next_observation=_single(after),
                            next_action=_single(following) if next_action else None, extra=extras, **scalars)

    def _add_observation(self, kernel: Any, store: EpisodeStore, column: Column) -> tuple[np.ndarray, np.ndarray]:
        field, k, n = column.field, self.frame_stack, self.batch_size
        source, shape = _bytes(store.column(column.name)), (n, *_stacked(field, k))
        given = any(self._is_given(name, column.key) for name in ("observation", "next_observation"))
        if k > 1 and self.n_steps == 1 and not given and field.row_bytes >= SHARED_BLOCK_BYTES:
            block = _allocate((n, *_stacked(field, k + 1)), field.dtype)
            kernel.add_copy(source, _bytes(block), k + 1, True, self._repeat_first)
            height = block.shape[1] // (k + 1)
            return block[:, :-height], block[:, height:]
        now = self._out("observation", column.key, shape, field.dtype)
        after = self._out("next_observation", column.key, shape, field.dtype)
        kernel.add_copy(source, _bytes(now), k, False, self._repeat_first)
        kernel.add_copy(source, _bytes(after), k, True, self._repeat_first)
        return now, after

    def _add_action(self, kernel: Any, store: EpisodeStore, column: Column, name: str) -> np.ndarray:
        field, at_next, rows = column.field, name == "next_action", store.column(column.name)
        whole = field.dtype.kind in "iub"
        out = self._out(name, column.key, (self.batch_size, *field.shape), np.dtype("i8") if whole else field.dtype)
        # The row after the last action is stored as zeros: a next action at a terminal needs no case of its own.
        if whole and field.dtype.itemsize < 8:
            kernel.add_int64(rows.reshape(len(rows), -1), out.reshape(self.batch_size, -1), at_next)
        else:
            kernel.add_copy(_bytes(rows), _bytes(out), 1, at_next, False)
        return out

    def _is_given(self, name: str, key: str | None) -> bool:
        if name not in self._given or key is None:
            return name in self._given
        if not isinstance(self._given[name], Mapping):
            raise InvalidInput(f"out {name} is one array, the schema has several fields", hint="give a dict of arrays")
        return key in self._given[name]

    def _out(self, name: str, key: str | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array of ``out`` for this part of the batch, checked, or a new one."""
        if not self._is_given(name, key):
            return _allocate(shape, dtype)
        array = self._given.pop(name) if key is None else self._given[name][key]
        label = name if key is None else f"{name}[{key!r}]"
        if key is not None:
            self._given[name] = {other: value for other, value in self._given[name].items() if other != key}
            if not self._given[name]:
                del self._given[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype or not array.flags.writeable:
            found = f"{array.dtype.name}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidInput(f"out {label} is {found}, due is a writable {dtype.name}{list(shape)}")
        if not array[0].flags.c_contiguous or (array.strides[0] < 0) or (len(shape) == 1 and not array.flags.c_contiguous):
            raise InvalidInput(f"out {label} is not contiguous within a sample")
        return array

    @property
    def step(self) -> int:
        """Number of the batch that ``sample`` gives next."""
        return self._step

    def seek(self, step: int) -> None:
        """Go to batch ``step``: the next ``sample`` gives it."""
        self._step = _whole(step, "step", 0, (1 << 64) - 1)

    def sample(self) -> Batch:
        """The next batch. It is the same object every time, with its arrays filled anew."""
        self._kernel.sample(self.seed, self._step, STREAM)
        self._step += 1
        return self._batch

    def gather(self, numbers: np.ndarray) -> Batch:
        """The batch of these transitions, int64 [B], numbered from 0 over the sampler's episodes. Raises InvalidInput."""
        numbers = np.ascontiguousarray(numbers, np.int64)
        if numbers.shape != (self.batch_size,) or numbers.min() < 0 or numbers.max() >= self.transition_count:
            raise InvalidInput(f"numbers must be {self.batch_size} transition numbers from 0 to {self.transition_count - 1}")
        self._kernel.gather(numbers)
        return self._batch


def _episode_index(records: np.ndarray, episodes: Any, next_action: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """The table and the guide of the kernel (see _kernels_py.Transitions): transition number -> episode at a cost that does not grow."""
    if episodes is not None:
        numbers = np.asarray(episodes)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise InvalidInput("episodes must be a list of episode numbers")
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(records)):
            raise InvalidInput(f"episode {int(numbers.min() if numbers.min() < 0 else numbers.max())} is not in the store, "
                               f"which has {len(records)}")
        records = records[numbers.astype(np.int64)]
    steps, terminated = records["steps"], (records["flags"] & layout.TERMINATED) != 0
    cut = ~terminated & (next_action | ((records["flags"] & layout.FINAL_MISSING) != 0))
    limit = steps - cut
    keep = limit > 0
    if not keep.any():
        raise EmptyStore("there is no transition to sample", hint=f"{len(records)} episodes were given; a truncated episode of one step "
                         "without its final observation has none")
    limit = limit[keep]
    table = np.zeros((len(limit) + 1, 4), np.int64)
    np.cumsum(limit, out=table[1:, 0])
    table[:-1, 1], table[:-1, 2] = records["first_row"][keep], limit
    table[:-1, 3] = np.where(terminated, steps, -1)[keep]
    total = int(table[-1, 0])
    # Buckets no longer than the mean episode: a look-up searches less than one step on average, whatever the lengths.
    shift = max((total // len(limit)).bit_length() - 1, 0)
    buckets = np.arange(((total - 1) >> shift) + 1, dtype=np.int64) << shift
    guide = (np.searchsorted(table[:-1, 0], buckets, side="right") - 1).astype(np.int32)
    return table, guide, shift


def _stacked(field: Field, k: int) -> tuple[int, ...]:
    """Shape of k rows joined along their first axis (a number becomes a vector of k)."""
    return (k,) if k > 1 and not field.shape else (k * field.shape[0], *field.shape[1:]) if field.shape else ()


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    array.fill(0)  # touches every page now rather than in the first batch
    return array


def _bytes(array: np.ndarray) -> np.ndarray:
    """The same memory as uint8 [rows, bytes of a row]; rows may lie apart."""
    rows = array.reshape(len(array), -1) if len(array) else np.empty((0, 1), array.dtype)
    if not np.shares_memory(rows, array) and len(array):
        raise InvalidInput("an array of out is not contiguous within a sample")
    return rows.view(np.uint8)


def _single(values: dict[str | None, Any]) -> Any:
    """The one array of a role without named fields, else the dict."""
    return values.get(None, values)


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r} is not a whole number from {low} to {high}")
    return int(value)


def _number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r} is not a number from {low} to {high}")
    return float(value)
