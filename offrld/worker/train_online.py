"""A train-online job: updates on what the policy itself gathers, which stays as a dataset; across pauses and crashes.

Rows of metrics, checkpoints and policies are numbered by steps of the environment. A resumed job goes on with the count of its checkpoint
or, where more of its steps are in the dataset, with theirs: the updates that were due for them are made up for first.

An algorithm that learns from its own rollouts (ppo) stops between two of them only, so its intervals are whole ones. It goes on from its
checkpoint, and keeps what it plays where a dataset is named.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from offrl.environments import calls
from offrl.job import TrainOnlineSpec
from offrl.printable import counted
from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld import settings
from offrld.algos import get
from offrld.collect.explorers import Explorer, explorer_of
from offrld.collect.on_policy import OnPolicy
from offrld.collect.online import OnlineTraining, check_online, evaluate
from offrld.engine.learner.guards import HELP, Diverged
from offrld.engine.learner.shapes import Shapes
from offrld.engine.updates import checkpoint
from offrld.engine.updates.allocator import keep_freed_memory
from offrld.inprocess.learner import Learner
from offrld.json_safe import json_safe
from offrld.state.files import write_json
from offrld.state.metric_files import MetricFiles
from offrld.worker import inherited
from offrld.worker.checkpoints import Checkpoints
from offrld.worker.control import Stopped
from offrld.worker.evaluations import ERRORS, Evaluations
from offrld.worker.failures import report_cause
from offrld.worker.growing_dataset import StepsDataset, give_up, whole_steps
from offrld.worker.job import WorkerJob
from offrld.worker.pace import Pace
from offrld.worker.versions import installed

ROWS = 100  # of metrics over a run, at least
MOST_ROWS_APART = 10_000
EVALUATIONS = 10  # over a run, where --eval-every does not say


def run(job: WorkerJob) -> str:
    """Train, from the newest checkpoint where there is one. Raises `OffrlError`, or `Stopped` with a checkpoint made."""
    data = None if job.spec.dataset is None else StepsDataset(job)
    try:
        training = OnlineJob(job, data)
        try:
            return training.run()
        finally:
            training.close()
    finally:
        if data is not None:
            data.remove_empty()


def _explorer(spec: TrainOnlineSpec) -> Explorer | None:
    return explorer_of(epsilon=spec.epsilon, epsilon_end=spec.epsilon_end, epsilon_steps=spec.epsilon_steps, noise=spec.noise)


class OnlineJob:
    """One attempt at a train-online job."""

    def __init__(self, job: WorkerJob, data: StepsDataset | None) -> None:
        spec: TrainOnlineSpec = job.spec
        self.job, self.spec, self.data, self.seed = job, spec, data, spec.seeds[0]
        algorithm = get(spec.algorithm)
        self.plays = algorithm.plays
        check_online(algorithm)
        config = algorithm.configure(spec.config, spec.preset)
        self.env = make_env(spec.env)
        self.eval_env = None if spec.eval_env is None else make_env(spec.eval_env)
        job.control.check()
        keep_freed_memory()
        self.learner = Learner.create(
            algorithm,
            config,
            Shapes.of_env(self.env),
            seeds=spec.seeds,
            device=spec.device,
            threads=spec.threads,
            cache_dir=job.state.inductor_cache,
            start=inherited.start(job.state, job.run, spec),
            transfer=spec.transfer,
            fresh_optimizer=spec.fresh_optimizer,
            log=job.report.learner,
        )
        fresh = data is not None and not data.path.exists()
        self.training = self._player() if self.plays else self._gatherer()
        if fresh:
            data.created()
        self.steps = self._whole(spec.steps)
        self.interval = self._whole(max(1, min(MOST_ROWS_APART, spec.steps // ROWS)))
        self.eval_every = self._whole(spec.eval_every or max(1, spec.steps // EVALUATIONS))
        self.metrics = MetricFiles(job.run, spec.seeds, self.interval)
        self.checkpoints = Checkpoints(
            job.run,
            self.learner,
            self._is_evaluation,
            most=job.keep_checkpoints,
            best=lambda steps: self.metrics.best_steps("return_mean", steps),
            step=lambda: self.training.step,
            more=self._state,
        )
        self.evaluations = Evaluations(job.run, self.metrics, spec.seeds)
        self.pace = Pace()
        self._policies: Any = None

    def _gatherer(self) -> OnlineTraining:
        """What trains an off-policy algorithm."""
        spec, job = self.spec, self.job
        offline = None if spec.offline is None else EpisodeStore.open(job.state.dataset(spec.offline))
        return OnlineTraining(
            self.learner,
            self.env,
            explorer=_explorer(spec),
            random_steps=spec.random_steps,
            update_start=spec.update_start,
            update_interval=spec.update_interval,
            updates=spec.updates,
            offline=offline,
            offline_share=spec.offline_share,
            seed=self.seed,
            **self._options(),
        )

    def _player(self) -> OnPolicy:
        """What trains an algorithm that learns from its own rollouts."""
        spec = self.spec
        return OnPolicy(
            self.learner,
            spec.env,
            envs=spec.envs,
            vectorization="async" if spec.processes else "sync",
            check=self.job.control.check,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        spec, data = self.spec, self.data
        into = {} if data is None else {"into": data.path, "limit": spec.limit, "note": data.note, "keep": data.keep(data.open())}
        return {
            **into,
            "max_frames_per_traj": spec.max_episode_steps,
            "step_timeout_s": spec.step_timeout_s,
            "given_up": partial(give_up, self.job),
        }

    def _whole(self, steps: int) -> int:
        """Steps as whole rounds of training, at least one."""
        return -(-steps // self.training.round_steps) * self.training.round_steps

    def _state(self) -> dict[str, Any]:
        return {"online": self.training.state_dict()}

    # ------------------------------------------------------------------------------------------------------------ the loop
    def run(self) -> str:
        job, training, steps = self.job, self.training, self.steps
        training.commit()
        gathered = 0 if self.plays else self.data.steps_before(training.store)
        if self.checkpoints.restore(job.report.message):
            _, told = checkpoint.read(job.run.checkpoint(job.run.checkpoint_steps()[-1]))
            training.load_state_dict(told["online"])
        behind = 0 if self.plays else training.due_until(gathered)
        if training.step or gathered:
            job.report.message(f"resumed at step {max(training.step, gathered)}, {behind} updates behind")
        self.metrics.resume(training.step)
        self._describe()
        job.report.busy("loading")
        try:
            self._policy_files().check()  # a policy that cannot be exported is known now rather than after hours
            self._catch_up(behind, gathered)
            if training.step > 0:
                self._evaluate()
            first = True
            while training.step < steps:
                job.control.check()
                began = time.perf_counter()
                count = min(self._whole(self.pace.block), self._next_stop() - training.step)
                training.advance(count)
                self.pace.add(count, time.perf_counter() - began)
                self._at_step()
                self._progress(force=first)
                first = False
        except Stopped as stopped:
            if stopped.reason == "cancel":
                training.collector.discard()
            else:
                training.collector.cut()
                self._save(last=True)
                job.report.message(f"stopped with a checkpoint at step {training.step}")
            self._progress(force=True)
            raise
        finally:
            self._record(last=True)
        self._finish()
        least = self.learner.config.batch_size
        few = f"no update yet: the first one needs more than batch_size = {least:,} transitions" if self.learner.step == 0 else ""
        counts = f"{counted(training.step, 'step')}, {counted(self.learner.step, 'update')}"
        return "; ".join(filter(None, (counts, few, self.evaluations.note())))

    def _catch_up(self, updates: int, gathered: int) -> None:
        """The updates of steps that are in the dataset and were made after the checkpoint."""
        training = self.training
        while updates > 0:
            self.job.control.check()
            training.update(min(updates, 100))
            updates -= 100
        if gathered > training.step:
            training.go_on_at(gathered)

    def _next_stop(self) -> int:
        step = self.training.step
        every = [self.interval, *([self.eval_every] if self.eval_env is not None else [])]
        return min(self.steps, *((step // n + 1) * n for n in every))

    def _at_step(self) -> None:
        """What is due after the step that was made last."""
        training = self.training
        step, last = training.step, training.step == self.steps
        if last:
            training.collector.cut()
            training.commit()
        if last or step % self.interval == 0:
            means = training.take_metrics()
            self.metrics.record(step, means)
            self._guard(means)
        if last or self._is_evaluation(step) or self.checkpoints.due_in_s < 0:
            self._save(last=last)
        if self._is_evaluation(step) and not last:
            self._evaluate()
        if self.data is not None:
            self.data.tell(training.store)

    def _finish(self) -> None:
        self._evaluate()
        if not self.job.run.policy(self.seed, self.training.step).exists():
            self._policy_files().export(self.seed)
        self.checkpoints.finish()
        self.metrics.sync()
        self._progress(force=True)

    # ------------------------------------------------------------------------------------------------------------ the parts
    def _is_evaluation(self, step: int) -> bool:
        return step > 0 and (step == self.steps or (self.eval_env is not None and step % self.eval_every == 0))

    def _evaluate(self) -> None:
        """Evaluate the policy at the present step, if that is due and not done: by its file, or with random actions mixed in."""
        step, spec, seed = self.training.step, self.spec, self.seed
        if self.eval_env is None or not self._is_evaluation(step) or not self.evaluations.due(step, [seed]) or self.evaluations.given_up:
            return
        self._progress(force=True)  # an evaluation may take long
        try:
            with self.evaluations.running():
                mean, std = self._returns()
        except ERRORS as error:
            report_cause(error)
            self.job.report.message(self.evaluations.failed(step, {seed: error}))
            return
        self.metrics.record(step, {"return_mean": {seed: mean}, "return_std": {seed: std}})
        told = f"mean return in {spec.eval_env} over {spec.eval_episodes} episodes: {mean:.6g} ± {std:.3g}"
        self.job.report.message(f"step {step}: {told}")

    def _returns(self) -> tuple[float, float]:
        """Mean and deviation of the returns of the policy as it is now."""
        spec = self.spec
        if spec.eval_epsilon > 0 or spec.eval_sample:
            returns = evaluate(
                self.learner,
                self.eval_env,
                spec.eval_episodes,
                epsilon=spec.eval_epsilon,
                sample=spec.eval_sample,
                check=self.job.control.check,
            )
            return float(np.mean(returns)), float(np.std(returns))
        result = self._policy_files().evaluate(self.seed, spec.eval_env, spec.eval_episodes, self.job.control)
        return result.return_mean, result.return_std

    def _guard(self, means: dict[str, dict[int, float]]) -> None:
        """Tell of values that run away; raise `Diverged` where they have."""
        warnings, stops = self.learner.guard.check(self.learner.step, means)
        for trouble in warnings:
            self.job.report.message(f"warning: {trouble}; {HELP}")
        if stops:
            raise Diverged(str(stops[0]), hint=HELP)

    def _save(self, *, last: bool = False) -> None:
        """First the steps, then the rows, then the checkpoint that promises both."""
        self._record(last=last)
        self.metrics.sync()
        self.checkpoints.save()

    def _record(self, *, last: bool = False) -> None:
        collector = self.training.collector
        if self.data is not None:
            collector.writer.keep(self.data.keep(collector.store))
        collector.sync()
        if self.data is not None:
            self.data.save(self.training.store, whole_steps(collector))
            self.data.tell(self.training.store, last=last)

    def _progress(self, force: bool = False) -> None:
        step, steps, speed = self.training.step, self.steps, self.pace.updates_per_second
        eta = (steps - step) / speed if speed else None
        self.job.report.progress(step, steps, updates_per_second=speed, eta_s=eta, metrics=self.metrics.latest, force=force)

    def _policy_files(self) -> Any:
        if self._policies is None:
            from offrld.worker.policy_files import PolicyFiles

            self._policies = PolicyFiles(
                self.learner,
                self.job.run,
                job=self.job.id,
                dataset=self.spec.dataset,
                step=lambda: self.training.step,
                templates=self.job.state.policy_templates,
            )
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
                "seeds": self.spec.seeds,
                "space": json_safe(learner.space),
                "run": learner.describe_run(),
                "resumed_from": self.training.step,
                "versions": installed(),
            },
        )

    def close(self) -> None:
        """Close what was opened."""
        self.training.close()
        calls.close(self.env, self.spec.env)
        if self.eval_env is not None:
            calls.close(self.eval_env, self.spec.eval_env)
