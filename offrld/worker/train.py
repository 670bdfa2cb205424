"""A train job: updates on a dataset, with validation on held-out episodes."""

from __future__ import annotations

import json
from typing import Any

from offrl.job import TrainSpec
from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.engine import Learner
from offrld.engine.updates.allocator import keep_freed_memory
from offrld.worker import inherited
from offrld.worker.job import WorkerJob
from offrld.worker.training_job import Means, Stepper, TrainingJob

ROWS = 100  # least number of metric rows over a run
MOST_ROWS_APART = 1000  # most updates between two rows of the training metrics
VALIDATIONS = 10  # number over a run, unless --eval-every is set


def run(job: WorkerJob[TrainSpec]) -> str:
    """Train, from the newest checkpoint if there is one; return the remark for a success, or "".

    Raises `OffrlError`, or `Stopped` after it has written a checkpoint.
    """
    return TrainingJob(job, DatasetStepper(job)).run()


class DatasetStepper(Stepper):
    """Trains on a snapshot of a dataset; a step is an update."""

    def __init__(self, job: WorkerJob[TrainSpec]) -> None:
        spec = job.spec
        self._job, self._spec = job, spec
        algorithm = get(spec.algorithm)
        config = algorithm.configure(spec.config, spec.preset)
        self._store = EpisodeStore.open(job.state.dataset(spec.dataset), job.snapshot)
        bounds = None
        if spec.eval_env is not None:
            from offrld.worker.environment import check_environment  # loads gymnasium

            bounds = check_environment(spec.eval_env, self._store.schema)
        job.control.check()
        keep_freed_memory()
        self.learner = Learner.create(
            algorithm,
            config,
            self._store,
            seeds=spec.seeds,
            device=spec.device,
            runner=self._runner(),
            threads=spec.threads,
            holdout=spec.validation,
            bounds=bounds,
            env_id=spec.eval_env,
            cache_dir=job.state.inductor_cache,
            inputs=inherited.inputs(job.state, job.run, algorithm, config),
            start=inherited.start(job.state, job.run, spec),
            transfer=spec.transfer,
            fresh_optimizer=spec.fresh_optimizer,
            log=job.report.learner,
        )
        self.steps = spec.steps
        self.interval = max(1, min(MOST_ROWS_APART, spec.steps // ROWS))
        self.eval_every = spec.eval_every
        self.validate_every = (spec.eval_every or max(1, spec.steps // VALIDATIONS)) if spec.validation > 0 else None
        self.early_stop, self.early_stop_delta = spec.early_stop, spec.early_stop_delta

    def _runner(self) -> str:
        """Return the runner of an earlier attempt if there was one, so that the resumed run computes the same numbers."""
        run = self._job.run
        if self._spec.runner == "auto" and run.checkpoint_steps() and run.spec.exists():
            return json.loads(run.spec.read_text()).get("run", {}).get("runner", "auto")
        return self._spec.runner

    @property
    def step(self) -> int:
        return self.learner.step

    def resume(self, *, restored: bool) -> str:
        return f"resumed from the checkpoint at step {self.step}" if restored else ""

    def advance(self, count: int) -> None:
        self.learner.run(count)

    def take_metrics(self) -> Means:
        return self.learner.metrics()

    def validate(self) -> Means:
        """Return the losses on held-out episodes, and how well the policies match the actions there."""
        if not self.learner.algorithm.has_policy:
            return self.learner.validate()
        from offrld.evaluate.offline import evaluate_offline  # not needed before the first validation

        near = {f"validation_{name}": values for name, values in evaluate_offline(self.learner).items()}
        return {**self.learner.validate(), **near}

    def describe(self) -> dict[str, Any]:
        return {"snapshot": str(self._store.snapshot()), "env_id": self._store.metadata.get("env_id")}
