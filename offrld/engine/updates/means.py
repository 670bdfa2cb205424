"""Running means of the losses' metrics: adding does not wait for the device, reading does, and is rare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PENDING = 1000  # values held as tensors before they are summed: bounds the memory of a long run


class Means:
    """Means per metric and seed since the last `take`.

    Values are summed one by one in float64, so a mean does not depend on when the pending tensors were read, and the sums can
    stand in a checkpoint: a resumed run gives the same means as one that was not interrupted.
    """

    def __init__(self, seeds: Sequence[int], also: Means | None = None) -> None:
        """``also``: other means that receive the same values."""
        self._seeds = tuple(seeds)
        self._also = also
        self._pending: dict[str, list[Tensor]] = {}  # [rows, S] each
        self._rows: dict[str, int] = {}
        self._sums: dict[str, tuple[list[float], int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add values ``[S]`` of one update, or ``[rows, S]`` of several in their order."""
        if self._also is not None:
            self._also.add(metrics)
        for name, values in metrics.items():
            pending = self._pending.setdefault(name, [])
            pending.append(values if values.dim() == 2 else values.unsqueeze(0))
            rows = self._rows[name] = self._rows.get(name, 0) + len(pending[-1])
            if rows >= _PENDING:
                self._fold(name)

    def _fold(self, name: str) -> None:
        pending = self._pending.pop(name, None)
        if not pending:
            return
        sums, count = self._sums.get(name, ([0.0] * len(self._seeds), 0))
        for row in torch.cat(pending).tolist():
            sums = [total + value for total, value in zip(sums, row, strict=True)]
        self._sums[name] = (sums, count + self._rows.pop(name))

    def peek(self) -> dict[str, dict[int, float]]:
        """The means so far."""
        for name in list(self._pending):
            self._fold(name)
        return {name: {seed: s / count for seed, s in zip(self._seeds, sums, strict=True)} for name, (sums, count) in self._sums.items()}

    def take(self) -> dict[str, dict[int, float]]:
        """Return the means and start over."""
        means = self.peek()
        self._sums = {}
        return means

    def as_json(self) -> dict[str, Any]:
        """Return the sums, exactly: JSON keeps every bit of a float64."""
        for name in list(self._pending):
            self._fold(name)
        return {name: [sums, count] for name, (sums, count) in self._sums.items()}

    @classmethod
    def from_json(cls, seeds: Sequence[int], sums: dict[str, Any]) -> Means:
        """Rebuild the means from their `as_json`."""
        means = cls(seeds)
        means._sums = {name: (list(values), int(count)) for name, (values, count) in sums.items()}
        return means


class Spent:
    """Seconds that updates took, for their batches and for the rest."""

    def __init__(self) -> None:
        self.sample = self.update = 0.0
        self.updates = 0

    def take(self) -> dict[str, float]:
        """Return the seconds per update and start over; empty if there was no update."""
        count, spent = self.updates, {"time_sample_batch": self.sample, "time_algorithm_update": self.update}
        self.sample, self.update, self.updates = 0.0, 0.0, 0
        return {name: seconds / count for name, seconds in spent.items()} if count else {}
