"""An export job: a policy file from a checkpoint of a train job, written where the train job itself would have put it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from offrl.errors import InvalidInput, Unknown
from offrl.job import ExportSpec, TrainOnlineSpec, TrainSpec
from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.engine import CheckpointCorrupt, Learner
from offrld.engine.guards import Diverged
from offrld.training import load
from offrld.worker import taken
from offrld.worker.job import WorkerJob
from offrld.worker.policies import PolicyFiles
from offrld.worker.runfolder import RunFolder


def run(job: WorkerJob) -> None:
    """Run the export; raises `Unknown` or `InvalidInput` for a job, seed or step that has no checkpoint."""
    spec: ExportSpec = job.spec
    source = job.state.run(spec.job)
    try:
        described = json.loads(source.spec.read_text())
        config = json.loads(source.config.read_text())
        online = described["spec"]["kind"] == "train_online"
        trained = (TrainOnlineSpec if online else TrainSpec).model_validate(described["spec"])
    except FileNotFoundError:
        raise InvalidInput(f"job {spec.job!r} has not begun to train", hint="wait for its first checkpoint") from None
    seed = trained.seeds[0] if spec.seed is None else spec.seed
    if seed not in trained.seeds:
        raise Unknown(f"job {spec.job!r} did not train seed {seed}", hint=f"trained: {', '.join(map(str, trained.seeds))}")
    step = _step(spec, source)
    job.report.progress(0, 1, force=True)
    if not source.policy(seed, step, spec.format).exists() and online:
        learner, step = _load(spec, source)
        job.control.check()
        PolicyFiles(learner, source, job=spec.job, dataset=trained.dataset, step=lambda: step).export(seed, spec.format)
    elif not source.policy(seed, step, spec.format).exists():
        algorithm = get(trained.algorithm)
        settings = algorithm.configure(config)
        learner = Learner.create(
            algorithm, settings, EpisodeStore.open(job.state.dataset(trained.dataset), described["snapshot"]),
            seeds=trained.seeds, device="cpu", runner="eager", threads=1, holdout=trained.validation,
            inputs=taken.inputs(job.state, source, algorithm, settings), start=taken.start(job.state, source, trained),
            transfer=trained.transfer, fresh_optimizer=trained.fresh_optimizer,
            **_bounds(trained, described["space"]),
        )  # fmt: skip
        step = _restore(learner, spec, source)
        job.control.check()
        if (trouble := learner.guard.stopped.get(seed)) is not None:
            raise Diverged(f"job {spec.job}: {trouble}", hint=f"it was in order at step {trouble.good}: fetch --step K")
        PolicyFiles(learner, source, job=spec.job, dataset=trained.dataset).export(seed, spec.format)
    job.report.message(f"policy of job {spec.job}: {source.policy(seed, step, spec.format).relative_to(source.path)}")
    job.report.progress(1, 1, force=True)


def _load(spec: ExportSpec, source: RunFolder) -> tuple[Learner, int]:
    """The learner of a job that trains online, from its checkpoint alone, and the step that names it; as `_restore`."""
    while True:
        step = _step(spec, source)
        try:
            return load(source.checkpoint(step), device="cpu", runner="eager", threads=1), step
        except (CheckpointCorrupt, InvalidInput):
            if source.checkpoint(step).exists():
                raise


def _step(spec: ExportSpec, source: RunFolder) -> int:
    """The step that is asked for, where there is a checkpoint of it; the newest where none is asked for."""
    steps = source.checkpoint_steps()
    if not steps:
        raise InvalidInput(f"job {spec.job!r} has no checkpoint yet", hint="checkpoints are made about once a minute, and at the end")
    if spec.step is None:
        return steps[-1]
    if spec.step not in steps:
        shown = ", ".join(map(str, steps[-12:]))
        raise Unknown(f"job {spec.job!r} has no checkpoint at step {spec.step}", hint=f"there are: {shown}")
    return spec.step


def _restore(learner: Learner, spec: ExportSpec, source: RunFolder) -> int:
    """Restore the checkpoint and return its step. The job may still run: a checkpoint that it has replaced meanwhile is no error."""
    while True:
        step = _step(spec, source)
        try:
            learner.restore(source.checkpoint(step))
        except CheckpointCorrupt:
            if source.checkpoint(step).exists():
                raise
        else:
            return step


def _bounds(trained: TrainSpec, space: dict[str, Any]) -> dict[str, Any]:
    """The bounds that the train job took from its evaluation environment."""
    if trained.eval_env is None or space["low"] is None or space["source"] != f"env:{trained.eval_env}":
        return {}
    return {"bounds": (np.asarray(space["low"]), np.asarray(space["high"])), "env_id": trained.eval_env}
