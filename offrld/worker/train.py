"""A train job: updates in blocks, with metrics, validation, evaluation and checkpoints at fixed steps.

What is computed depends on the step number alone, never on time: a run that was paused or killed and resumed writes the same
metric rows and the same final state as one that was not. Time only decides how large the blocks are, and when a checkpoint
beyond the fixed ones is made.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from offrl.job import TrainSpec
from offrl_store import EpisodeStore
from offrld import settings
from offrld.algos import get
from offrld.engine import Learner
from offrld.engine.learner.guards import HELP, Diverged, Trouble
from offrld.engine.updates.allocator import keep_freed_memory
from offrld.json_safe import json_safe
from offrld.state.files import write_json
from offrld.state.metric_files import MetricFiles
from offrld.worker import inherited
from offrld.worker.checkpoints import Checkpoints
from offrld.worker.control import Stopped
from offrld.worker.evaluations import ERRORS, Evaluations
from offrld.worker.failures import report_cause
from offrld.worker.job import WorkerJob
from offrld.worker.pace import Pace
from offrld.worker.versions import installed

MOST_ROWS_APART = 1000  # updates between two rows of the training metrics, at most
VALIDATIONS = 10  # over a run, where --eval-every does not say


def run(job: WorkerJob) -> str:
    """Train, from the newest checkpoint where there is one; what is to be said of a success ("": nothing).

    Raises `OffrlError`, or `Stopped` with a checkpoint made.
    """
    return Training(job).run()


class Training:
    """One attempt at a train job."""

    def __init__(self, job: WorkerJob) -> None:
        spec: TrainSpec = job.spec
        self.job, self.spec = job, spec
        algorithm = get(spec.algorithm)
        config = algorithm.configure(spec.config, spec.preset)
        store = EpisodeStore.open(job.state.dataset(spec.dataset), job.snapshot)
        bounds = None
        if spec.eval_env is not None:
            from offrld.worker.environment import check_environment

            bounds = check_environment(spec.eval_env, store.schema)
        job.control.check()
        keep_freed_memory()
        self.learner = Learner.create(
            algorithm,
            config,
            store,
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
        self.interval = max(1, min(MOST_ROWS_APART, spec.steps // 100))
        self.validate_every = spec.eval_every or max(1, spec.steps // VALIDATIONS)
        self.metrics = MetricFiles(job.run, spec.seeds, self.interval)
        self.checkpoints = Checkpoints(
            job.run,
            self.learner,
            self._is_evaluation,
            most=job.keep_checkpoints,
            best=lambda steps: self.metrics.best_steps("return_mean", steps),
        )
        self.evaluations = Evaluations(job.run, self.metrics, spec.seeds)
        self.pace = Pace()
        self._policies: Any = None

    def _runner(self) -> str:
        """The runner of an earlier attempt where there was one, so that the resumed run computes the same numbers."""
        if self.spec.runner == "auto" and self.job.run.checkpoint_steps() and self.job.run.spec.exists():
            return json.loads(self.job.run.spec.read_text()).get("run", {}).get("runner", "auto")
        return self.spec.runner

    # ------------------------------------------------------------------------------------------------------------ the loop
    def run(self) -> str:
        """Train to the end; the reason that a success comes with, where seeds have diverged."""
        job, learner, steps = self.job, self.learner, self.spec.steps
        if self.checkpoints.restore(job.report.message):
            self.metrics.resume(learner.step)
            job.report.message(f"resumed from the checkpoint at step {learner.step}")
        else:
            self.metrics.resume(0)
        self._describe()
        if learner.runner == "compile":
            job.report.message("compiling the update: the first one may take a minute")
        try:
            if learner.step > 0:
                self._evaluate()  # of that step, where an earlier attempt did not come to it
            job.report.busy("compiling" if learner.runner != "eager" else "loading")  # until the first update is done
            if learner.algorithm.has_policy:
                self._policy_files().check()  # a policy that cannot be exported is known now rather than after hours
            first = True
            while learner.step < steps and not self._stalled():
                job.control.check()
                began = time.perf_counter()
                updates = min(self.pace.block, self._next_stop() - learner.step)
                learner.run(updates)
                self.pace.add(updates, time.perf_counter() - began)
                if first:
                    print(f"first update {time.perf_counter() - job.started:.2f} s after the worker's start", file=sys.stderr)
                self._at_step()
                self._progress(force=first)
                first = False
        except Stopped as stopped:
            if stopped.reason != "cancel":
                self._save()
                job.report.message(f"stopped with a checkpoint at step {learner.step}")
            raise
        self._finish()
        early = [f"ended at step {learner.step} of {steps}: {self._why_early()}"] if learner.step < steps else []
        stopped = [f"{trouble}, the other seeds are done" for trouble in learner.guard.stopped.values()]
        return "; ".join(filter(None, [*early, *stopped, self.evaluations.note()]))

    def _stalled(self) -> bool:
        """Whether so many evaluations have brought no seed a better return that training ends (``early_stop``)."""
        spec, learner = self.spec, self.learner
        if spec.early_stop is None or not self._is_evaluation(learner.step):
            return False
        since = self.metrics.evaluations_since_better
        return all(since("return_mean", seed, learner.step, spec.early_stop_delta) >= spec.early_stop for seed in learner.guard.running)

    def _why_early(self) -> str:
        delta = f" by more than {self.spec.early_stop_delta:g}" if self.spec.early_stop_delta else ""
        return f"{self.spec.early_stop} evaluations in a row without a mean return that was better{delta}"

    def _next_stop(self) -> int:
        """The next step at which something other than an update is due."""
        every = [self.interval]
        if self.spec.eval_every is not None:
            every.append(self.spec.eval_every)
        if self.spec.validation > 0:
            every.append(self.validate_every)
        step = self.learner.step
        return min(self.spec.steps, *((step // n + 1) * n for n in every))

    def _at_step(self) -> None:
        """What is due after the update that led to the present step."""
        step = self.learner.step
        last = step == self.spec.steps
        row = last or step % self.interval == 0
        if row:
            means = self._of_running(self.learner.metrics())
            self.metrics.record(step, means)
            self._guard(means)
        if self.spec.validation > 0 and (last or step % self.validate_every == 0):
            self.metrics.record(step, self._of_running(self._validate()))
        if last or self._is_evaluation(step):
            self._save()
            if not last:
                self._evaluate()
        elif self.checkpoints.due_in_s < 0 and (row or self.checkpoints.due_in_s < -self.pace.seconds(self._next_stop() - step)):
            # At a row the state has just been found finite; only a row that is far away is not waited for.
            self._save()

    def _finish(self) -> None:
        """All updates are done: policies of every seed, evaluated where there is an environment."""
        self._progress(force=True)
        self._evaluate()
        if self.learner.algorithm.has_policy:
            for seed in self.learner.guard.running:
                if not self.job.run.policy(seed, self.learner.step).exists():  # nothing was evaluated
                    self._policy_files().export(seed)
                self.job.control.check()
        self.checkpoints.finish()
        self.metrics.sync()
        self._progress(force=True)

    # ------------------------------------------------------------------------------------------------------------ the parts
    def _is_evaluation(self, step: int) -> bool:
        return step > 0 and (step == self.spec.steps or (self.spec.eval_every is not None and step % self.spec.eval_every == 0))

    def _evaluate(self) -> None:
        """Evaluate every seed's policy at the present step, if that is due and not done; the checkpoint of this step exists."""
        step, spec = self.learner.step, self.spec
        due = self.evaluations.due(step, self.learner.guard.running)
        if spec.eval_env is None or not self._is_evaluation(step) or not due or self.evaluations.given_up:
            return
        results, errors = {}, {}
        for seed in due:
            self._progress()
            try:
                with self.evaluations.running():
                    results[seed] = self._policy_files().evaluate(seed, spec.eval_env, spec.eval_episodes, self.job.control)
            except ERRORS as error:
                report_cause(error)
                errors[seed] = error
        self.metrics.record(
            step,
            {
                "return_mean": {seed: result.return_mean for seed, result in results.items()},
                "return_std": {seed: result.return_std for seed, result in results.items()},
            },
        )
        if errors:
            self.job.report.message(self.evaluations.failed(step, errors))
        if results:
            text = ", ".join(f"seed {seed}: {result.return_mean:.6g} ± {result.return_std:.3g}" for seed, result in results.items())
            self.job.report.message(f"step {step}: mean return in {spec.eval_env} over {spec.eval_episodes} episodes: {text}")
        if step < spec.steps:
            self._progress(force=True)

    def _validate(self) -> dict[str, dict[int, float]]:
        """The losses, and the policies' nearness to the actions, on held-out episodes."""
        if not self.learner.algorithm.has_policy:
            return self.learner.validate()
        from offrld.evaluate.offline import evaluate_offline

        near = {f"validation_{name}": values for name, values in evaluate_offline(self.learner).items()}
        return {**self.learner.validate(), **near}

    def _of_running(self, metrics: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
        """The metrics without those of seeds that have diverged before."""
        running = set(self.learner.guard.running)
        return {name: {seed: value for seed, value in values.items() if seed in running} for name, values in metrics.items()}

    def _guard(self, means: dict[str, dict[int, float]]) -> None:
        """Tell of values that run away; raise `Diverged` once no seed is in order."""
        warnings, stops = self.learner.guard.check(self.learner.step, means)
        for trouble in warnings:
            self.job.report.message(f"warning: {trouble}; {HELP}")
        for trouble in stops:
            self._diverged(trouble)

    def _diverged(self, trouble: Trouble) -> None:
        before = [step for step in self.job.run.checkpoint_steps() if step <= trouble.good]
        good = f"the checkpoint at step {before[-1]}, from before that, is kept; " if before else ""
        if self.learner.guard.running:
            self.job.report.message(f"{trouble}: the other seeds go on; {good}{HELP}")
            return
        self._progress(force=True)
        raise Diverged(str(trouble), hint=f"{good}{HELP}")

    def _save(self) -> None:
        for seed, network in self.learner.broken().items():
            if seed in self.learner.guard.running:
                why = "has numbers that are not finite"
                self._diverged(self.learner.guard.stop(seed, self.learner.step, f"the network {network}", why))
        self.metrics.sync()  # first the rows, then the checkpoint that promises them
        self.checkpoints.save()

    def _progress(self, force: bool = False) -> None:
        step, steps = self.learner.step, self.spec.steps
        speed = self.pace.updates_per_second
        eta = (steps - step) / speed if speed else None
        self.job.report.progress(step, steps, updates_per_second=speed, eta_s=eta, metrics=self.metrics.latest, force=force)

    def _policy_files(self) -> Any:
        if self._policies is None:
            from offrld.worker.policy_files import PolicyFiles

            templates = self.job.state.policy_templates
            self._policies = PolicyFiles(self.learner, self.job.run, job=self.job.id, dataset=self.spec.dataset, templates=templates)
        return self._policies

    def _describe(self) -> None:
        """Write what it takes to repeat the run."""
        job, learner = self.job, self.learner
        write_json(job.run.config, settings.as_flat(learner.config))
        write_json(
            job.run.spec,
            {
                "job": job.id,
                "attempt": job.attempt,
                "spec": self.spec.model_dump(),
                "snapshot": str(learner.store.snapshot()),
                "env_id": learner.store.metadata.get("env_id"),
                "seeds": self.spec.seeds,
                "space": json_safe(learner.space),
                "run": learner.describe_run(),
                "resumed_from": learner.step,
                "versions": installed(),
            },
        )
