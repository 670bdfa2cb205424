"""An export job: write a policy file from a checkpoint of a train job, to the place where the train job itself would write it."""

from __future__ import annotations

import json
from typing import Any

from offrl.errors import InvalidInput, OffrlError, Unknown
from offrl.job import ExportSpec, TrainOnlineSpec, TrainSpec
from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.engine import Algorithm, CheckpointCorrupt, Learner
from offrld.engine.learner.guards import Diverged
from offrld.inprocess.training import load
from offrld.state.run_folder import RunFolder
from offrld.worker import inherited
from offrld.worker.job import WorkerJob
from offrld.worker.policy_files import PolicyFiles


def run(job: WorkerJob[ExportSpec]) -> None:
    """Run the export. Raises `Unknown` or `InvalidInput` for a job, seed or step without a checkpoint."""
    spec = job.spec
    source = job.state.run(spec.job)
    try:
        described = json.loads(source.spec.read_text())
        config = json.loads(source.config.read_text())
        spec_type: type[TrainSpec | TrainOnlineSpec] = TrainOnlineSpec if described["spec"]["kind"] == "train_online" else TrainSpec
        trained = spec_type.model_validate(described["spec"])
    except FileNotFoundError:
        raise InvalidInput(f"job {spec.job!r} has not started to train", hint="wait for its first checkpoint") from None
    seed = trained.seeds[0] if spec.seed is None else spec.seed
    if seed not in trained.seeds:
        raise Unknown(f"job {spec.job!r} did not train seed {seed}", hint=f"trained seeds: {', '.join(map(str, trained.seeds))}")
    step = _step(spec, source)
    job.report.progress(0, 1, force=True)
    if not source.policy(seed, step, spec.format).exists():
        learner, step = _load(job, spec, source, get(trained.algorithm), config)
        job.control.check()
        if (trouble := learner.guard.stopped.get(seed)) is not None:
            raise Diverged(f"job {spec.job}: {trouble}", hint=f"it was sound at step {trouble.good}: fetch --step K")
        store = _store(job, trained, described["snapshot"]) if isinstance(trained, TrainSpec) else None
        about = {
            "job": spec.job,
            "dataset": trained.dataset,
            "env_id": trained.env if isinstance(trained, TrainOnlineSpec) else described.get("env_id"),
            "templates": job.state.policy_templates,
        }
        PolicyFiles(learner, source, step=lambda: step, store=store, **about).export(seed, spec.format)
    job.report.message(f"policy of job {spec.job}: {source.policy(seed, step, spec.format).relative_to(source.path)}")
    job.report.progress(1, 1, force=True)


def _step(spec: ExportSpec, source: RunFolder) -> int:
    """Return the step of the checkpoint to export: the specified one or, without one, the newest. Raises `InvalidInput`, `Unknown`."""
    steps = source.checkpoint_steps()
    if not steps:
        raise InvalidInput(f"job {spec.job!r} has no checkpoint yet", hint="checkpoints are made about once a minute, and at the end")
    if spec.step is None:
        return steps[-1]
    if spec.step not in steps:
        shown = ", ".join(map(str, steps[-12:]))
        raise Unknown(f"job {spec.job!r} has no checkpoint at step {spec.step}", hint=f"it has checkpoints at {shown}")
    return spec.step


def _load(job: WorkerJob, spec: ExportSpec, source: RunFolder, algorithm: Algorithm, config: dict[str, Any]) -> tuple[Learner, int]:
    """Load a learner from a checkpoint; return it and the checkpoint's step.

    The job may still run: a checkpoint that it has replaced meanwhile is not an error.
    """
    inputs = inherited.inputs(job.state, source, algorithm, algorithm.configure(config))
    while True:
        step = _step(spec, source)
        try:
            return load(source.checkpoint(step), device="cpu", runner="eager", threads=1, inputs=inputs), step
        except (CheckpointCorrupt, InvalidInput):
            if source.checkpoint(step).exists():
                raise


def _store(job: WorkerJob, trained: TrainSpec, snapshot: str) -> EpisodeStore | None:
    """Open the dataset, whose observations the parity check uses; None if it cannot be read: the check then uses random observations."""
    try:
        return EpisodeStore.open(job.state.dataset(trained.dataset), snapshot)
    except OffrlError as error:
        job.report.message(f"the policy is checked on random observations: dataset {trained.dataset!r} cannot be read: {error}")
        return None
