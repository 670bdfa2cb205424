"""Where raw batches come from: what a run asks of its store, and the source that fills it on the host.

A source gives, for update ``k``, the samples of the store as tensors and the noise of that update. Every source gives the same bits for
the same request and ``k``: `HostSource` (here), `prefetch` (a thread ahead of the device), `resident` (the store on the device).
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

ALIGNMENT = 64  # bytes: every part of a block begins on a cache line


@dataclass(frozen=True)
class Request:
    """What a run takes from a store at each update.

    Attributes:
        kind: the sampler: the name of a method of the store.
        arguments: of that method, but ``seed`` and ``out``.
        seeds: one batch each.
        noise: name -> random numbers, float32, drawn per seed.
        stacked: whether every tensor carries a leading axis over the seeds; otherwise there is one seed.
    """

    kind: Literal["transitions", "windows"]
    arguments: Mapping[str, Any]
    seeds: tuple[int, ...]
    noise: Mapping[str, Noise] = field(default_factory=dict)
    stacked: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or (len(self.seeds) > 1 and not self.stacked):
            raise ValueError(f"{len(self.seeds)} seeds cannot be had without the leading axis")

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before those of one seed's batch."""
        return (len(self.seeds),) if self.stacked else ()

    def sampler(self, store: EpisodeStore, seed: int, out: Mapping[str, Any] | None = None) -> Any:
        """The store's sampler of one seed; raises what the store raises for bad arguments."""
        return getattr(store, self.kind)(seed=seed, out=out, **self.arguments)


@dataclass(frozen=True)
class Raw:
    """One update's samples: the store's ``Batch`` or ``WindowBatch`` with tensors in place of arrays, in the store's dtypes and units,
    and the noise, float32. Valid until the source's next ``raw``.
    """

    batch: Any
    noise: dict[str, Tensor]


class Source(Protocol):
    """Gives the samples and the noise of update ``k``, a pure function of (snapshot, request, k)."""

    def raw(self, k: Any) -> Raw:
        """The samples of update ``k``; any order of ``k`` is allowed, the next one is the fast case."""
        ...

    def close(self) -> None:
        """Give back threads and memory; no ``raw`` afterwards. May be called twice."""
        ...


class Filler:
    """Fills the arrays of a batch on the host: one sampler per seed, and the noise.

    Args:
        out: per seed, arrays for the sampler and for the noise by name.
    """

    def __init__(self, store: EpisodeStore, request: Request, out: list[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> None:
        self._samplers = [request.sampler(store, seed, arrays) for seed, (arrays, _) in zip(request.seeds, out, strict=True)]
        # Noise is drawn as float32 whatever the dtype of training: the same numbers everywhere.
        self._draws = [
            (rng.normal if noise.distribution == "normal" else rng.uniform, seed, stream_of(name), given[name])
            for seed, (_, given) in zip(request.seeds, out, strict=True)
            for name, noise in request.noise.items()
        ]

    def fill(self, k: int) -> Any:
        """Fill the arrays with update ``k``; gives the first seed's batch, which is shorter where an epoch ends with what is left."""
        for sampler in self._samplers:
            if sampler.step != k:
                sampler.seek(k)
        batches = [sampler.sample() for sampler in self._samplers]
        for draw, seed, stream, array in self._draws:
            draw(seed, k, stream, array)
        return batches[0]


class HostSource:
    """Fills the batch when it is asked for, in the caller's thread. The tensors are made once."""

    def __init__(self, store: EpisodeStore, request: Request) -> None:
        self._block = Block(Layout(store, request))
        self._filler = Filler(store, request, self._block.outputs())

    def raw(self, k: int) -> Raw:
        return self._block.raw(self._filler.fill(k))

    def close(self) -> None:
        """There is nothing to give back."""


# --- Batches in one block of memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A tensor within a block: its first byte, and its dtype, shape and strides."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, block: Tensor) -> Tensor:
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        span = block[self.offset : self.offset + extent * self.dtype.itemsize].view(self.dtype)
        return span.as_strided(self.shape, self.stride, span.storage_offset())


class Layout:
    """Where the arrays of all seeds' batches lie in one block of bytes, so that one copy moves a whole update.

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
        """Room for ``size`` bytes of every seed; gives the first byte."""
        start = self.nbytes
        self.nbytes += -(-size * len(self.request.seeds) // ALIGNMENT) * ALIGNMENT
        return start

    def _part(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...], steps: tuple[int, ...], size: int) -> Part:
        lead = self.request.lead
        return Part(offset, dtype, (*lead, *shape), (*(size for _ in lead), *steps))


class Block:
    """The memory of one update's batches: one tensor of bytes, and its views."""

    def __init__(self, layout: Layout, memory: Callable[[int], Tensor] = lambda size: torch.zeros(size, dtype=torch.uint8)) -> None:
        self._layout, self.bytes = layout, memory(layout.nbytes)
        self._whole = Raw(each(layout.batch, self._view), {name: self._view(part) for name, part in layout.noise.items()})
        self._raws: dict[int, Raw] = {}

    def _view(self, part: Part) -> Tensor:
        return part.view(self.bytes)

    def raw(self, filled: Any) -> Raw:
        """The tensors of a batch that a `Filler` of the same layout has filled: its first rows where it is a short one."""
        return self.first(len(filled.reward))

    def first(self, count: int) -> Raw:
        """The first ``count`` samples of every seed."""
        if count not in self._raws:
            axis = len(self._layout.request.lead)
            self._raws[count] = Raw(each(self._whole.batch, lambda tensor: tensor.narrow(axis, 0, count)), self._whole.noise)
        return self._raws[count]

    def outputs(self) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """What a `Filler` writes into: per seed, the sampler's arrays and the noise's."""
        stacked = self._layout.request.stacked
        found = []
        for s in range(len(self._layout.request.seeds)):

            def array(tensor: Tensor, s: int = s) -> np.ndarray:
                return (tensor[s] if stacked else tensor).numpy()

            batch = each(self._whole.batch, array)
            arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
            found.append(
                (
                    {name: value for name, value in arrays.items() if value is not None and len(value)},
                    {name: array(tensor) for name, tensor in self._whole.noise.items()},
                )
            )
        return found


# --- Helpers ----------------------------------------------------------------------------------------------------------------------


def stream_of(noise: str) -> int:
    """The random stream of a noise."""
    return rng.stream_id(f"noise/{noise}")


def each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch with ``change`` done to each of its arrays, also those within dicts."""

    def changed(value: Any) -> Any:
        if value is None:
            return None
        return {name: change(array) for name, array in value.items()} if isinstance(value, Mapping) else change(value)

    return type(batch)(**{f.name: changed(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
