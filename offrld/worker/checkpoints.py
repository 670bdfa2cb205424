"""The checkpoints of a run: write them, restore the newest, remove those that are not needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from offrld.engine import CheckpointCorrupt, Learner
from offrld.state.run_folder import RunFolder

INTERVAL_S = 60.0  # between checkpoints that guard against losing work; OFFRLD_CHECKPOINT_SECONDS overrides it
NEWEST = 2  # time-based checkpoints kept while training: the older one is for a damaged newest one


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        run: RunFolder,
        learner: Learner,
        keep: Callable[[int], bool],
        *,
        most: int = 0,
        best: Callable[[list[int]], set[int]] = set,
        step: Callable[[], int] | None = None,
        more: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """
        Args:
            keep: return whether a step is one of an evaluation; checkpoints of evaluations are kept.
            most: number of the last evaluations whose checkpoints are kept; 0: all.
            best: return the steps, of some steps, that `offrl fetch --best` may need; they are kept as well.
            step: return the number that names a checkpoint made now; by default the number of updates.
            more: return JSON that a checkpoint holds beside the learner.
        """
        self._run, self._learner, self._keep, self._most, self._best = run, learner, keep, most, best
        self._step, self._more = step or (lambda: learner.step), more
        self._interval_s = float(os.environ.get("OFFRLD_CHECKPOINT_SECONDS") or INTERVAL_S)
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def restore(self, log: Callable[[str], None]) -> bool:
        """Restore the newest intact checkpoint; return False if there is none. Damaged ones are logged and removed."""
        for leftover in self._run.checkpoints.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for step in reversed(self._run.checkpoint_steps()):
            try:
                self._learner.restore(self._run.checkpoint(step))
            except CheckpointCorrupt as error:
                log(f"skipped a damaged checkpoint: {error}")
                self._run.checkpoint(step).unlink()
                continue
            self._saved_step = step
            return True
        return False

    @property
    def due_in_s(self) -> float:
        """Seconds until the next time-based checkpoint; negative if it is late."""
        return self._saved_at + self._interval_s - time.monotonic()

    def save(self) -> None:
        """Write a checkpoint of the learner, and remove the checkpoints that it replaces."""
        step = self._step()
        if step != self._saved_step:
            self._learner.save(self._run.checkpoint(step), self._more())
            self._saved_step = step
        self._saved_at = time.monotonic()
        self._remove(self._run.checkpoint_steps()[:-NEWEST])

    def finish(self) -> None:
        """Remove all time-based checkpoints but the last: training is over."""
        self._remove(self._run.checkpoint_steps()[:-1])

    def _remove(self, steps: Iterable[int]) -> None:
        good = self._learner.guard.good
        before = [step for step in self._run.checkpoint_steps() if good is not None and step <= good]
        held = {before[-1]} if before else set()  # the last one from before a seed diverged
        evaluated = [step for step in self._run.checkpoint_steps() if self._keep(step)]
        held |= {*evaluated[-self._most :], *self._best(evaluated)} if self._most else set(evaluated)
        for step in steps:
            if step not in held:
                self._run.checkpoint(step).unlink(missing_ok=True)
