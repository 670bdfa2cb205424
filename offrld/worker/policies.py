"""Policy files of a train job: exported from the learner, evaluated by running the very file, with what is known about them inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offrl import rollout

from offrld import settings
from offrld.engine import Learner
from offrld.export.onnx import PolicyExporter
from offrld.worker.control import Control
from offrld.worker.report import json_safe
from offrld.worker.runfolder import RunFolder

EVALUATION_SEED = 1000   # of the first episode's reset, as in `offrl evaluate`


class PolicyFiles:
    """Exports and evaluates policies of one learner. The graph is traced once for all seeds and steps."""

    def __init__(self, learner: Learner, run: RunFolder, *, job: str, dataset: str) -> None:
        """``job``, ``dataset``: names that go into the file."""
        self._learner, self._run = learner, run
        self._job, self._dataset = job, dataset
        self._exporter = PolicyExporter()

    def export(self, seed: int, evaluation: dict[str, Any] | None = None) -> Path:
        """Write the policy of a seed at the learner's step, with the results of its ``evaluation``; returns its path."""
        path = self._run.policy(seed, self._learner.step)
        self._write(path, seed, evaluation)
        return path

    def evaluate(self, seed: int, env_id: str, episodes: int, control: Control) -> rollout.Evaluation:
        """Export the policy of a seed, run the file in an environment, and write it again with the results.

        Raises `Stopped` between two episodes.
        """
        trial = self._run.seed(seed) / ".evaluating.onnx"
        try:
            self._write(trial, seed, None)
            result = rollout.evaluate(trial, env_id, episodes, EVALUATION_SEED, on_episode=lambda done: control.check())
        finally:
            trial.unlink(missing_ok=True)
        self.export(seed, {**result.as_json(), "seed": EVALUATION_SEED})
        return result

    def _write(self, path: Path, seed: int, evaluation: dict[str, Any] | None) -> None:
        learner = self._learner
        path.parent.mkdir(parents=True, exist_ok=True)
        store, space = learner.store, learner.space
        observation = {name: (field["dtype"], tuple(field["shape"])) for name, field in space["observation"].items()}
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
        if evaluation is not None:
            metadata["evaluation"] = evaluation
        only = next(iter(observation)) == "observation" and len(observation) == 1
        self._exporter.export(
            learner.policy(seed), path, observation=observation["observation"] if only else observation,
            discrete=space["discrete"], metadata=json_safe(metadata),
        )  # fmt: skip
