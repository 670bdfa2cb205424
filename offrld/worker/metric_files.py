"""Metric files of a train job: ``seed-S/metrics/NAME.csv`` with the header ``epoch,step,value``, and TensorBoard events.

A row belongs to a step and is written once: on resuming, rows after the checkpoint's step are cut, those up to it stand, and
`Metrics.record` leaves out what is there already. So a job that was killed and resumed has the rows of one that was not.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from offrl_store.disk import write_atomic
from offrld.worker.runfolder import RunFolder
from offrld.worker.tensorboard import EventWriter

HEADER = b"epoch,step,value\n"


class Metrics:
    """The metric files of all seeds of one run. ``latest`` holds name -> seed -> last value."""

    def __init__(self, run: RunFolder, seeds: list[int], interval: int) -> None:
        """``interval``: updates between two rows of the training metrics; a row's epoch is the number of its interval, from 1."""
        self._run = run
        self._seeds = seeds
        self._interval = interval
        self._last: dict[tuple[str, int], int] = {}  # (name, seed) -> step of the last row
        self._files: dict[tuple[str, int], int] = {}
        self._events: dict[int, EventWriter] = {}
        self._purge: int | None = None
        self.latest: dict[str, dict[int, float]] = {}

    def resume(self, step: int) -> None:
        """Cut all rows after ``step`` and go on from there."""
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
        """Whether these seeds have a row of that metric at ``step`` (or after it)."""
        return all(self._last.get((name, seed), -1) >= step for seed in seeds)

    def best_steps(self, name: str, steps: list[int]) -> set[int]:
        """Of these steps each seed's with the highest value (of equal ones the last)."""
        found = set()
        for seed in self._seeds:
            path = self._run.metrics(seed) / f"{name}.csv"
            rows = [(value, step) for step, value, _ in (_rows(path, steps[-1]) if steps and path.exists() else []) if step in steps]
            if rows:
                found.add(max(rows)[1])
        return found

    def evaluations_since_better(self, name: str, seed: int, step: int, delta: float) -> int:
        """Rows of a seed's metric up to ``step`` since the last that was more than ``delta`` above all before it."""
        path = self._run.metrics(seed) / f"{name}.csv"
        best, since = -math.inf, 0
        for _, value, _ in _rows(path, step) if path.exists() else []:
            best, since = (value, 0) if value > best + delta else (best, since + 1)
        return since

    def record(self, step: int, values: dict[str, dict[int, float]]) -> None:
        """Append the rows of one step: ``values`` is name -> seed -> value. Rows that are there already are left as they are."""
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
        """Make all rows durable; called before a checkpoint, which promises the rows up to its step."""
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
    """The name of a metric's file: what a shell or a file system would trip over becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", metric)


def read_metric(path: Path) -> dict[int, float]:
    """Step -> value of a metric file; empty where there is none."""
    return {step: value for step, value, _ in _rows(path, 10**18)} if path.exists() else {}


def _rows(path: Path, last_step: int) -> list[tuple[int, float, bytes]]:
    """The complete rows of a metric file up to a step: (step, value, line)."""
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
