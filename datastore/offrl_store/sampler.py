"""The sampler of transitions: draws batches over the transitions of a store, assembled at sampling time from rows that are stored once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from typing import Any, Generic, TypeVar

import numpy as np

from offrl_store.arguments import Outputs, allocate, as_bytes, extras, flag, head, number, padding, single, stacked, whole
from offrl_store.errors import InvalidInput
from offrl_store.index import Index
from offrl_store.kernels import kernels
from offrl_store.reader import StoreReader
from offrl_store.returns import last_reward, returns_of, rewards
from offrl_store.rng import stream_id
from offrl_store.schema import Column, Schema

STREAM = stream_id("transitions")
ORDER_STREAM = stream_id("epochs")
SHARED_BLOCK_BYTES = 1024  # from this row size on, observation and next observation share a block, to copy fewer bytes


BatchOf = TypeVar("BatchOf")  # Batch or WindowBatch


@dataclass(frozen=True, eq=False)
class Batch:
    """B transitions, valid until the next call on the same sampler, which fills the same arrays.

    Attributes:
        observation, next_observation: [B, ...] in the field's dtype; a dict of arrays if the schema has several fields.
        action: [B, A] floats or [B] int64; a dict of arrays if the schema has several fields.
        reward: float32 [B], the discounted n-step sum.
        terminal: float32 [B], 0 or 1.
        discount: float32 [B], gamma to the power of the steps in ``reward``.
        index: int64 [B], the row.
        next_action: like action; None unless requested.
        extra: the requested extras.
        returns: float32 [B], the discounted sum of the rewards to the episode's end; None unless requested.
        remaining: int64 [B], the number of rewards in ``returns``, so that rewards a r + b have the returns
            a returns + b (1 - gamma^remaining) / (1 - gamma); None unless requested.
        weight: float32 [B], importance weights of a prioritized sampler; None otherwise.
        dataset: int64 [B], index of the store in a mix; None otherwise.
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
    returns: np.ndarray | None = None
    remaining: np.ndarray | None = None
    weight: np.ndarray | None = None
    dataset: np.ndarray | None = None


class Sampler(Generic[BatchOf]):
    """The base of the samplers of transitions and windows: the order of the draws. Subclasses set ``_kernel`` and ``_batch``.

    replacement: draw with repetitions; otherwise in epochs, each a new permutation of all transitions (computed without a table: see
    ``_random_py.permute``). drop_last: an epoch ends with its last full batch; otherwise its last batch holds the remaining transitions.
    rows: the rows of the transitions to draw from (``batch.index``, or a TransitionList), default all; a repeated row counts twice.

    Iterating yields batches without end, or with ``replacement=False`` to the end of the epoch, so that one loop is one epoch. Each batch
    is the same object with new values: copy data that must outlive an iteration.
    """

    _kernel: Any
    _batch: BatchOf

    def __init__(
        self,
        store: StoreReader,
        index: Index,
        *,
        batch_size: int,
        seed: int,
        stream: int,
        replacement: bool,
        drop_last: bool,
        rows: Any = None,
    ) -> None:
        self._store, self._oldest = store, index.oldest
        self.batch_size = whole(batch_size, "batch_size", 1, 1 << 31)
        self.seed = whole(seed, "seed", 0, (1 << 64) - 1)
        self.replacement, self.drop_last = flag(replacement, "replacement"), flag(drop_last, "drop_last")
        self._subset = None if rows is None else index.numbers_of(rows)
        self.transition_count = index.total if self._subset is None else len(self._subset)
        self._picks = np.zeros(0 if self._subset is None else self.batch_size, np.int64)
        self._stream, self._step = stream, 0
        full, left = divmod(self.transition_count, self.batch_size)
        self._left = left if not self.drop_last else 0
        self._per_epoch = full + (self._left > 0)
        self._short: Any = None
        if not self.replacement and not self._per_epoch:
            raise InvalidInput(
                f"batch_size {self.batch_size} is more than the {self.transition_count} transitions of an epoch",
                hint="take a smaller batch_size, or drop_last=False",
            )

    @property
    def step(self) -> int:
        """Number of the batch that ``sample`` returns next."""
        return self._step

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of an epoch; with replacement, the number that an epoch would have."""
        return self._per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the batch that ``sample`` returns next."""
        return self._step // max(self._per_epoch, 1)

    def seek(self, step: int) -> None:
        """Go to batch ``step``: the next ``sample`` returns it."""
        self._step = whole(step, "step", 0, (1 << 64) - 1)

    def sample(self) -> BatchOf:
        """Return the next batch. It is the same object every time, with new values in its arrays (views of the first rows if it is short).

        Raises SnapshotEvicted if a bounded store has evicted an episode of the sampler.
        """
        step = self._step
        if self._subset is not None:
            return self._sample_subset(self._subset, self._picks)
        if self.replacement:
            self._kernel.sample(self.seed, step, self._stream)
            self._check()
            self._step = step + 1
            return self._batch
        epoch, place = divmod(step, self._per_epoch)
        short = self._left and place == self._per_epoch - 1
        self._kernel.sample_order(self.seed, epoch, ORDER_STREAM, place * self.batch_size, 0, self._left if short else self.batch_size)
        self._check()
        self._step = step + 1
        return self._shortened() if short else self._batch

    def _sample_subset(self, subset: np.ndarray, picks: np.ndarray) -> BatchOf:
        """Sample from a subset of the transitions: the same draws, over the list of their numbers."""
        short = False
        if self.replacement:
            kernels().draw(self.seed, self._step, self._stream, len(subset), picks)
        else:
            epoch, place = divmod(self._step, self._per_epoch)
            short = bool(self._left) and place == self._per_epoch - 1
            picks = picks[: self._left] if short else picks
            kernels().permute(self.seed, epoch, ORDER_STREAM, len(subset), place * self.batch_size, picks)
        self._kernel.gather(subset[picks])
        self._check()
        self._step += 1
        return self._shortened() if short else self._batch

    def __iter__(self) -> Iterator[BatchOf]:
        epoch = self.epoch
        while self.replacement or self.epoch == epoch:
            yield self.sample()

    def _shortened(self) -> BatchOf:
        """Return views of the first rows of the batch; they are made once."""
        if self._short is None:
            batch: Any = self._batch
            self._short = type(batch)(**{f.name: head(getattr(batch, f.name), self._left) for f in fields(batch)})
        return self._short

    def gather(self, numbers: np.ndarray) -> BatchOf:
        """Return the batch of these transitions, int64 [B], numbered from 0 over the sampler's episodes (or ``rows``).

        Raises InvalidInput.
        """
        numbers = np.ascontiguousarray(numbers, np.int64)
        if numbers.shape != (self.batch_size,) or numbers.min() < 0 or numbers.max() >= self.transition_count:
            raise InvalidInput(f"numbers must be {self.batch_size} transition numbers from 0 to {self.transition_count - 1}")
        self._kernel.gather(numbers if self._subset is None else self._subset[numbers])
        self._check()
        return self._batch

    def _check(self) -> None:
        """Raise SnapshotEvicted if a bounded store has evicted rows that may have been read."""
        if self._store.limit:
            self._store.check_alive(self._oldest)


