"""Policy files of a train job: exported from the learner, evaluated by running the very file, with what is known about them inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offrl import rollout
from offrld import settings
from offrld.engine import Learner
from offrld.engine.data import observation_column
from offrld.export.onnx import PolicyExporter, annotate
from offrld.export.torchscript import export_torchscript
from offrld.worker.control import Control
from offrld.worker.report import json_safe
from offrld.worker.runfolder import RunFolder

EVALUATION_SEED = 1000   # of the first episode's reset, as in `offrl evaluate`
SAMPLES = 1000           # observations of the dataset that the parity check draws from


class PolicyFiles:
    """Exports and evaluates policies of one learner. The graph is traced once for all seeds and steps."""

    def __init__(self, learner: Learner, run: RunFolder, *, job: str, dataset: str) -> None:
        """``job``, ``dataset``: names that go into the file."""
        self._learner, self._run = learner, run
        self._job, self._dataset = job, dataset
        self._exporter = PolicyExporter()
        store = learner.store
        every = max(1, len(store.column("reward")) // SAMPLES)
        self._samples = {  # what the parity check runs on
            name: _stacked(observation_column(store, name)[::every][:SAMPLES], learner.space_.frame_stack)
            for name in learner.space["observation"]
        }

    def export(self, seed: int, format: str = "onnx") -> Path:
        """Write the policy of a seed at the learner's step, as ``onnx`` or ``torchscript``; returns its path."""
        path = self._run.policy(seed, self._learner.step, format)
        self._write(path, seed, format)
        return path

    def evaluate(self, seed: int, env_id: str, episodes: int, control: Control) -> rollout.Evaluation:
        """Export the policy of a seed, run the file in an environment, and put the results into it.

        Raises `Stopped` between two episodes.
        """
        trial = self._run.seed(seed) / ".evaluating.onnx"
        try:
            self._write(trial, seed, "onnx")
            result = rollout.evaluate(trial, env_id, episodes, EVALUATION_SEED, on_episode=lambda done: control.check())
            annotate(trial, {"evaluation": json_safe({**result.as_json(), "seed": EVALUATION_SEED})})
            trial.replace(self._run.policy(seed, self._learner.step))
        finally:
            trial.unlink(missing_ok=True)
        return result

    def _write(self, path: Path, seed: int, format: str) -> None:
        learner = self._learner
        path.parent.mkdir(parents=True, exist_ok=True)
        store, space = learner.store, learner.space
        observation = learner.space_.inputs
        metadata = {
            "space": space,
            "algorithm": learner.algorithm.name,
            "config": settings.as_flat(learner.config),
            "dataset": {"name": self._dataset, "snapshot": str(store.snapshot()), "env_id": store.metadata.get("env_id")},
            "job": self._job,
            "step": learner.step,
            "seed": seed,
            "versions": learner.describe_run()["versions"],
        }
        only = next(iter(observation)) == "observation" and len(observation) == 1
        export = self._exporter.export if format == "onnx" else export_torchscript
        export(
            learner.policy(seed), path, observation=observation["observation"] if only else observation,
            discrete=space["discrete"], metadata=json_safe(metadata), samples=self._samples["observation"] if only else self._samples,
        )  # fmt: skip


def _stacked(rows: np.ndarray, frames: int) -> np.ndarray:
    """Rows as if each were ``frames`` equal ones joined along their first axis: the range of the graph's inputs."""
    if frames == 1:
        return rows
    rows = rows if rows.ndim > 1 else rows[:, None]
    return np.tile(rows, (1, frames, *(1,) * (rows.ndim - 2)))
