"""The skeleton of every job that trains: blocks of steps, and between them metrics, checkpoints and evaluations at fixed steps.

A `Stepper` trains; `TrainingJob` decides when training pauses for metrics, checkpoints and evaluations. The results depend only on the step
number, never on time: a job that was paused or killed and then resumed writes the same metric rows and the same final state as one that was
not. Time only determines the size of the blocks and additional checkpoints.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offrl.job import TrainOnlineSpec, TrainSpec
from offrld import settings
from offrld.engine import Learner
from offrld.engine.learner.guards import HELP, Diverged, Trouble
from offrld.json_safe import json_safe
from offrld.state.files import write_json
from offrld.state.metric_files import MetricFiles
from offrld.worker.checkpoints import Checkpoints
from offrld.worker.control import Stopped
from offrld.worker.evaluations import ERRORS, Evaluations
from offrld.worker.failures import report_cause
from offrld.worker.job import WorkerJob
from offrld.worker.pace import Pace
from offrld.worker.versions import installed

if TYPE_CHECKING:  # it loads onnx, which a job needs only for its first export
    from offrld.worker.policy_files import PolicyFiles

Means = dict[str, dict[int, float]]  # name of a metric -> seed -> value


class Stepper(ABC):
    """Trains on a dataset or in an environment. A subclass overrides the hooks that it needs.

    Attributes:
        learner: the learner to train.
        steps: the step at which training ends.
        interval: steps between two rows of the training metrics.
        eval_every: steps between two evaluations; None: only the last step is one.
        validate_every: steps between two validations on held-out episodes; None: no validation.
        early_stop, early_stop_delta: end after this many evaluations in a row whose return did not improve by more than the delta.
    """

    learner: Learner
    steps: int
    interval: int
    eval_every: int | None = None
    validate_every: int | None = None
    early_stop: int | None = None
    early_stop_delta: float = 0.0

    @property
    @abstractmethod
    def step(self) -> int:
        """The current step, which numbers rows, checkpoints and policies."""

    def whole(self, steps: int) -> int:
        """Round ``steps`` up to a step at which training can stop."""
        return steps

    @abstractmethod
    def resume(self, *, restored: bool) -> str:
        """Continue an earlier attempt; return a message about it, or "".

        ``restored``: the learner has the state of the run's newest checkpoint.
        """

    def catch_up(self) -> None:
        """Make the updates that a resumed job has lost."""

    @abstractmethod
    def advance(self, count: int) -> None:
        """Train ``count`` steps."""

    def settle(self) -> None:
        """Complete open episodes after the last step, before the last metrics are read."""

    @abstractmethod
    def take_metrics(self) -> Means:
        """Return the mean of each metric since the last call."""

    def validate(self) -> Means:
        """Return metrics on held-out episodes."""
        return {}

    def play(self) -> Sequence[float] | None:
        """Play evaluation episodes that the policy file cannot play, and return their returns; None: the file can play them."""
        return None

    def state(self) -> dict[str, Any]:
        """Return JSON that a checkpoint keeps beside the learner."""
        return {}

    def record(self, *, last: bool = False) -> None:
        """Make durable the data that belong to the next checkpoint. ``last``: this attempt records nothing more."""

    def stopped(self, *, cancelled: bool) -> None:
        """Complete the data of the last step because the job must stop, or discard them if it is cancelled."""

    def after_block(self) -> None:
        """Report a dataset that has grown."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the dataset's ``snapshot`` and the ``env_id`` for the run's record."""

    def result(self) -> list[str]:
        """Return the parts of the remark for a success."""
        return []


