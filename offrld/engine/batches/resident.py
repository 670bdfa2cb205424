"""A store resident on a device: its rows as tensors, and sampling done there, without the host.

A batch is a few gathers after a draw of transition numbers. No step reads a tensor back, so a CUDA graph can replay
`ResidentSource.samples` with a step counter on the device, or take many updates at once. The sums of a transition (n-step rewards, returns)
are computed once by the store's own kernel: equal to the host's on every device, and independent of n at sampling.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrl_store.arguments import single, stacked
from offrl_store.index import Index
from offrl_store.kernels import kernels
from offrl_store.returns import last_reward, returns_of, rewards
from offrl_store.sampler import ORDER_STREAM, Batch
from offrl_store.sampler import STREAM as TRANSITIONS_STREAM
from offrl_store.schema import Column, Field
from offrl_store.windows import STREAM as WINDOWS_STREAM
from offrl_store.windows import WindowBatch
from offrld.engine.batches.philox import Counter, Philox
from offrld.engine.batches.source import Request, Samples, stream_of
from offrld.engine.definition.algorithm import Noise

SHARE = 0.5  # of the free memory that a store may take; the rest is for networks, their gradients and batches
_COPIED = 16 << 20  # bytes moved to the device at a time
_TABULATED = 1 << 16  # transitions tabulated at a time
_WORDS = ((8, np.int64), (4, np.int32), (2, np.int16), (1, np.uint8))


# --- Memory -----------------------------------------------------------------------------------------------------------------------


def needed_bytes(store: EpisodeStore, request: Request) -> int:
    """Device memory that the rows and the tables of a request take (batches not counted)."""
    first, end = _rows(store)
    rows = sum((end - first) * _width(column) for column in _columns(store, request))
    per_transition = 4 + (4 if request.kind == "windows" else 12 if request.arguments.get("returns") else 0)
    return rows + store.transition_count * per_transition + len(store) * 40


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated on the device now, including torch's reserve there."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- Rows -------------------------------------------------------------------------------------------------------------------------


class Resident:
    """The columns of a store on a device, each loaded when the first source asks for it and shared by all of them.

    The store is pinned by its snapshot; of a bounded store the rows are kept here even when it drops them.
    """

    def __init__(self, store: EpisodeStore, device: torch.device) -> None:
        self.store, self.device = store, device
        self.first, self._end = _rows(store)
        self._loaded: dict[str, Rows] = {}
        self._gathers: list[tuple[Request, Any]] = []

    def rows(self, column: Column) -> Rows:
        if column.name not in self._loaded:
            self._loaded[column.name] = Rows(column, self.store.column(column.name)[self.first : self._end], self.device)
            self.store.check_alive()
        return self._loaded[column.name]

    def gather(self, request: Request, sampler: Any) -> _Transitions | _Windows:
        """The gather from transition numbers to batches; requests that differ only in their seeds share it."""
        for earlier, gather in self._gathers:
            if earlier.kind == request.kind and _same(earlier.arguments, request.arguments):
                return gather
        made = (_Transitions if request.kind == "transitions" else _Windows)(self, request, sampler)
        self._gathers.append((request, made))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(rows.words.nbytes for rows in self._loaded.values()) + sum(made.nbytes for _, made in self._gathers)


class Rows:
    """A column on the device. Rows are kept as the widest whole numbers that divide them, so that gathering moves fewer elements.

    Whole-number actions are kept as int64, the dtype that batches give them in.
    """

    def __init__(self, column: Column, values: np.ndarray, device: torch.device) -> None:
        self.field: Field = column.field
        width = _width(column)
        size, word = next((size, word) for size, word in _WORDS if width % size == 0)
        dtype = np.dtype(np.int64) if _is_whole(column) else column.field.dtype
        self.dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        count = width // size
        self.words = torch.empty((len(values), count), dtype=torch.from_numpy(np.empty(0, word)).dtype, device=device)
        step = max(1, _COPIED // width)
        staged = torch.empty((min(step, len(values)), count), dtype=self.words.dtype, pin_memory=device.type == "cuda")
        target = staged.numpy().view(dtype)
        for start in range(0, len(values), step):
            part = values[start : start + step]
            np.copyto(target[: len(part)], part.reshape(len(part), -1), casting="unsafe")
            self.words[start : start + len(part)].copy_(staged[: len(part)])

    def at(self, rows: Tensor, absent: Tensor | None = None) -> Tensor:
        """The values of these rows, ``[*rows, *field.shape]``; zeros where ``absent``."""
        return self._values(rows, absent).reshape(*rows.shape, *self.field.shape)

    def stacks(self, rows: Tensor, first: Tensor, count: int, repeat_first: bool, absent: Tensor | None = None) -> Tensor:
        """The ``count`` rows that end at each of ``rows``, as values ``[*rows, count, items]``.

        Rows before ``first``, the episode's start, are zeros, or its first row; all are zeros where ``absent``.
        """
        at, first = rows[..., None] + torch.arange(1 - count, 1, device=rows.device), first[..., None]
        if not repeat_first:
            absent = at < first if absent is None else (at < first) | absent[..., None]
        elif absent is not None:
            absent = absent[..., None].expand_as(at)
        return self._values(torch.maximum(at, first), absent)

    def joined(self, stacks: Tensor) -> Tensor:
        """Stacks ``[..., count, items]`` as an observation: joined along the first axis of a row."""
        return stacks.reshape(*stacks.shape[:-2], *stacked(self.field, stacks.shape[-2]))

    def _values(self, rows: Tensor, absent: Tensor | None) -> Tensor:
        """``[*rows, items]``."""
        words = self.words.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
        if absent is not None:
            words = words.masked_fill(absent[..., None], 0)  # zero in every dtype is all bits zero
        return words.view(self.dtype)


# --- Sampling ---------------------------------------------------------------------------------------------------------------------


class ResidentSource:
    """Batches drawn and gathered on the device, equal to those of the host's sampler bit for bit.

    Noise too, on the CPU; on CUDA normal numbers may differ in the last bit (see `Philox`).
    Raises what the store's samplers raise.
    """

    def __init__(self, resident: Resident, request: Request) -> None:
        self._noises = {name: (noise, stream_of(name)) for name, noise in request.noise.items()}
        sampler = request.sampler(resident.store, request.seeds[0])  # checks the arguments, and knows their defaults
        self._gather = resident.gather(request, sampler)
        self._stream = TRANSITIONS_STREAM if request.kind == "transitions" else WINDOWS_STREAM
        self._philox = Philox(request.seeds if request.stacked else request.seeds[0], resident.device)
        self._size, self._total = sampler.batch_size, sampler.transition_count
        self._epochs = None if sampler.replacement else sampler.batches_per_epoch
        self._left = 0 if sampler.drop_last else self._total % self._size

    def samples(self, k: Counter) -> Samples:
        """The samples of update ``k``.

        ``k`` may be an int64 tensor on the device: without axes for a counter that a CUDA graph replays, ``[K]`` for K updates at once,
        whose axis comes before all others. An epoch that ends with a shorter batch takes numbers only: the size of a batch cannot depend
        on a tensor.
        """
        return Samples(self._gather.batch(self._numbers(k)), {name: self._noise(k, *noise) for name, noise in self._noises.items()})

    def _numbers(self, k: Counter) -> Tensor:
        """The transitions of update ``k``, ``[*k, *seeds, B]``."""
        if self._epochs is None:
            return self._philox.integers(k, self._stream, self._total, self._size)
        if isinstance(k, Tensor):
            if self._left:
                raise InvalidInput("epochs with a shorter last batch cannot be drawn by a tensor", hint="set drop_last=True")
            epoch, place = torch.div(k, self._epochs, rounding_mode="floor"), k % self._epochs
        else:
            epoch, place = divmod(k, self._epochs)
        short = self._left and place == self._epochs - 1
        return self._philox.permutation(epoch, ORDER_STREAM, self._total, self._left if short else self._size, place * self._size)

    def _noise(self, k: Counter, noise: Noise, stream: int) -> Tensor:
        draw = self._philox.normal if noise.distribution == "normal" else self._philox.uniform
        numbers = draw(k, stream, math.prod(noise.shape))
        return numbers.reshape((*numbers.shape[:-1], *noise.shape))

    def close(self) -> None:
        """Memory goes back with the last source and `Resident`."""


class _Episodes:
    """The transitions of a request, and the tables of their sums."""

    def __init__(self, resident: Resident, request: Request) -> None:
        arguments = request.arguments
        self.resident, self.device = resident, resident.device
        self.index = Index(resident.store, arguments.get("episodes"), _of_data(arguments))
        self.reward = rewards(resident.store, arguments.get("reward"))
        table = self.index.table.copy()
        table[:-1, 1] -= resident.first
        self._starts = self.on_device(np.ascontiguousarray(table[:-1, 0]))
        self._table = self.on_device(table[:-1])
        self.roles: dict[str, dict[str | None, Rows]] = {"observation": {}, "action": {}, "extra": {}}
        for column in _columns(resident.store, request):
            self.roles[column.role][column.key] = resident.rows(column)

    def on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def find(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Time step, first row, transitions, and T or -T (terminated or not) of the episodes of these transitions."""
        episode = torch.searchsorted(self._starts, numbers, right=True) - 1
        rows = self._table.index_select(0, episode.reshape(-1)).view(*numbers.shape, 4)
        start, first, limit, terminal = rows.unbind(-1)
        return numbers - start, first, limit, terminal

    @property
    def nbytes(self) -> int:
        return self._starts.nbytes + self._table.nbytes

    def each(self, role: str, take: Any) -> Any:
        return {key: take(rows) for key, rows in self.roles[role].items()}

    def tabulate(self, powers: np.ndarray, returns: Mapping[str, Any] | None) -> dict[str, Tensor]:
        """What the store's kernel sums for every transition: ``reward``, and with ``returns`` also ``returns`` and ``remaining``."""
        store, total, reward = self.resident.store, self.index.total, self.reward
        n = min(_TABULATED, total)
        part = {name: np.empty(n, np.float32) for name in ("reward", "terminal", "discount")} | {"index": np.empty(n, np.int64)}
        kernel = kernels().Transitions(*self.index.kernel, powers, reward, *part.values())
        names = ["reward"]
        if returns is not None:
            part |= {"returns": np.empty(n, np.float32), "remaining": np.empty(n, np.int64)}
            names += ["returns", "remaining"]
            sums = returns_of(reward, self.index.records, returns["gamma"])
            kernel.add_returns(sums, part["returns"], part["remaining"], returns["last"], returns["failure"])
        tables = {name: torch.empty(total, dtype=torch.from_numpy(part[name]).dtype, device=self.device) for name in names}
        for start in range(0, total, n):
            numbers = np.arange(start, min(start + n, total), dtype=np.int64)
            kernel.gather(numbers)
            for name, table in tables.items():
                table[start : start + len(numbers)].copy_(torch.from_numpy(part[name][: len(numbers)]))
        store.check_alive(self.index.oldest)
        return tables


