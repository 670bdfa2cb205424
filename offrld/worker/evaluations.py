"""Evaluations of a training job. A failure adds a warning and a row of the metric `FAILED`; the job continues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from offrl.errors import EnvironmentFailed, InvalidInput
from offrld.collect.online import EVALUATION_FAILURES
from offrld.state.metric_files import MetricFiles, read_metric
from offrld.state.run_folder import RunFolder

FAILED = "evaluation_failed"  # metric: number of failed evaluations of a seed so far
DEATHS = 2  # deaths of the process in consecutive evaluations after which none is tried again
ERRORS = (EnvironmentFailed, InvalidInput)


class Evaluations:
    """The evaluations of a job. Their state follows from the metric rows alone, so that a resumed job continues the count.

    Attributes:
        last: the message of the last failure of this attempt.
    """

    def __init__(self, run: RunFolder, metrics: MetricFiles, seeds: Sequence[int]) -> None:
        self._run, self._metrics, self._seeds = run, metrics, seeds
        self.last = ""

    def due(self, step: int, seeds: Sequence[int]) -> list[int]:
        """Return the ``seeds`` without a result at ``step``; a failure is a result."""
        return [seed for seed in seeds if not any(self._metrics.recorded(name, step, [seed]) for name in ("return_std", FAILED))]

    @property
    def given_up(self) -> bool:
        """Whether a seed has failed `EVALUATION_FAILURES` evaluations in a row, after which none is tried again."""
        for seed in self._seeds:
            failed, done = self._steps(FAILED, seed), self._steps("return_std", seed)
            if sum(step > max(done, default=-1) for step in failed) >= EVALUATION_FAILURES:
                return True
        return False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mark one evaluation as running. An environment can end the process; the mark shows that to the next attempt.

        Raises `EnvironmentFailed` if that has happened `DEATHS` times.
        """
        note = self._run.evaluating
        deaths = len(note.read_bytes()) if note.exists() else 0
        if deaths >= DEATHS:
            raise EnvironmentFailed(f"the process ended in {deaths} evaluations in a row", hint="the log shows how")
        note.write_bytes(b"." * (deaths + 1))
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    def failed(self, step: int, errors: dict[int, EnvironmentFailed | InvalidInput]) -> str:
        """Record failures by seed; return the warning to show."""
        self._metrics.record(step, {FAILED: {seed: len(self._steps(FAILED, seed)) + 1 for seed in errors}})
        self.last = next(iter(errors.values())).message
        of = f" of seed {', '.join(map(str, errors))}" if len(self._seeds) > 1 else ""
        rest = f"; that is {EVALUATION_FAILURES} in a row: none is tried again" if self.given_up else "; training continues"
        return f"warning: step {step}: the evaluation{of} failed: {self.last}{rest}"

    def note(self) -> str:
        """Return the remark for a success; "" if no evaluation has failed."""
        failed = {step for seed in self._seeds for step in self._steps(FAILED, seed)}
        if not failed:
            return ""
        count = "the evaluation" if len(failed) == 1 else f"{len(failed)} evaluations, the last"
        return f"{count} at step {max(failed)} failed{f': {self.last}' if self.last else ''}"

    def _steps(self, name: str, seed: int) -> list[int]:
        return list(read_metric(self._run.metrics(seed) / f"{name}.csv"))
