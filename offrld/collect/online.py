"""Online training: steps in an environment and updates on the collected episodes, in turn.

The episodes are in a store, which stays as a dataset like any other. An ended episode is sampled from the next intake on. An intake follows
the end of an episode, at most once in `COMMIT_STEPS` steps; the steps of the episode under way are not sampled.

The steps alone decide when an intake happens, and so which data an update sees. Commits at other times (at a checkpoint, or by the
collector every few seconds) make episodes durable and change nothing else. A run that was killed and resumed therefore makes as many
updates as one that was not: it catches up on those between its checkpoint and its last step.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from offrl.environments import calls
from offrl.errors import EnvironmentFailed, InvalidInput
from offrl_store import EpisodeStore, Writer, create_temporary, mix
from offrl_store.errors import EmptyStore
from offrld.collect.collector import Collector
from offrld.collect.environments import Environments
from offrld.collect.explorers import ConstantEpsilonGreedy, Explorer, Exploring
from offrld.collect.on_policy import OnPolicy
from offrld.collect.spaces import schema_of_spaces
from offrld.collect.trained_behaviours import LearnerBehaviour, check_learner
from offrld.engine.batches.feed import sampler_arguments
from offrld.engine.definition.algorithm import Algorithm

COMMIT_STEPS = 200  # between two intakes: a commit takes some milliseconds, which is then less than 50 us a step
SHARE = 100  # of n transitions, an intake at most every n / 100 steps, because each one rebuilds the sampler's index
EVALUATION_SEED = 1000
EVALUATION_FAILURES = 3  # in a row, after which evaluation stops


def refusal(algorithm: Algorithm) -> str:
    """Why an algorithm cannot be trained online; empty if it can: by `OnPolicy` if it plays, else by `OnlineTraining`."""
    if algorithm.plays:
        return ""
    if not algorithm.acts:
        return "it learns no policy"
    if algorithm.batch_kind == "windows":
        return "it learns from whole episodes and their returns"
    if algorithm.value is None:
        return "it learns no values, and would imitate its own steps"
    if algorithm.prepare is not None or algorithm.stages is not None or algorithm.between is not None:
        return "it needs its dataset as a whole before the first update"
    return ""


def check_online(algorithm: Algorithm) -> None:
    """Raise `InvalidInput` if the algorithm cannot be trained online."""
    if why := refusal(algorithm):
        raise InvalidInput(f"{algorithm.name} cannot be trained online: {why}", hint="sac, td3, iql, dqn, ... can: `offrl algos`")


class OnlineTraining:
    """The loop of `Learner.fit_online`, a few steps at a time (`advance`).

    Attributes:
        round_steps: the unit of `advance`.
        step: steps of the environment so far.
        store: the collected episodes.
        returns: of the episodes that ended since `take_metrics`.
    """

    round_steps = 1

    def __init__(
        self,
        learner: Any,
        env: Any,
        into: EpisodeStore | Writer | str | os.PathLike[str] | None = None,
        *,
        explorer: Explorer | None = None,
        random_steps: int = 0,
        update_start: int = 0,
        update_interval: int = 1,
        updates: int = 1,
        offline: EpisodeStore | None = None,
        offline_share: float = 0.5,
        limit: int | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            learner: of one seed.
            env: one environment, as `Collector` takes it.
            into: store, path or writer; None: a temporary store.
            explorer: None: the policy's own draws (a deterministic policy without an explorer explores nothing).
            random_steps: number of uniform actions at the start.
            update_start: the first update comes after this step.
            update_interval: updates are made every this many steps.
            updates: number of updates at each of these steps.
            offline: a dataset that supplies ``offline_share`` of every batch.
            limit: transitions that a new store holds; a temporary one holds 1,000,000.
            options: further arguments of `Collector`: seed, max_frames_per_traj, step_timeout_s, sync_s, ...

        Raises:
            InvalidInput: an algorithm that cannot be trained online, several seeds, spaces that do not fit, a number out of range.
        """
        check_online(learner.algorithm)
        if learner.algorithm.plays:
            raise InvalidInput(f"{learner.algorithm.name} learns from rollouts", hint="use offrld.collect.on_policy.OnPolicy")
        if len(learner.seeds) > 1:
            raise InvalidInput(f"online training takes one seed, the learner has {len(learner.seeds)}", hint="train one learner for each")
        least = {"random_steps": 0, "update_start": 0, "update_interval": 1, "updates": 1}
        for name, value in (
            ("random_steps", random_steps),
            ("update_start", update_start),
            ("update_interval", update_interval),
            ("updates", updates),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise InvalidInput(f"{name} is {value!r}", hint=f"pass a whole number from {least[name]}")
        self.learner, self._start, self._interval, self._updates = learner, update_start, update_interval, updates
        self._behaviour = Exploring(LearnerBehaviour(learner), explorer, random_steps)
        envs = Environments(env)
        if envs.vector is not None:
            raise InvalidInput("online training takes one environment", hint="pass a single one")
        self._owned = envs if envs.owned else None
        try:
            check_learner(learner, envs.observation_space, envs.action_space, envs.name)
            if into is None:
                schema = schema_of_spaces(envs.observation_space, envs.action_space, envs.env_id, policy=self._behaviour.name)
                into = create_temporary(schema, limit_transitions=limit or 1_000_000)
            self.collector = Collector(envs.single, self._behaviour, into=into, limit=limit, frames_per_batch=1, **options)
        except BaseException:
            self.close()
            raise
        self._writer = self.collector.store_writer
        self.store: EpisodeStore = self._writer.store
        self._offline, self._share = offline, offline_share
        if offline is not None:
            if not 0.0 < offline_share < 1.0:
                raise InvalidInput(f"offline_share is {offline_share!r}", hint="pass a share of the batch above 0 and below 1")
            if not offline.schema.same_fields(self.store.schema):
                raise InvalidInput("the offline dataset has other fields than the environment", hint="pass a dataset of this environment")
        self.step = 0
        self.returns: list[float] = []
        self.spent = {"environment": 0.0, "sample": 0.0, "update": 0.0}
        self._sampler: Any = None
        self._known_episodes = self._intake_step = 0  # episodes that can be sampled, and the step of the last intake
        self._transitions = 0  # of these episodes
        self._first = 0  # number of the oldest one
        self.commit()

    # ------------------------------------------------------------------------------------------------------------ the loop
    def advance(self, steps: int) -> None:
        """Make ``steps`` steps and their updates; raises `EnvironmentFailed`, after which the store keeps all steps so far."""
        end = self.step + steps
        while self.step < end:
            count = min(end - self.step, self._interval - self.step % self._interval)
            began = time.perf_counter()
            self.collector.run(count)
            self.step += count
            if self.step % self._interval == 0:
                self._take_in()
            self.spent["environment"] += time.perf_counter() - began
            if self.step % self._interval == 0 and self.step > self._start:
                self.update(self._updates)

    def update(self, count: int) -> None:
        """Make ``count`` updates, or none before more transitions than a batch can be sampled."""
        if self.store.first != self._first:  # a bounded store has dropped episodes that were sampled
            self.commit()
        if self._transitions <= self.learner.config.batch_size:
            return
        try:
            if self._sampler is None:
                self._sampler = self._open_sampler()
            for _ in range(count):
                began = time.perf_counter()
                self._sampler.seek(self.learner.step)
                batch = self._sampler.sample()
                sampled = time.perf_counter()
                self.learner.take(batch)
                self.spent["sample"] += sampled - began
                self.spent["update"] += time.perf_counter() - sampled
        except EmptyStore:
            self._sampler = None  # episodes of a single step, from which this algorithm samples nothing

    def due_until(self, step: int) -> int:
        """The updates that `advance` would have made from the present step up to ``step``: a resumed run makes those that a crash lost."""
        start = max(self.step, self._start, self._first_update(step) - 1)
        return self._updates * max(0, step // self._interval - start // self._interval)

    def go_on_at(self, step: int) -> None:
        """Continue at ``step``: the store holds the steps that were made after the loaded state."""
        self.step = self._intake_step = self.collector.frames = self.collector.behaviour.step = step

    def _first_update(self, step: int) -> int:
        """The first step at which a run of ``step`` steps had a batch to learn from; 0 if the store had other episodes before."""
        ends = np.cumsum(self.store.episode_table["steps"])
        if not len(ends) or self.store.first or ends[-1] != step:
            return 0
        last = ended = 0
        while ended < len(ends):  # from one intake to the next
            at = max(last + _apart(last and int(ends[ended - 1])), int(ends[ended]))
            last = -(-at // self._interval) * self._interval
            ended = int(np.searchsorted(ends, last, side="right"))
            if ends[ended - 1] > self.learner.config.batch_size:
                return last
        return step + 1

    def _take_in(self) -> None:
        """Commit if an episode has ended, and the last intake is long enough ago."""
        store = self.store
        ended = self._writer.pending or store.first + len(store) > self._known_episodes
        if ended and self.step - self._intake_step >= _apart(self._transitions):
            self.commit()

    def commit(self) -> None:
        """Commit the ended episodes and take them in: record the returns of new ones, and let updates sample from them."""
        self._writer.commit()
        self._intake_step = self.step
        store = self.store
        count = store.first + len(store)
        self._transitions, self._first = store.transition_count, store.first
        if count > self._known_episodes:
            if self._known_episodes or self.step:
                self.returns += [float(value) for value in store.returns[max(0, self._known_episodes - store.first) :]]
            self._known_episodes, self._sampler = count, None

    def _open_sampler(self) -> Any:
        learner = self.learner
        arguments = {**sampler_arguments(learner.algorithm, learner.config), "seed": learner.seeds[0]}
        if self._offline is None:
            return self.store.transitions(**arguments)
        return mix([(self.store, 1.0 - self._share), (self._offline, self._share)]).transitions(**arguments)

    # --------------------------------------------------------------------------------------------------------------- result
    def take_metrics(self) -> dict[str, dict[int, float]]:
        """Means since the last call: the losses' metrics, and ``rollout_return`` of the episodes that ended."""
        metrics = self.learner.metrics()
        if self.returns:
            metrics["rollout_return"] = {self.learner.seeds[0]: float(np.mean(self.returns))}
            self.returns = []
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint of the learner keeps too, as JSON."""
        return {"step": self.step, "collector": self.collector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = self._intake_step = int(state["step"])
        self.collector.load_state_dict(state["collector"])

    def close(self) -> None:
        """Cut the episode under way (truncated), commit, and close all that was opened here."""
        if hasattr(self, "collector"):
            self.collector.close()
        if self._owned is not None:
            self._owned.close()
            self._owned = None


def evaluate(
    learner: Any,
    env: Any,
    episodes: int,
    *,
    epsilon: float = 0.0,
    sample: bool = False,
    seed: int = EVALUATION_SEED,
    check: Callable[[], None] | None = None,
) -> list[float]:
    """Return the undiscounted returns of a policy's episodes; episode i is reset with ``seed + i``.

    Args:
        epsilon: probability of a uniform action.
        sample: draw the policy's actions; by default they are greedy.
        check: called after each episode; if it raises, the evaluation ends.
    """
    behaviour = Exploring(LearnerBehaviour(learner, deterministic=not sample), ConstantEpsilonGreedy(epsilon))
    name, calling = calls.name_of(env), calls.Calls(env)
    rng, returns = np.random.default_rng(seed), []
    for episode in range(episodes):
        where, again = f"of episode {episode + 1}", f"to reproduce it, reset with seed={seed + episode}"
        with calls.blamed(name, "the reset", where, again):
            observation, _ = calling.reset(seed=seed + episode)
        behaviour.begin_episode(calling.action_space, rng)
        total, length, over = 0.0, 0, False
        while not over:
            action = behaviour.act(observation)
            with calls.blamed(name, "a step", f"at step {length} {where}", again):
                observation, reward, terminated, truncated, _ = calling.step(action)
            total, length, over = total + reward, length + 1, terminated or truncated
        returns.append(total)
        if check is not None:
            check()
    return returns


def _apart(transitions: int) -> int:
    """Least number of steps between two intakes."""
    return max(COMMIT_STEPS, transitions // SHARE)


def _training(learner: Any, env: Any, store: Any, explorer: Explorer | None, options: Mapping[str, Any]) -> OnlineTraining | OnPolicy:
    if not learner.algorithm.plays:
        return OnlineTraining(learner, env, store, explorer=explorer, **options)
    unread = ["explorer"] if explorer is not None else []
    unread += [name for name in ("random_steps", "update_start", "update_interval", "updates", "offline") if name in options]
    if unread:
        why = "it draws its own actions and learns from each rollout"
        raise InvalidInput(f"{learner.algorithm.name} takes no {unread[0]}: {why}", hint="leave it out")
    return OnPolicy(learner, env, into=store, **options)


def fitter_online(
    learner: Any,
    env: Any,
    store: Any = None,
    explorer: Explorer | None = None,
    *,
    steps: int = 1_000_000,
    steps_per_epoch: int = 10_000,
    eval_env: Any = None,
    eval_epsilon: float = 0.0,
    eval_episodes: int = 10,
    callback: Callable[[Any, int, int], None] | None = None,
    epoch_callback: Callable[[Any, int, int], None] | None = None,
    recorder: Callable[[int], Callable[[int, Mapping[str, Any], bool], None]] | None = None,
    logger: Callable[[int, int, Mapping[str, Any]], None] | None = None,
    show_progress: bool = False,
    **options: Any,
) -> Iterator[tuple[int, dict[str, dict[int, float]]]]:
    """See `Learner.fitter_online`."""
    for name, value in (("steps", steps), ("steps_per_epoch", steps_per_epoch), ("eval_episodes", eval_episodes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{name} takes a whole number from 1, got {value!r}")
    evaluation = None if eval_env is None else Environments(eval_env)
    if evaluation is not None and evaluation.vector is None:
        check_learner(learner, evaluation.observation_space, evaluation.action_space, evaluation.name)
    training = _training(learner, env, store, explorer, options)
    record = None if recorder is None else recorder(steps_per_epoch)
    seed, failed = learner.seeds[0], 0  # evaluations in a row
    try:
        for epoch, end in enumerate(range(min(steps_per_epoch, steps), steps + steps_per_epoch, steps_per_epoch), start=1):
            end = min(end, steps)
            while training.step < end:
                training.advance(1 if callback is not None else min(100, end - training.step))
                if callback is not None:
                    callback(learner, epoch, training.step)
                if show_progress and training.step % 100 == 0:
                    print(f"\r{training.step:,} of {steps:,} steps, {learner.step:,} updates", end="", flush=True)
            if epoch_callback is not None:
                epoch_callback(learner, epoch, training.step)
            if end == steps:
                training.collector.cut()
            training.commit()
            metrics = training.take_metrics()
            if evaluation is not None and failed < EVALUATION_FAILURES:
                try:
                    returns = evaluate(learner, evaluation.single, eval_episodes, epsilon=eval_epsilon)
                except EnvironmentFailed as error:  # of the evaluation's environment: the training is healthy
                    failed += 1
                    warnings.warn(f"epoch {epoch}: the evaluation failed: {error.message}", stacklevel=2)
                else:
                    failed = 0
                    metrics |= {"return_mean": {seed: float(np.mean(returns))}, "return_std": {seed: float(np.std(returns))}}
            metrics |= {f"time_{name}": {seed: spent} for name, spent in training.spent.items()}
            training.spent = dict.fromkeys(training.spent, 0.0)
            if record is not None:
                record(epoch, metrics, end == steps)
            if logger is not None:
                logger(epoch, training.step, metrics)
            learner.guarded(metrics)
            yield epoch, metrics
            if end == steps:
                return
    finally:
        training.close()
        if evaluation is not None:
            evaluation.close()


__all__ = ["OnlineTraining", "check_online", "evaluate", "fitter_online", "refusal"]