class _Transitions:
    """Transitions by number, as the store's `TransitionSampler` gives them."""

    def __init__(self, resident: Resident, request: Request, sampler: Any) -> None:
        self._episodes = _Episodes(resident, request)
        self._base, self._stack = resident.first, sampler.frame_stack
        self._repeat_first = request.arguments.get("stack_pad", "zero") == "first"
        next_action = request.arguments.get("next_action", False)
        self._next_action = _of_data(request.arguments)
        self._policy_actions: Rows | None = None  # replace the data's next actions
        if isinstance(next_action, np.ndarray):
            column = next(column for column in resident.store.schema.columns if column.role == "action")
            self._policy_actions = Rows(column, next_action[resident.first :], resident.device)
        index = self._episodes.index
        powers = sampler.gamma ** np.arange(min(sampler.n_steps, index.longest) + 1, dtype=np.float64)
        self._steps = len(powers) - 1
        self._powers = self._episodes.on_device(powers.astype(np.float32))
        returns = None
        if request.arguments.get("returns"):
            failure, step_reward = request.arguments.get("failure_return"), request.arguments.get("step_reward", 0.0)
            last = index.records["steps"] if failure is None else last_reward(self._episodes.reward, index.records, step_reward)
            returns = {"gamma": sampler.gamma, "last": np.ascontiguousarray(last, np.int64), "failure": failure or 0.0}
        self._tables = self._episodes.tabulate(powers, returns)

    @property
    def nbytes(self) -> int:
        return self._episodes.nbytes + sum(table.nbytes for table in self._tables.values())

    def batch(self, numbers: Tensor) -> Batch:
        """The store's `Batch` with tensors for arrays."""
        t, first, limit, terminal = self._episodes.find(numbers)
        used = (limit - t).clamp(max=self._steps)
        row = first + t
        after = row + used
        now, following = {}, {}
        for key, rows in self._episodes.roles["observation"].items():
            now[key], following[key] = self._observations(rows, row, after, first)
        action = self._episodes.each("action", lambda rows: rows.at(row))
        fields: dict[str, Any] = {name: table.take(numbers) for name, table in self._tables.items()}
        fields |= {
            "observation": single(now),
            "action": single(action),
            "next_observation": single(following),
            "terminal": (t + used == terminal).to(torch.float32),
            "discount": self._powers.take(used),
            "index": row + self._base,
            "next_action": self._following(after),
            "extra": self._episodes.each("extra", lambda rows: rows.at(row)),
        }
        return Batch(**fields)

    def _following(self, after: Tensor) -> Any:
        """The actions at the rows of the next observations; None unless the request has them."""
        if self._policy_actions is not None:
            return self._policy_actions.at(after)
        return single(self._episodes.each("action", lambda rows: rows.at(after))) if self._next_action else None

    def _observations(self, rows: Rows, row: Tensor, after: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        if self._stack == 1:
            return rows.at(row), rows.at(after)
        if self._steps == 1:  # the two stacks have all rows but one in common: gathered once
            both = rows.stacks(after, first, self._stack + 1, self._repeat_first)
            return rows.joined(both[..., :-1, :]), rows.joined(both[..., 1:, :])
        now, following = (rows.joined(rows.stacks(end, first, self._stack, self._repeat_first)) for end in (row, after))
        return now, following


class _Windows:
    """Windows that end at transitions, as the store's `WindowSampler` gives them."""

    def __init__(self, resident: Resident, request: Request, sampler: Any) -> None:
        self._episodes = _Episodes(resident, request)
        self._base, self._stack = resident.first, sampler.frame_stack
        self._repeat_first = request.arguments.get("stack_pad", "zero") == "first"
        self._places = torch.arange(1 - sampler.length, 1, device=resident.device)
        last = np.ascontiguousarray(self._episodes.index.records["steps"], np.int64)
        tables = self._episodes.tabulate(np.ones(2), {"gamma": 1.0, "last": last, "failure": 0.0})
        self._tables = {name: tables[name] for name in ("reward", "returns")}

    @property
    def nbytes(self) -> int:
        return self._episodes.nbytes + sum(table.nbytes for table in self._tables.values())

    def batch(self, numbers: Tensor) -> WindowBatch:
        """The store's `WindowBatch` with tensors for arrays."""
        end, first, _, terminal = (part[..., None] for part in self._episodes.find(numbers))
        t = end + self._places  # [*k, *seeds, B, L]
        real, absent, step = t >= 0, t < 0, t.clamp(min=0)
        row = first + step
        number = numbers[..., None] - end + step
        tables = {name: table.take(number).masked_fill(absent, 0.0) for name, table in self._tables.items()}

        def observed(rows: Rows) -> Tensor:
            if self._stack == 1:
                return rows.at(row, absent)
            return rows.joined(rows.stacks(row, first.expand_as(row), self._stack, self._repeat_first, absent))

        fields: dict[str, Any] = {
            "observation": single(self._episodes.each("observation", observed)),
            "action": single(self._episodes.each("action", lambda rows: rows.at(row, absent))),
            "reward": tables["reward"],
            "mask": real.to(torch.float32),
            "timesteps": (t + 1).clamp(min=0),
            "returns_to_go": tables["returns"],
            "terminal": (real & (t + 1 == terminal)).to(torch.float32),
            "index": row[..., -1] + self._base,
            "extra": self._episodes.each("extra", lambda rows: rows.at(row, absent)),
        }
        return WindowBatch(**fields)


# --- Helpers ----------------------------------------------------------------------------------------------------------------------


def _rows(store: EpisodeStore) -> tuple[int, int]:
    """First row of the oldest episode, and the end of the newest one, the row of its last observation included."""
    table = store.episode_table
    if not len(table):
        return 0, 0
    return int(table["first_row"][0]), int(table["first_row"][-1] + table["steps"][-1]) + 1


def _columns(store: EpisodeStore, request: Request) -> list[Column]:
    """The columns that batches of a request are gathered from; rewards are tabulated."""
    extra = request.arguments.get("extra", ())
    return [c for c in store.schema.columns if c.role in ("observation", "action") or (c.role == "extra" and c.key in extra)]


def _of_data(arguments: Mapping[str, Any]) -> bool:
    """Whether batches have next actions, and these are the data's own."""
    next_action = arguments.get("next_action", False)
    return not isinstance(next_action, np.ndarray) and bool(next_action)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests' arguments are the same; arrays are compared by what they hold."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _is_whole(column: Column) -> bool:
    return column.role == "action" and column.field.dtype.kind in "iub"


def _width(column: Column) -> int:
    """Bytes of a row on the device."""
    return column.field.row_bytes // column.field.dtype.itemsize * (8 if _is_whole(column) else column.field.dtype.itemsize)
