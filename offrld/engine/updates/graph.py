"""Many updates as one CUDA graph: drawn, gathered, differentiated and applied on the device, with one launch from the host.

A capture takes a `Chunk`: K updates whose steps are known beforehand (`Pattern`). All that differs between two
replays, the number of the first update and the moves of each optimizer so far, is in tensors on the device. A chunk also runs without a
graph, with the bits of the ordinary loop; only `CudaGraph` needs a GPU. `Chunks` cuts a run into chunks: none crosses the end of a stage,
or an update before which the algorithm's hook acts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine.batches.feed import Feed, placed
from offrld.engine.updates.train_state import Due
from offrld.engine.updates.update import Updater

LENGTH = 32  # updates per chunk: launching one graph costs 10 us and more, an update of small networks 60
BATCH_BYTES = 1 << 29  # limit of a chunk's batches: a chunk of image batches holds fewer updates
GRAPHS = 16  # captured at most: each has its own description, though they share their memory
MET = 2  # occurrences of a pattern after which it is captured
WARM = 2  # runs before a capture, in which libraries allocate their workspaces
SLACK = 0.05  # of a parameter's mean move: its largest mean difference between a chunk and single updates


@dataclass(frozen=True)
class Pattern:
    """The steps that each of K updates does, by their places in the schedule of one stage."""

    stage: str
    dues: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, stage: str, schedule: Sequence[Due], first: int, count: int) -> Pattern:
        """Of the updates ``first .. first + count - 1``."""
        return cls(stage, tuple(tuple(i for i, due in enumerate(schedule) if due.step.due(k)) for k in range(first, first + count)))

    def moves(self, schedule: Sequence[Due]) -> dict[str, int]:
        """How often each optimizer moves."""
        counts: dict[str, int] = {}
        for update in self.dues:
            for due in (schedule[i] for i in update):
                if due.moments_key:
                    counts[due.moments_key] = counts.get(due.moments_key, 0) + 1
        return counts


class Chunk:
    """The updates of a pattern, from counters on the device.

    Call it after `start`; it returns the metrics, name -> ``[evaluations, S]`` in order. It does not wait for the device.
    """

    def __init__(self, updater: Updater, feeds: Sequence[Feed], schedule: Sequence[Due], pattern: Pattern, device: torch.device) -> None:
        self._updater, self._feeds, self._schedule, self._pattern = updater, feeds, schedule, pattern
        self._counter = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(len(pattern.dues), device=device)
        self._taken = {key: torch.zeros((), dtype=torch.int64, device=device) for key in pattern.moves(schedule)}

    def start(self, step: int, taken: Mapping[str, int]) -> None:
        """Set the counters to the number of the first update, and of the moves of each optimizer before it."""
        self._counter.fill_(step)
        for key, count in self._taken.items():
            count.fill_(taken[key])

    def __call__(self) -> dict[str, Tensor]:
        steps = self._counter + self._places  # [K]
        drawn = [feed.batch(steps) for feed in self._feeds]  # all at once: a draw takes a hundred small kernels, for one update as for many
        taken = dict(self._taken)
        rows: dict[str, list[Tensor]] = {}
        for i, update in enumerate(self._pattern.dues):
            batches = [at(batch, i) for batch in drawn]
            for due in (self._schedule[place] for place in update):
                for name, value in self._updater.apply(due, batches, taken.get(due.moments_key, 0)).items():
                    rows.setdefault(name, []).append(value)
                if due.moments_key:
                    taken[due.moments_key] = taken[due.moments_key] + 1
        return {name: torch.stack(values) for name, values in rows.items()}


class CudaGraph:
    """A captured chunk. Warming up and capturing leave the training state unchanged."""

    def __init__(self, chunk: Chunk, state: Sequence[Tensor], pool: Any) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        before = [tensor.clone() for tensor in state]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM):
                chunk()
        current.wait_stream(side)
        restore(state, before)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (prefetch, heartbeat) may call the driver during a capture: only calls of this thread are checked.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._metrics = chunk()

    def __call__(self) -> dict[str, Tensor]:
        self._graph.replay()
        return {name: value.clone() for name, value in self._metrics.items()}  # the next replay overwrites them


Runner = Callable[[], dict[str, Tensor]]
Capture = Callable[[Chunk], Runner]


class Chunks:
    """Cuts a run into chunks and runs them.

    Args:
        schedules, feeds: of each stage, by its name.
        capture: makes a runner of a chunk; on the CPU the chunk itself is one.
        length: updates per chunk (see `length_for`).
    """

    def __init__(
        self,
        updater: Updater,
        schedules: Mapping[str, Sequence[Due]],
        feeds: Mapping[str, Sequence[Feed]],
        device: torch.device,
        *,
        capture: Capture,
        length: int = LENGTH,
    ) -> None:
        self._updater, self._schedules, self._feeds, self._device = updater, schedules, feeds, device
        self._capture, self.length = capture, length
        self._met: dict[Pattern, int] = {}
        self._made: dict[Pattern, tuple[Chunk, Runner]] = {}

    def run(self, stage: str, step: int, limit: int, taken: Mapping[str, int], *, at_once: bool = False) -> tuple[int, Any, Any]:
        """Do at most ``limit`` updates from ``step`` on, all of one stage.

        Args:
            at_once: capture a pattern at its first occurrence.

        Returns:
            the number of updates done (0: the pattern is not captured yet, so do a single update), their metrics, and the moves of the
            optimizers.
        """
        schedule = self._schedules[stage]
        pattern = Pattern.of(stage, schedule, step, min(limit, self.length))
        made = self._made.get(pattern)
        if made is None:
            met = self._met[pattern] = self._met.get(pattern, 0) + 1
            if len(self._made) >= GRAPHS or (met < MET and not at_once):
                return 0, {}, {}
            chunk = Chunk(self._updater, self._feeds[stage], schedule, pattern, self._device)
            chunk.start(step, taken)  # so that the warm-up draws valid batches
            made = self._made[pattern] = chunk, self._capture(chunk)
        chunk, runner = made
        chunk.start(step, taken)
        return len(pattern.dues), runner(), pattern.moves(schedule)


def cuda_capture(state: Sequence[Tensor]) -> Capture:
    """Capture chunks as CUDA graphs that share their memory: they run one after the other, and their results are copied at once."""
    pool = torch.cuda.graph_pool_handle()
    return lambda chunk: CudaGraph(chunk, state, pool)


def length_for(batch: Any) -> int:
    """Updates per chunk whose batches, like this one, fit into `BATCH_BYTES`."""
    return max(1, min(LENGTH, BATCH_BYTES // max(1, sum(tensor.nbytes for tensor in tensors_of(batch)))))


def at(batch: Any, place: int) -> Any:
    """Return one update's batch out of those of many, whose axis comes first; on the CPU it is aligned like one drawn alone."""

    def one(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: one(part) for name, part in value.items()}
        return None if value is None else placed(value[place])

    return type(batch)(**{f.name: one(getattr(batch, f.name)) for f in dataclasses.fields(batch)})


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors of a batch."""
    values = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    flat = [part for value in values for part in (value.values() if isinstance(value, Mapping) else [value])]
    return [part for part in flat if part is not None]


def restore(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Put earlier values back, in place."""
    with torch.no_grad():
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)


def moved_alike(start: Sequence[Tensor], one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two runs moved the state from ``start`` to the same place, up to rounding.

    Adam turns a rounding error of a gradient near zero into a whole step, so single elements are not compared: on average a tensor may
    differ by `SLACK` of its mean move. A step left out or a wrong batch differs by as much as it moved.
    """
    for before, a, b in zip(start, one, other, strict=True):
        moved, apart = (a - before).double().abs().mean(), (a - b).double().abs().mean()
        if not torch.isfinite(b.double()).all() or apart > SLACK * moved + 1e-7 * before.double().abs().mean():
            return False
    return True
