"""A train-online job: updates on steps that the policy itself collects into a dataset, across pauses and crashes.

Rows of metrics, checkpoints and policies are numbered by steps of the environment. A resumed job continues from the step of its checkpoint.
If its dataset holds more steps, it first makes the updates that belong to them.

An algorithm that learns from its own rollouts (ppo) can stop only between two rollouts, so its intervals are rounded up to whole rollouts.
It continues from its checkpoint, and keeps its steps if the job names a dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from offrl.environments import calls
from offrl.job import TrainOnlineSpec
from offrl.printable import counted
from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.collect.explorers import explorer_of
from offrld.collect.on_policy import OnPolicy
from offrld.collect.online import OnlineTraining, check_online, evaluate
from offrld.engine import Learner
from offrld.engine.learner.shapes import Shapes
from offrld.engine.updates import checkpoint
from offrld.engine.updates.allocator import keep_freed_memory
from offrld.worker import inherited
from offrld.worker.growing_dataset import StepsDataset, give_up, whole_steps, writer_of
from offrld.worker.job import WorkerJob
from offrld.worker.training_job import Means, Stepper, TrainingJob

ROWS = 100  # least number of metric rows over a run
MOST_ROWS_APART = 10_000  # most steps between two rows of the training metrics
EVALUATIONS = 10  # number over a run, unless --eval-every is set
CATCH_UP = 100  # number of updates between two checks of the control messages


def run(job: WorkerJob[TrainOnlineSpec]) -> str:
    """Train, from the newest checkpoint if there is one. Raises `OffrlError`, or `Stopped` after it has written a checkpoint."""
    data = None if job.spec.dataset is None else StepsDataset(job, job.spec.dataset)
    try:
        stepper = EnvironmentStepper(job, data)
        try:
            return TrainingJob(job, stepper).run()
        finally:
            stepper.close()
    finally:
        if data is not None:
            data.remove_empty()


class EnvironmentStepper(Stepper):
    """Trains in an environment; a step is one of the environment."""

    def __init__(self, job: WorkerJob[TrainOnlineSpec], data: StepsDataset | None) -> None:
        spec = job.spec
        self._job, self._spec, self._data = job, spec, data
        algorithm = get(spec.algorithm)
        check_online(algorithm)
        config = algorithm.configure(spec.config, spec.preset)
        self._env = make_env(spec.env)
        self._eval_env = None if spec.eval_env is None else make_env(spec.eval_env)
        job.control.check()
        keep_freed_memory()
        self.learner = Learner.create(
            algorithm,
            config,
            Shapes.of_env(self._env),
            seeds=spec.seeds,
            device=spec.device,
            threads=spec.threads,
            cache_dir=job.state.inductor_cache,
            start=inherited.start(job.state, job.run, spec),
            transfer=spec.transfer,
            fresh_optimizer=spec.fresh_optimizer,
            log=job.report.learner,
        )
        self._offline = None if spec.offline is None else EpisodeStore.open(job.state.dataset(spec.offline))
        self._behind = 0  # updates for steps in the dataset that were lost with an earlier attempt
        self._collected = 0  # steps of earlier attempts in the dataset
        fresh = data is not None and not data.path.exists()
        self._on_policy = algorithm.plays
        self._training = self._player() if self._on_policy else self._off_policy()
        if fresh and data is not None:
            data.created()
        self.steps = self.whole(spec.steps)
        self.interval = self.whole(max(1, min(MOST_ROWS_APART, spec.steps // ROWS)))
        if self._eval_env is not None:
            self.eval_every = self.whole(spec.eval_every or max(1, spec.steps // EVALUATIONS))

    def _off_policy(self) -> OnlineTraining:
        spec = self._spec
        return OnlineTraining(
            self.learner,
            self._env,
            explorer=explorer_of(epsilon=spec.epsilon, epsilon_end=spec.epsilon_end, epsilon_steps=spec.epsilon_steps, noise=spec.noise),
            random_steps=spec.random_steps,
            update_start=spec.update_start,
            update_interval=spec.update_interval,
            updates=spec.updates,
            offline=self._offline,
            offline_share=spec.offline_share,
            seed=spec.seeds[0],
            **self._options(),
        )

    def _player(self) -> OnPolicy:
        spec = self._spec
        return OnPolicy(
            self.learner,
            spec.env,
            envs=spec.envs,
            vectorization="async" if spec.processes else "sync",
            check=self._job.control.check,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        spec, data = self._spec, self._data
        into = {} if data is None else {"into": data.path, "limit": spec.limit, "note": data.note, "keep": data.keep(data.open())}
        return {
            **into,
            "max_frames_per_traj": spec.max_episode_steps,
            "step_timeout_s": spec.step_timeout_s,
            "given_up": partial(give_up, self._job),
        }

    def whole(self, steps: int) -> int:
        """Round steps up to whole rounds of training."""
        return -(-steps // self._training.round_steps) * self._training.round_steps

    # ------------------------------------------------------------------------------------------------------------ the loop
    @property
    def step(self) -> int:
        return self._training.step

    def resume(self, *, restored: bool) -> str:
        training, run = self._training, self._job.run
        training.commit()
        if isinstance(training, OnlineTraining) and self._data is not None:
            self._collected = self._data.steps_before(training.store)
        if restored:
            _, description = checkpoint.read(run.checkpoint(run.checkpoint_steps()[-1]))
            training.load_state_dict(description["online"])
        if isinstance(training, OnlineTraining):
            self._behind = training.due_until(self._collected)
        if not (training.step or self._collected):
            return ""
        return f"resumed at step {max(training.step, self._collected)}, {self._behind} updates behind"

    def catch_up(self) -> None:
        training = self._training
        if not isinstance(training, OnlineTraining):
            return
        while self._behind > 0:
            self._job.control.check()
            training.update(min(self._behind, CATCH_UP))
            self._behind -= CATCH_UP
        if self._collected > training.step:
            training.go_on_at(self._collected)

    def advance(self, count: int) -> None:
        self._training.advance(count)

    def settle(self) -> None:
        self._training.collector.cut()
        self._training.commit()

    def take_metrics(self) -> Means:
        return self._training.take_metrics()

    def play(self) -> Sequence[float] | None:
        """Play with random or sampled actions, if the job evaluates so: a policy file holds only the greedy policy."""
        spec = self._spec
        if spec.eval_epsilon == 0 and not spec.eval_sample:
            return None
        return evaluate(
            self.learner,
            self._eval_env,
            spec.eval_episodes,
            epsilon=spec.eval_epsilon,
            sample=spec.eval_sample,
            check=self._job.control.check,
        )

    # ------------------------------------------------------------------------------------------------------------ the data
    def state(self) -> dict[str, Any]:
        return {"online": self._training.state_dict()}

    def record(self, *, last: bool = False) -> None:
        collector, data = self._training.collector, self._data
        if data is None:
            collector.sync()
            return
        writer = writer_of(collector)
        writer.keep(data.keep(writer.store))
        collector.sync()
        data.save(writer.store, whole_steps(collector))
        data.report(writer.store, last=last)

    def stopped(self, *, cancelled: bool) -> None:
        if cancelled:
            self._training.collector.discard()
        else:
            self._training.collector.cut()

    def after_block(self) -> None:
        if self._data is not None:
            self._data.report(writer_of(self._training.collector).store)

    def describe(self) -> dict[str, Any]:
        return {"snapshot": None if self._offline is None else str(self._offline.snapshot()), "env_id": self._spec.env}

    def result(self) -> list[str]:
        least = self.learner.config.batch_size
        few = f"no update yet: the first one needs more than batch_size = {least:,} transitions" if self.learner.step == 0 else ""
        return [f"{counted(self.step, 'step')}, {counted(self.learner.step, 'update')}", few]

    def close(self) -> None:
        """Close the training and the environments."""
        self._training.close()
        calls.close(self._env, self._spec.env)
        if self._eval_env is not None and self._spec.eval_env is not None:
            calls.close(self._eval_env, self._spec.eval_env)
