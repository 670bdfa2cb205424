"""Write the policy of one seed of a learner as a self-describing file; jobs and `Learner.export` use it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl import outfile
from offrl.errors import InvalidInput
from offrl.job import POLICY_SUFFIXES
from offrld import settings
from offrld.engine.learner.data import observation_column, spread_rows
from offrld.engine.learner.policy_networks import input_names
from offrld.export.onnx import PolicyExporter
from offrld.export.templates import Templates
from offrld.export.torchscript import export_torchscript
from offrld.json_safe import json_safe

if TYPE_CHECKING:
    from offrl_store import EpisodeStore
    from offrld.engine import Learner

SAMPLES = 1000  # number of dataset observations from which the parity check draws


class LearnerExporter:
    """Exports the policies of one learner. The graph is traced once for all seeds and steps.

    Args:
        job, dataset: names that the file's metadata record, or None.
        store: source of the observations for the parity check and of the environment's id; by default the learner's store. Without a
            store the check uses random observations.
        env_id: environment's id for the metadata, if there is no store.
        templates: folder with the graphs that earlier jobs traced.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        job: str | None = None,
        dataset: str | None = None,
        store: EpisodeStore | None = None,
        env_id: str | None = None,
        templates: Path | None = None,
    ) -> None:
        self._learner, self._job, self._dataset = learner, job, dataset
        self._exporter = PolicyExporter(None if templates is None else Templates(templates))
        self._samples: dict[str, np.ndarray] | None = None  # inputs of the parity check
        store = store or learner.store
        self._env_id = env_id if store is None else store.metadata.get("env_id")
        if store is not None:
            chosen = spread_rows(store, np.arange(len(store)), SAMPLES)
            frames = learner.actor.space.frame_stack
            self._samples = {name: _stacked(observation_column(store, name)[chosen], frames) for name in learner.actor.space.observation}

    def write(self, path: Path, seed: int, format: str = "onnx") -> None:
        """Write the current policy of a seed as ``onnx`` or ``torchscript``. Raises `CheckFailed` if the file differs from the network."""
        path.parent.mkdir(parents=True, exist_ok=True)
        export = self._exporter.export if format == "onnx" else export_torchscript
        export(self._learner.policy(seed), path, **self._arguments(seed))

    def check(self, seed: int | None = None) -> None:
        """Check that the policy of a seed (by default the first) can be exported to ONNX, without writing a file; raises `CheckFailed`.

        The traced graph is kept, so that a later `write` is faster.
        """
        seed = self._learner.seeds[0] if seed is None else seed
        self._exporter.export(self._learner.policy(seed), None, **self._arguments(seed))

    def _arguments(self, seed: int) -> dict[str, Any]:
        """Return the keyword arguments of an exporter for the policy of a seed."""
        learner, samples = self._learner, self._samples
        space, names = learner.space, input_names(learner.actor.space.observation)
        observation = {names[field]: spec for field, spec in learner.actor.space.inputs.items()}
        metadata = {
            "space": space,
            "algorithm": learner.algorithm.name,
            "config": settings.as_flat(learner.config),
            "dataset": {"name": self._dataset, "snapshot": learner.snapshot, "env_id": self._env_id},
            "job": self._job,
            "step": learner.step,
            "seed": seed,
            "versions": learner.describe_run()["versions"],
        }
        if any(name != field for field, name in names.items()):
            metadata["fields"] = {name: field for field, name in names.items()}
        named = None if samples is None else {names[field]: rows for field, rows in samples.items()}
        return {"observation": observation, "discrete": space["discrete"], "metadata": json_safe(metadata), "samples": named}


def export_learner(learner: Learner, path: str | os.PathLike[str], seed: int, *, force: bool = True) -> Path:
    """Write the policy of a seed as ``.onnx`` or ``.pt`` (TorchScript) and return its path.

    Raises `InvalidInput`, `CheckFailed`, and without ``force`` `Conflict` if the path holds a file with other content.
    """
    path = Path(path)
    format = next((format for format, suffix in POLICY_SUFFIXES.items() if suffix == path.suffix), None)
    if format is None:
        message = f"{os.fspath(path)!r} ends in neither .onnx nor .pt: a policy is an ONNX or a TorchScript file"
        raise InvalidInput(message, hint="for example export('policy.onnx')")
    exporter = LearnerExporter(learner)
    if force:
        exporter.write(path, seed, format)
        return path
    outfile.place(path)  # a bad path fails before the graph is traced
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        exporter.write(whole, seed, format)
        return outfile.write(path, whole.read_bytes())


def _stacked(rows: Any, frames: int) -> np.ndarray:
    """Return rows that repeat each observation ``frames`` times along its first axis, as the graph's inputs do."""
    if frames == 1:
        return rows
    rows = rows if rows.ndim > 1 else rows[:, None]
    return np.tile(rows, (1, frames, *(1,) * (rows.ndim - 2)))