class TransitionSampler(Sampler[Batch]):
    """Samples transitions, uniformly with replacement or in epochs. Batch k is a pure function of (the snapshot, seed, k, the arguments).

    Args:
        n_steps, gamma: the reward is the sum of gamma^i r over at most n steps, up to the episode's end.
        frame_stack, stack_pad: each observation is the last k frames along its first axis, oldest first. Frames before the episode are
            zeros ("zero") or its first frame ("first"). A missing final observation is zeros.
        next_action: True adds the action at the end of the n steps, zeros after a terminal; the last transition of a truncated episode has
            no next action and is not sampled. An array with an action for each row of the store (those of an evaluated policy) is used
            instead of the stored actions, and no transition is left out.
        episodes: numbers of the episodes to sample from (default all).
        extra: names of extra fields to add to the batch.
        replacement, drop_last, rows: see Sampler.
        returns: add ``returns`` and ``remaining`` to the batch.
        failure_return: the return, of one reward, if every remaining reward of the episode equals ``step_reward`` (d3rlpy's
            SparseRewardTransitionPicker, for Cal-QL).
        reward: numbers that replace the stored rewards, one for each row of the store, such as scaled or clipped rewards.
        out: arrays to fill, by the names of Batch; missing ones are allocated once. Each must be writable, of the batch's shape and dtype,
            and contiguous within a sample. Without ``out``, stacked pixels are two overlapping views of one block.

    Raises InvalidInput and EmptyStore. Use a sampler in one thread only.
    """

    def __init__(
        self,
        store: StoreReader,
        *,
        batch_size: int,
        seed: int,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        next_action: Any = False,
        episodes: Any = None,
        extra: Sequence[str] = (),
        replacement: bool = True,
        drop_last: bool = True,
        returns: bool = False,
        failure_return: float | None = None,
        step_reward: float = 0.0,
        reward: Any = None,
        out: Any = None,
        rows: Any = None,
        stream: int = STREAM,
    ) -> None:
        self.n_steps = whole(n_steps, "n_steps", 1, 1 << 62)
        self.gamma = number(gamma, "gamma", 0.0, 1.0)
        self.frame_stack = whole(frame_stack, "frame_stack", 1, 1 << 16)
        self._repeat_first = padding(stack_pad)
        self.schema: Schema = store.schema
        if failure_return is not None and not flag(returns, "returns"):
            raise InvalidInput("failure_return needs returns=True")
        self._returns = flag(returns, "returns")
        self._failure = None if failure_return is None else number(failure_return, "failure_return", -1e38, 1e38)
        self._step_reward = number(step_reward, "step_reward", -1e38, 1e38)
        self._extra, self._policy_action = extras(self.schema, extra), None
        if isinstance(next_action, np.ndarray):
            self._policy_action, next_action = next_action, False
        self._next_action = flag(next_action, "next_action")
        index = Index(store, episodes, self._next_action)
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
        n = self.batch_size
        by_role = {role: [c for c in self.schema.columns if c.role == role] for role in ("observation", "action", "extra")}
        scalars = {
            name: outputs.take(name, None, (n,), dtype)
            for name, dtype in (("reward", "f4"), ("terminal", "f4"), ("discount", "f4"), ("index", "i8"))
        }
        reward = rewards(store, self._reward)
        powers = self.gamma ** np.arange(min(self.n_steps, index.longest) + 1, dtype=np.float64)
        kernel = kernels().Transitions(
            *index.kernel, powers, reward, scalars["reward"], scalars["terminal"], scalars["discount"], scalars["index"]
        )
        if self._returns:
            scalars["returns"] = outputs.take("returns", None, (n,), "f4")
            scalars["remaining"] = outputs.take("remaining", None, (n,), "i8")
            last = index.records["steps"] if self._failure is None else last_reward(reward, index.records, self._step_reward)
            kernel.add_returns(
                returns_of(reward, index.records, self.gamma),
                scalars["returns"],
                scalars["remaining"],
                np.ascontiguousarray(last, np.int64),
                self._failure or 0.0,
            )
        observation, after = {}, {}
        for column in by_role["observation"]:
            observation[column.key], after[column.key] = self._add_observation(kernel, store, column, outputs)
        action = {column.key: self._add_action(kernel, store, column, "action", outputs) for column in by_role["action"]}
        following = {
            column.key: self._add_action(kernel, store, column, "next_action", outputs)
            for column in by_role["action"]
            if self._next_action or self._policy_action is not None
        }
        extra = {}
        for column in by_role["extra"]:
            if column.key in self._extra:
                extra[column.key] = outputs.take("extra", column.key, (n, *column.field.shape), column.field.dtype)
                kernel.add_copy(as_bytes(store.column(column.name)), as_bytes(extra[column.key]), 1, False, False)
        self._kernel = kernel
        self._batch = Batch(
            observation=single(observation),
            action=single(action),
            next_observation=single(after),
            next_action=single(following) if following else None,
            extra=extra,
            **scalars,
        )

    def _add_observation(self, kernel: Any, store: StoreReader, column: Column, outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        field, k, n = column.field, self.frame_stack, self.batch_size
        source, shape = as_bytes(store.column(column.name)), (n, *stacked(field, k))
        requested = any(outputs.has(name, column.key) for name in ("observation", "next_observation"))
        if k > 1 and self.n_steps == 1 and not requested and field.row_bytes >= SHARED_BLOCK_BYTES:
            block = allocate((n, *stacked(field, k + 1)), field.dtype)
            kernel.add_copy(source, as_bytes(block), k + 1, True, self._repeat_first)
            height = block.shape[1] // (k + 1)
            return block[:, :-height], block[:, height:]
        now = outputs.take("observation", column.key, shape, field.dtype)
        after = outputs.take("next_observation", column.key, shape, field.dtype)
        kernel.add_copy(source, as_bytes(now), k, False, self._repeat_first)
        kernel.add_copy(source, as_bytes(after), k, True, self._repeat_first)
        return now, after

    def _add_action(self, kernel: Any, store: StoreReader, column: Column, name: str, outputs: Outputs) -> np.ndarray:
        field, at_next, rows = column.field, name == "next_action", store.column(column.name)
        if at_next and self._policy_action is not None:
            actions = self._policy_action
            if actions.shape != rows.shape or actions.dtype != rows.dtype:
                raise InvalidInput(
                    f"next_action is {actions.dtype} {list(actions.shape)}; expected {rows.dtype} {list(rows.shape)}",
                    hint="one action for each row of the store, like its action column",
                )
            rows = np.ascontiguousarray(actions)
        is_whole = field.dtype.kind in "iub"
        out = outputs.take(name, column.key, (self.batch_size, *field.shape), np.dtype("i8") if is_whole else field.dtype)
        # The row after the last action is stored as zeros, so a next action at a terminal needs no special case.
        if is_whole and field.dtype.itemsize < 8:
            kernel.add_int64(rows.reshape(len(rows), -1), out.reshape(self.batch_size, -1), at_next)
        else:
            kernel.add_copy(as_bytes(rows), as_bytes(out), 1, at_next, False)
        return out
