"""The run folder of a job: the path of everything in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from offrl.job import POLICY_SUFFIXES

CHECKPOINT_SUFFIX = ".safetensors"


class RunFolder:
    """The paths of one job's run folder. A worker claims the folder before it writes (`offrld.worker.claim`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "lock"  # held by the worker that writes here
        self.attempt = path / "attempt"  # number of the newest attempt
        self.spec = path / "spec.json"  # the run as it is: specification, seeds, versions
        self.config = path / "config.json"  # its resolved settings
        self.events = path / "events.jsonl"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self.dataset = path / "dataset"  # result of a dataset export
        self.inherited = path / "taken"  # see `offrld.state.inherited`
        self.steps = path / "steps.json"  # progress of a job that collects, when its data were last made durable
        self.evaluating = path / "evaluating"  # exists during an evaluation: one byte for each start since one last ended
        self.temporary = path / "tmp"

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint file of a step."""
        return self.checkpoints / f"{step:012d}{CHECKPOINT_SUFFIX}"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps with a checkpoint, ascending."""
        return _steps(self.checkpoints, rf"(\d{{12}}){re.escape(CHECKPOINT_SUFFIX)}")

    def seed(self, seed: int) -> Path:
        """Return the folder of one seed's outputs."""
        return self.path / f"seed-{seed}"

    def policy(self, seed: int, step: int, format: str = "onnx") -> Path:
        """Return the file of the exported policy of a seed at a step."""
        return self.seed(seed) / f"policy-{step:012d}{POLICY_SUFFIXES[format]}"

    def policy_steps(self, seed: int, format: str = "onnx") -> list[int]:
        """Return the steps with an exported policy of that seed, ascending."""
        return _steps(self.seed(seed), rf"policy-(\d{{12}}){re.escape(POLICY_SUFFIXES[format])}")

    def metrics(self, seed: int) -> Path:
        """Return the folder of a seed's metric files (`offrld.state.metric_files`)."""
        return self.seed(seed) / "metrics"

    def tensorboard(self, seed: int) -> Path:
        """Return the folder of a seed's TensorBoard events."""
        return self.seed(seed) / "tensorboard"


def _steps(folder: Path, pattern: str) -> list[int]:
    """Return the numbers in the names that match, ascending; none if the folder does not exist."""
    try:
        matches = [re.fullmatch(pattern, name) for name in os.listdir(folder)]
    except OSError:
        return []
    return sorted(int(match[1]) for match in matches if match)
