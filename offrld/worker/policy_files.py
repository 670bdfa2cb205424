"""Policy files of a train job: export them from the learner, evaluate them by running the file, and write the results into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from offrl import rollout
from offrl.errors import OffrlError
from offrld.engine import Learner
from offrld.export.learner import LearnerExporter
from offrld.export.onnx import annotate
from offrld.json_safe import json_safe
from offrld.state.run_folder import RunFolder
from offrld.worker.control import Control

EVALUATION_SEED = 1000  # of the first episode's reset, as in `offrl evaluate`


class PolicyFiles:
    """Exports and evaluates policies of one learner. The graph is traced once for all seeds and steps."""

    def __init__(self, learner: Learner, run: RunFolder, *, step: Callable[[], int] | None = None, **about: Any) -> None:
        """
        Args:
            step: return the number that names a file made now; by default the number of updates.
            about: arguments of `LearnerExporter`.
        """
        self._learner, self._run, self._step = learner, run, step or (lambda: learner.step)
        self._exporter = LearnerExporter(learner, **about)

    def export(self, seed: int, format: str = "onnx") -> Path:
        """Write the policy of a seed at the current step as ``onnx`` or ``torchscript``; return its path."""
        path = self._run.policy(seed, self._step(), format)
        self._exporter.write(path, seed, format)
        return path

    def check(self) -> None:
        """Raise `CheckFailed` if the current policy cannot be exported. A later export reuses the trace."""
        self._exporter.check()

    def evaluate(self, seed: int, env_id: str, episodes: int, control: Control) -> rollout.Evaluation:
        """Export the policy of a seed, run the file in an environment, and write the results into the file.

        Raises `Stopped` between two episodes, and the errors of `rollout.evaluate`; after those the file exists without results.
        """
        trial = self._run.seed(seed) / ".evaluating.onnx"
        try:
            self._exporter.write(trial, seed)
            try:
                result = rollout.evaluate(trial, env_id, episodes, EVALUATION_SEED, on_episode=lambda done: control.check())
            except OffrlError:
                trial.replace(self._run.policy(seed, self._step()))
                raise
            annotate(trial, {"evaluation": json_safe({**result.as_json(), "seed": EVALUATION_SEED})})
            trial.replace(self._run.policy(seed, self._step()))
        finally:
            trial.unlink(missing_ok=True)
        return result
