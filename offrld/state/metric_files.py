"""Metric files of a run: ``seed-S/metrics/NAME.csv`` with the header ``epoch,step,value``, and TensorBoard events.

A row belongs to a step and is written once. A resumed run cuts the rows after its checkpoint's step, and `MetricFiles.record` skips rows
that exist already, so that a job that was killed and resumed has the same rows as one that was not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from pathlib import Path

from offrl_store.disk import write_atomic
from offrld.state.run_folder import RunFolder
from offrld.state.tensorboard import EventWriter

HEADER = b"epoch,step,value\n"


class MetricFiles:
    """The metric files of all seeds of one run. ``latest`` maps name -> seed -> last value."""

    def __init__(self, run: RunFolder, seeds: list[int], interval: int) -> None:
        """``interval``: steps between two rows of the training metrics; the epoch of a row is the number of its interval, from 1."""
        self._run = run
        self._seeds = seeds
        self._interval = interval
        self._last: dict[tuple[str, int], int] = {}  # (name, seed) -> step of the last row
        self._files: dict[tuple[str, int], int] = {}
        self._events: dict[int, EventWriter] = {}
        self._purge: int | None = None
        self.latest: dict[str, dict[int, float]] = {}

    def resume(self, step: int) -> None:
        """Cut all rows after ``step`` and continue from there."""
        for seed in self._seeds:
            for path in sorted(self._run.metrics(seed).glob("*.csv")):
                rows = _rows(path, step)
                write_atomic(path, HEADER + b"".join(line for _, _, line in rows))
                if rows:
                    last, value, _ = rows[-1]
                    self._last[path.stem, seed] = last
                    self.latest.setdefault(path.stem, {})[seed] = value
            if self._run.tensorboard(seed).is_dir():
                self._purge = step + 1

    def recorded(self, name: str, step: int, seeds: list[int]) -> bool:
        """Return whether each of these seeds has a row of that metric at ``step`` or later."""
        return all(self._last.get((name, seed), -1) >= step for seed in seeds)

    def best_steps(self, name: str, steps: list[int]) -> set[int]:
        """Return for each seed the step with the highest value among ``steps`` (the last of equal ones)."""
        best = (best_step(self._run.metrics(seed) / f"{name}.csv", steps) for seed in self._seeds)
        return {step for step in best if step is not None}

    def evaluations_since_better(self, name: str, seed: int, step: int, delta: float) -> int:
        """Count a seed's rows up to ``step`` since the last one that was more than ``delta`` above all earlier ones."""
        best, since = -math.inf, 0
        for row, value in read_metric(self._run.metrics(seed) / f"{name}.csv").items():
            if row <= step:
                best, since = (value, 0) if value > best + delta else (best, since + 1)
        return since

    def record(self, step: int, values: dict[str, dict[int, float]]) -> None:
        """Append the rows of one step; ``values`` maps name -> seed -> value. Rows that exist already stay as they are."""
        shown: dict[int, dict[str, float]] = {}
        for metric, of_seeds in values.items():
            name = file_name(metric)
            for seed, value in of_seeds.items():
                self.latest.setdefault(name, {})[seed] = value
                if self._last.get((name, seed), -1) >= step:
                    continue
                self._last[name, seed] = step
                epoch = -(-step // self._interval)
                os.write(self._file(name, seed), f"{epoch},{step},{float(value)!r}\n".encode())
                shown.setdefault(seed, {})[name] = value
        for seed, scalars in shown.items():
            if seed not in self._events:
                self._events[seed] = EventWriter(self._run.tensorboard(seed), self._purge)
            self._events[seed].scalars(step, scalars)

    def sync(self) -> None:
        """Make all rows durable. Call it before a checkpoint, which promises the rows up to its step."""
        for descriptor in self._files.values():
            os.fsync(descriptor)

    def _file(self, name: str, seed: int) -> int:
        if (name, seed) not in self._files:
            folder = self._run.metrics(seed)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.csv"
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.fstat(descriptor).st_size == 0:
                os.write(descriptor, HEADER)
            self._files[name, seed] = descriptor
        return self._files[name, seed]


def file_name(metric: str) -> str:
    """Return the name of a metric's file, with an underscore for every character that a shell or a file system may reject."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", metric)


def read_metric(path: Path) -> dict[int, float]:
    """Map step -> value of a metric file; empty if the file does not exist."""
    return {step: value for step, value, _ in _rows(path)} if path.exists() else {}


def best_step(path: Path, steps: Collection[int]) -> int | None:
    """Return the step with the highest value in a metric file among ``steps``, the last of equal ones; None if none has a value."""
    values = read_metric(path)
    evaluated = [step for step in steps if not math.isnan(values.get(step, math.nan))]
    return max(evaluated, key=lambda step: (values[step], step), default=None)


def _rows(path: Path, last_step: float = math.inf) -> list[tuple[int, float, bytes]]:
    """Return the complete rows of a metric file up to a step: (step, value, line)."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True)[1:]:
        parts = line.split(b",")
        try:
            step, value = int(parts[1]), float(parts[2])
        except (IndexError, ValueError):
            break
        if not line.endswith(b"\n") or step > last_step:
            break
        rows.append((step, value, line))
    return rows