class TrainingJob:
    """One attempt at a job that trains."""

    def __init__(self, job: WorkerJob[TrainSpec | TrainOnlineSpec], stepper: Stepper) -> None:
        self.job, self.stepper, self.learner = job, stepper, stepper.learner
        spec = self.spec = job.spec
        self.metrics = MetricFiles(job.run, spec.seeds, stepper.interval)
        self.checkpoints = Checkpoints(
            job.run,
            self.learner,
            self._is_evaluation,
            most=job.keep_checkpoints,
            best=lambda steps: self.metrics.best_steps("return_mean", steps),
            step=lambda: stepper.step,
            more=stepper.state,
        )
        self.evaluations = Evaluations(job.run, self.metrics, spec.seeds)
        self.pace = Pace()
        self._policies: PolicyFiles | None = None

    # ------------------------------------------------------------------------------------------------------------ the loop
    def run(self) -> str:
        """Train to the end, from the newest checkpoint if there is one; return the remark for a success, or "".

        Raises `OffrlError`, or `Stopped` after it has written a checkpoint.
        """
        job, stepper = self.job, self.stepper
        if resumed := stepper.resume(restored=self.checkpoints.restore(job.report.message)):
            job.report.message(resumed)
        self.metrics.resume(stepper.step)
        self._describe()
        if self.learner.runner == "compile":
            job.report.message("compiling the update: the first one may take a minute")
        try:
            self._prepare()
            first = True
            while stepper.step < stepper.steps and not self._stalled():
                job.control.check()
                began = time.perf_counter()
                count = min(stepper.whole(self.pace.block), self._next_stop() - stepper.step)
                stepper.advance(count)
                self.pace.add(count, time.perf_counter() - began)
                if first:
                    print(f"first update {time.perf_counter() - job.started:.2f} s after the worker's start", file=sys.stderr)
                self._at_step()
                self._progress(force=first)
                first = False
        except Stopped as stopped:
            stepper.stopped(cancelled=stopped.reason == "cancel")
            if stopped.reason != "cancel":
                self._save(last=True)
                job.report.message(f"stopped with a checkpoint at step {stepper.step}")
            self._progress(force=True)
            raise
        finally:
            stepper.record(last=True)
        self._finish()
        early = [f"ended at step {stepper.step} of {stepper.steps}: {self._why_early()}"] if stepper.step < stepper.steps else []
        diverged = [f"{trouble}, the other seeds are done" for trouble in self.learner.guard.stopped.values()]
        return "; ".join(filter(None, [*early, *stepper.result(), *diverged, self.evaluations.note()]))

    def _prepare(self) -> None:
        """Prepare the first block: check the export, catch up, and make an evaluation that an earlier attempt did not reach."""
        busy = "compiling" if self.learner.runner != "eager" else "loading"
        self.job.report.busy(busy)
        if self.learner.algorithm.has_policy:
            self._policy_files().check()  # fail now, not after hours, if the policy cannot be exported
        self.stepper.catch_up()
        if self.stepper.step > 0:
            self._evaluate()
        self.job.report.busy(busy)  # until the first block is done

    def _stalled(self) -> bool:
        """Return whether no running seed has improved its return in the last ``early_stop`` evaluations."""
        stepper = self.stepper
        if stepper.early_stop is None or not self._is_evaluation(stepper.step):
            return False
        since = self.metrics.evaluations_since_better
        return all(
            since("return_mean", seed, stepper.step, stepper.early_stop_delta) >= stepper.early_stop for seed in self.learner.guard.running
        )

    def _why_early(self) -> str:
        delta = f" by more than {self.stepper.early_stop_delta:g}" if self.stepper.early_stop_delta else ""
        return f"{self.stepper.early_stop} evaluations in a row without a mean return that was better{delta}"

    def _next_stop(self) -> int:
        """Return the next step at which training pauses for something else."""
        stepper = self.stepper
        intervals = [every for every in (stepper.interval, stepper.eval_every, stepper.validate_every) if every is not None]
        return min(stepper.steps, *((stepper.step // every + 1) * every for every in intervals))

    def _at_step(self) -> None:
        """Do what is due at the current step: metrics, validation, checkpoint, evaluation."""
        stepper = self.stepper
        step = stepper.step
        last = step == stepper.steps
        if last:
            stepper.settle()
        row = last or step % stepper.interval == 0
        if row:
            means = self._of_running(stepper.take_metrics())
            self.metrics.record(step, means)
            self._guard(means)
        if stepper.validate_every is not None and (last or step % stepper.validate_every == 0):
            self.metrics.record(step, self._of_running(stepper.validate()))
        if last or self._is_evaluation(step):
            self._save(last=last)
            if not last:
                self._evaluate()
        elif self.checkpoints.due_in_s < 0 and (row or self.checkpoints.due_in_s < -self.pace.seconds(self._next_stop() - step)):
            # At a row the state was just checked to be finite; a late checkpoint waits for the next row unless that is far away.
            self._save()
        stepper.after_block()

    def _finish(self) -> None:
        """After the last step, evaluate and export the policies of all running seeds."""
        self._progress(force=True)
        self._evaluate()
        if self.learner.algorithm.has_policy:
            for seed in self.learner.guard.running:
                if not self.job.run.policy(seed, self.stepper.step).exists():  # the job has no evaluation
                    self._policy_files().export(seed)
                self.job.control.check()
        self.checkpoints.finish()
        self.metrics.sync()
        self._progress(force=True)

    # ------------------------------------------------------------------------------------------------------------ the parts
    def _is_evaluation(self, step: int) -> bool:
        every = self.stepper.eval_every
        return step > 0 and (step == self.stepper.steps or (every is not None and step % every == 0))

    def _evaluate(self) -> None:
        """Evaluate the policies at the current step, if an evaluation is due and not yet done; the checkpoint of the step exists."""
        step, spec = self.stepper.step, self.spec
        due = self.evaluations.due(step, self.learner.guard.running)
        if spec.eval_env is None or not self._is_evaluation(step) or not due or self.evaluations.given_up:
            return
        results: dict[int, tuple[float, float]] = {}
        errors = {}
        for seed in due:
            self._progress(force=seed == due[0])  # an evaluation may take a long time
            try:
                with self.evaluations.running():
                    results[seed] = self._returns(seed)
            except ERRORS as error:
                report_cause(error)
                errors[seed] = error
        self.metrics.record(
            step,
            {
                "return_mean": {seed: mean for seed, (mean, _) in results.items()},
                "return_std": {seed: std for seed, (_, std) in results.items()},
            },
        )
        if errors:
            self.job.report.message(self.evaluations.failed(step, errors))
        if results:
            returns = ", ".join(f"seed {seed}: {mean:.6g} ± {std:.3g}" for seed, (mean, std) in results.items())
            self.job.report.message(f"step {step}: mean return in {spec.eval_env} over {spec.eval_episodes} episodes: {returns}")
        if step < self.stepper.steps:
            self._progress(force=True)

    def _returns(self, seed: int) -> tuple[float, float]:
        """Return mean and standard deviation of the returns of a seed's policy, played by the stepper or by the policy file."""
        spec = self.spec
        if (returns := self.stepper.play()) is not None:
            return float(np.mean(returns)), float(np.std(returns))
        assert spec.eval_env is not None
        evaluation = self._policy_files().evaluate(seed, spec.eval_env, spec.eval_episodes, self.job.control)
        return evaluation.return_mean, evaluation.return_std

    def _of_running(self, metrics: Means) -> Means:
        """Return the metrics without those of seeds that have diverged."""
        running = set(self.learner.guard.running)
        return {name: {seed: value for seed, value in values.items() if seed in running} for name, values in metrics.items()}

    def _guard(self, means: Means) -> None:
        """Warn of values that explode; raise `Diverged` once every seed has diverged."""
        warnings, stops = self.learner.guard.check(self.stepper.step, means)
        for trouble in warnings:
            self.job.report.message(f"warning: {trouble}; {HELP}")
        for trouble in stops:
            self._diverged(trouble)

    def _diverged(self, trouble: Trouble) -> None:
        before = [step for step in self.job.run.checkpoint_steps() if step <= trouble.good]
        good = f"the checkpoint at step {before[-1]}, from before that, is kept; " if before else ""
        if self.learner.guard.running:
            self.job.report.message(f"{trouble}: the other seeds continue; {good}{HELP}")
            return
        self._progress(force=True)
        raise Diverged(str(trouble), hint=f"{good}{HELP}")

    def _save(self, *, last: bool = False) -> None:
        """Make the stepper's data and the rows durable, then write the checkpoint that promises both."""
        for seed, network in self.learner.broken().items():
            if seed in self.learner.guard.running:
                why = "has numbers that are not finite"
                self._diverged(self.learner.guard.stop(seed, self.stepper.step, f"the network {network}", why))
        self.stepper.record(last=last)
        self.metrics.sync()
        self.checkpoints.save()

    def _progress(self, force: bool = False) -> None:
        step, steps, speed = self.stepper.step, self.stepper.steps, self.pace.updates_per_second
        eta = (steps - step) / speed if speed else None
        self.job.report.progress(step, steps, updates_per_second=speed, eta_s=eta, metrics=self.metrics.latest, force=force)

    def _policy_files(self) -> PolicyFiles:
        if self._policies is None:
            from offrld.worker.policy_files import PolicyFiles  # loads onnx

            job = self.job
            about = {"job": job.id, "dataset": self.spec.dataset, "env_id": self.stepper.describe()["env_id"]}
            templates = job.state.policy_templates
            self._policies = PolicyFiles(self.learner, job.run, step=lambda: self.stepper.step, templates=templates, **about)
        return self._policies

    def _describe(self) -> None:
        """Write the settings and versions that repeat the run."""
        job, learner = self.job, self.learner
        write_json(job.run.config, settings.as_flat(learner.config))
        write_json(
            job.run.spec,
            {
                "job": job.id,
                "attempt": job.attempt,
                "spec": self.spec.model_dump(),
                **self.stepper.describe(),
                "seeds": self.spec.seeds,
                "space": json_safe(learner.space),
                "run": learner.describe_run(),
                "resumed_from": self.stepper.step,
                "versions": installed(),
            },
        )
