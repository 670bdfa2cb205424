"""Sources of samples: a run's request to its store, and the source that fills batches on the host.

A source makes the samples of update ``k`` as tensors, and the noise of that update. Every source makes the same bits for the same
request and ``k``: `HostSource` (here), `prefetch` (a thread fills batches ahead of the device), `resident` (the store on the device).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from offrl_store import EpisodeStore, rng
from offrld.engine.definition.algorithm import Noise

ALIGNMENT = 64  # bytes: every part of a block starts on a cache line


@dataclass(frozen=True)
class Request:
    """The samples that a run takes from a store at each update.

    Attributes:
        kind: the store's method that makes the sampler.
        arguments: of that method, without ``seed`` and ``out``.
        seeds: each gets its own batch.
        noise: name -> random numbers, float32, drawn per seed.
        stacked: every tensor has a leading axis over the seeds; if not, there is one seed.
    """

    kind: Literal["transitions", "windows"]
    arguments: Mapping[str, Any]
    seeds: tuple[int, ...]
    noise: Mapping[str, Noise] = field(default_factory=dict)
    stacked: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or (len(self.seeds) > 1 and not self.stacked):
            raise ValueError(f"{len(self.seeds)} seeds need the leading axis")

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before those of one seed's batch."""
        return (len(self.seeds),) if self.stacked else ()

    def sampler(self, store: EpisodeStore, seed: int, out: Mapping[str, Any] | None = None) -> Any:
        """The store's sampler of one seed; raises what the store raises for bad arguments."""
        return getattr(store, self.kind)(seed=seed, out=out, **self.arguments)


@dataclass(frozen=True)
class Samples:
    """The samples of one update: the store's ``Batch`` or ``WindowBatch`` with tensors for arrays, in the store's dtypes and units, and
    the noise, float32. Valid until the source's next ``samples``.
    """

    batch: Any
    noise: dict[str, Tensor]


class Source(Protocol):
    """Makes samples and noise of update ``k``, a pure function of (snapshot, request, k)."""

    def samples(self, k: Any) -> Samples:
        """The samples of update ``k``; any order of ``k`` works, consecutive numbers are fastest."""
        ...

    def close(self) -> None:
        """Release threads and memory; no call of ``samples`` may follow. May be called twice."""
        ...


class HostSource:
    """Fills a batch when it is read, in the caller's thread, always into the same tensors."""

    def __init__(self, store: EpisodeStore, request: Request) -> None:
        self._block = HostBlock(store, request)

    def samples(self, k: int) -> Samples:
        return self._block.first(self._block.fill(k))

    def close(self) -> None:
        """Do nothing: the block is freed with the source."""


# --- Batches in one block of memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A tensor in a block: its first byte, dtype, shape and strides."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, block: Tensor) -> Tensor:
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        span = block[self.offset : self.offset + extent * self.dtype.itemsize].view(self.dtype)
        return span.as_strided(self.shape, self.stride, span.storage_offset())


class _Layout:
    """The places of all seeds' arrays in one block of bytes, so that one copy moves a whole update.

    Arrays that share memory in the sampler (observation and next observation of stacked frames) share it here.
    """

    def __init__(self, store: EpisodeStore, request: Request) -> None:
        sampler = request.sampler(store, request.seeds[0])
        model = sampler.gather(np.zeros(sampler.batch_size, np.int64))
        self.request, self.nbytes = request, 0
        roots: dict[int, tuple[np.ndarray, int]] = {}

        def part(array: np.ndarray) -> Part:
            root = array
            while isinstance(root.base, np.ndarray):
                root = root.base
            if id(root) not in roots:
                roots[id(root)] = root, self._reserve(root.nbytes)
            offset = roots[id(root)][1] + array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
            steps = tuple(step // array.itemsize for step in array.strides)
            return self._part(offset, torch.from_numpy(array[:0]).dtype, array.shape, steps, root.size)

        self.batch = each(model, part)
        self.noise = {}
        for name, noise in request.noise.items():
            size = int(np.prod(noise.shape, dtype=np.int64))
            steps = tuple(int(np.prod(noise.shape[i + 1 :], dtype=np.int64)) for i in range(len(noise.shape)))
            self.noise[name] = self._part(self._reserve(4 * size), torch.float32, noise.shape, steps, size)

    def _reserve(self, size: int) -> int:
        """Reserve ``size`` bytes for every seed; returns the first byte."""
        start = self.nbytes
        self.nbytes += -(-size * len(self.request.seeds) // ALIGNMENT) * ALIGNMENT
        return start

    def _part(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...], steps: tuple[int, ...], size: int) -> Part:
        lead = self.request.lead
        return Part(offset, dtype, (*lead, *shape), (*(size for _ in lead), *steps))


def _zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8)


class Block:
    """The memory of one update's samples: one tensor of bytes, and its views."""

    def __init__(self, layout: _Layout, memory: Callable[[int], Tensor] = _zeros) -> None:
        self._layout, self.bytes = layout, memory(layout.nbytes)
        self._whole = Samples(each(layout.batch, self._view), {name: self._view(part) for name, part in layout.noise.items()})
        self._first: dict[int, Samples] = {}

    def _view(self, part: Part) -> Tensor:
        return part.view(self.bytes)

    def first(self, count: int) -> Samples:
        """The first ``count`` samples of every seed."""
        if count not in self._first:
            axis = len(self._layout.request.lead)
            self._first[count] = Samples(each(self._whole.batch, lambda tensor: tensor.narrow(axis, 0, count)), self._whole.noise)
        return self._first[count]

    def twin(self, memory: Callable[[int], Tensor] = _zeros) -> Block:
        """A block of the same layout in other memory."""
        return Block(self._layout, memory)


class HostBlock(Block):
    """A block on the host, with the samplers (one per seed) and the noise that fill it."""

    def __init__(self, store: EpisodeStore, request: Request, memory: Callable[[int], Tensor] = _zeros) -> None:
        super().__init__(_Layout(store, request), memory)
        self._samplers, self._draws = [], []
        for position, seed in enumerate(request.seeds):

            def array(tensor: Tensor, position: int = position) -> np.ndarray:
                return (tensor[position] if request.stacked else tensor).numpy()

            batch = each(self._whole.batch, array)
            arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
            out = {name: value for name, value in arrays.items() if value is not None and len(value)}
            self._samplers.append(request.sampler(store, seed, out))
            # Noise is drawn as float32, whatever the dtype of training, so that the numbers are the same everywhere.
            for name, noise in request.noise.items():
                draw = rng.normal if noise.distribution == "normal" else rng.uniform
                self._draws.append((draw, seed, stream_of(name), array(self._whole.noise[name])))

    def fill(self, k: int) -> int:
        """Fill the block with update ``k``; returns the samples per seed, which are fewer in the last batch of some epochs."""
        for sampler in self._samplers:
            if sampler.step != k:
                sampler.seek(k)
        batches = [sampler.sample() for sampler in self._samplers]
        for draw, seed, stream, array in self._draws:
            draw(seed, k, stream, array)
        return len(batches[0].reward)


# --- Helpers ----------------------------------------------------------------------------------------------------------------------


def stream_of(noise: str) -> int:
    """The random stream of a noise."""
    return rng.stream_id(f"noise/{noise}")


def each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to each array of a batch, also to those in dicts."""

    def changed(value: Any) -> Any:
        if value is None:
            return None
        return {name: change(array) for name, array in value.items()} if isinstance(value, Mapping) else change(value)

    return type(batch)(**{f.name: changed(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
