"""The learner: one object that trains, acts, saves and loads. It holds the parts and delegates each call to one of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld import settings
from offrld.engine.definition.algorithm import Algorithm, Rollout, Windows
from offrld.engine.definition.run import Run, Scalers
from offrld.engine.definition.space import Space
from offrld.engine.learner import creation, fitting, saving
from offrld.engine.learner.actor import Actor, Played
from offrld.engine.learner.data import Dataset
from offrld.engine.learner.feeds import TrainingData
from offrld.engine.learner.guards import Guard, value_limit
from offrld.engine.learner.loaded import Loaded, Trained
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.engine.learner.runner_choice import Execution, ready_trainer
from offrld.engine.learner.sequence_policy import Returns
from offrld.engine.learner.trainer import Metrics, Trainer
from offrld.engine.learner.transfer import Part, copy_into, reset_optimizers
from offrld.engine.learner.validation import validate
from offrld.engine.updates.graph import Capture
from offrld.engine.updates.means import Spent
from offrld.engine.updates.train_state import TrainState

FIXED = ("observation_scaler", "reward_scaler", "action_scaler", "frame_stack")  # settings that scalers and networks depend on


class Learner:
    """Train ``S`` seeds of one algorithm on one store. Create it with `Learner.create`.

    Attributes:
        trainer: performs the updates; `reconfigure` replaces it.
        actor: acts with the current parameters.
        data: the dataset; None for a learner that only acts and trains on the caller's batches.
        dataset: the training episodes as `Algorithm.prepare` sees them; absent without data.
        inputs: the other runs whose results this one uses.
        guard: watches for metrics that diverge.
    """

    dataset: Dataset  # only with data

    create = classmethod(creation.create)  # type: ignore[var-annotated]  # mypy has no notation for a generic class method
    fitter = fitting.fitter

    def __init__(
        self,
        run: Run,
        data: TrainingData | None,
        *,
        inputs: Mapping[str, Loaded],
        execution: Execution,
        log: Callable[[str], None],
    ) -> None:
        self.data, self.inputs = data, inputs
        self._execution, self._log = execution, log
        self._provenance: dict[str, Any] = {}
        self._returns: Returns | None = None  # returns of the training episodes, once a policy needs them
        if data is not None:
            self._provenance = {"snapshot": str(data.store.snapshot()), "held_out": len(data.holdout)}
            self.dataset = Dataset(data.store, run.space, run.scalers, data.training, run.dtype, run.device, inputs)
        self.guard = Guard(run.seeds, value_limit(run.config, self.store, run.space, run.scalers))
        self._use(ready_trainer(run, data, None if data is None else self.dataset, execution, log))

    def _use(self, trainer: Trainer) -> None:
        self.trainer, self.actor = trainer, Actor(trainer.run, trainer.state.params)

    def reconfigure(self, values: Mapping[str, Any]) -> None:
        """Continue with other settings (dotted names): learning rates, weights, intervals, the batch size.

        Raises:
            Unknown, InvalidInput: an unknown setting, or one that changes networks, scalers or the optimizers' state; the learner is
                unchanged.
        """
        before, config = self.trainer, settings.build(self.config, values)
        for name in FIXED:
            if getattr(config, name, None) != getattr(self.config, name, None):
                raise InvalidInput(f"{name} cannot change during training", hint="create a new learner, and start it from this one")
        run = before.run.with_config(config)
        dataset = None if self.data is None else self.dataset
        self._use(ready_trainer(run, self.data, dataset, self._execution, self._log, before))
        before.close()

    # ------------------------------------------------------------------------------------------------------------ training
    def run(self, updates: int) -> None:
        """Perform ``updates`` updates; raise `InvalidInput` without a dataset."""
        hook = self.algorithm.between
        self.trainer.train(updates, None if hook is None else partial(hook, self))

    def update(self, batch: Any) -> Metrics:
        """Update all seeds once on a batch of your own; return the losses' metrics, name -> seed -> value.

        The step counter grows by one, and `metrics` includes the update. Reading the metrics waits for the device.

        Args:
            batch: a batch of any size for all seeds, from a store's sampler (``store.transitions(...).sample()``, ``.windows``,
                ``.prioritized``; rewards and observations in the dataset's units); a ``weight`` weights each transition. Or, for a
                single seed, the engine's `Batch`.

        Raises:
            InvalidInput: the batch lacks a field that the algorithm needs, or a shape is wrong.
        """
        return self.trainer.update(batch)

    def take(self, batch: Any) -> None:
        """Update as `update` does, but without reading the metrics or waiting for the device. `metrics` returns their means."""
        self.trainer.take(batch)
        self.trainer.spent.updates += 1

    def fit(self, steps: int | None = None, **options: Any) -> list[tuple[int, Metrics]]:
        """Train; return every epoch's (number, metrics). For arguments and errors see `fitter`."""
        return list(self.fitter(steps, **options))

    def guarded(self, metrics: Metrics) -> None:
        """Check metrics as a job's worker does: warn about values that diverge; raise `Diverged` if no sound seed is left."""
        self.guard.watch(self.step, metrics, self._log)

    def validate(self) -> Metrics:
        """Return the losses' metrics on the held-out episodes, as ``validation_NAME``; {} without any. Every call uses the same batches."""
        return {} if self.data is None else validate(self.trainer, self.data)

    def metrics(self) -> Metrics:
        """Return the means of the losses' metrics since the last call: name -> {seed -> value}."""
        return self.trainer.means.take()

    def latest(self) -> Metrics:
        """Return the same as `metrics`, without resetting the means."""
        return self.trainer.means.peek()

    def broken(self) -> dict[int, str]:
        """Return the seeds that have a non-finite parameter or target, each with the first network that has one."""
        return self.trainer.broken()

    def use_chunks(self, capture: Capture, length: int | None = None) -> None:
        """Train in chunks from now on; see `Trainer.use_chunks`."""
        self.trainer.use_chunks(capture, length)

    # -------------------------------------------------------------------------------------------------------------- acting
    def predict(self, observations: Any, *, seed: int | None = None) -> np.ndarray:
        """Return greedy actions; see `Actor.predict`."""
        return self.actor.predict(observations, seed=seed)

    def sample(self, observations: Any, *, seed: int | None = None, step: int = 0) -> np.ndarray:
        """Draw actions from the policy; see `Actor.sample`."""
        return self.actor.sample(observations, seed=seed, step=step)

    def play(self, observations: Any, *, step: int, seed: int | None = None) -> Played:
        """Draw actions to learn from; see `Actor.play`."""
        return self.actor.play(observations, step=step, seed=seed)

    def rollout(self, observations: Any, **arrays: np.ndarray) -> Rollout:
        """Build the current update's batch from steps of a rollout; see `Actor.rollout`."""
        return self.actor.rollout(observations, self.step, **arrays)

    def predict_value(
        self, observations: Any, actions: Any, with_std: bool = False, *, seed: int | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the values of actions; see `Actor.predict_value`."""
        return self.actor.predict_value(observations, actions, with_std, seed=seed)

    def policy(self, seed: int | None = None) -> PolicyModule:
        """Return the greedy policy of a trained seed, or the evaluated policy, as a module; see `Actor.policy`."""
        if "policy" in self.inputs:
            return self.inputs["policy"].policy()
        return self.actor.policy(seed, lambda: self.returns)

    @property
    def returns(self) -> Returns:
        """Returns of the training episodes, a sequence model's default targets. Raises `InvalidInput` without a dataset."""
        if self._returns is None:
            if self.data is None:
                raise InvalidInput("a sequence model's default return comes from its dataset", hint="load it with its store")
            self._returns = Returns.of(self.data.store, self.data.training, self.scalers.reward)
        return self._returns

    # ------------------------------------------------------------------------------------------------------------ other runs
    def loaded(self, seed: int | None = None) -> Loaded:
        """Return a copy of a trained seed without the learner, for use by another run (`inputs`, `start`)."""
        return Loaded.of_trainer(self.trainer, seed)

    def copy_policy_from(self, other: Trained | Loaded) -> None:
        """Copy the policy's networks and their target networks from a learner or a loaded seed.

        From a learner, each seed takes the same seed if the learner trained it, and the learner's first otherwise. All seeds take a loaded
        seed.

        Raises:
            InvalidInput: the other run lacks a network or has other shapes; nothing changes.
        """
        copy_into(self.trainer, other, "policy", self._log, moments=False)

    def copy_policy_optim_from(self, other: Trained | Loaded) -> None:
        """Copy the state of the optimizers of the policy's networks; see `copy_policy_from`."""
        copy_into(self.trainer, other, "policy", self._log, networks=False)

    def copy_q_function_from(self, other: Trained | Loaded) -> None:
        """Copy critic, q and value networks and their target networks; see `copy_policy_from`."""
        copy_into(self.trainer, other, "critics", self._log, moments=False)

    def copy_q_function_optim_from(self, other: Trained | Loaded) -> None:
        """Copy the state of the optimizers of critic, q and value networks; see `copy_policy_from`."""
        copy_into(self.trainer, other, "critics", self._log, networks=False)

    def start_from(self, start: Trained | Loaded | Iterable[Loaded], part: Part = "all", *, fresh_optimizer: bool = False) -> None:
        """Copy parameters, targets and (unless ``fresh_optimizer``) optimizers' state; optimizers without a match start from zero.

        Args:
            start: one loaded seed for all, or several, of which each seed takes the same seed or else the first.

        Raises:
            InvalidInput: the other run lacks a network or has other shapes; nothing changes.
        """
        copy_into(self.trainer, start, part, self._log, moments=not fresh_optimizer, strict=False)

    def reset_optimizer_states(self) -> None:
        """Set moments and counts of every optimizer to zero; parameters stay."""
        reset_optimizers(self.trainer)

    # --------------------------------------------------------------------------------------------------------- checkpoints
    def save(self, path: str | os.PathLike[str], more: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint atomically: state, step, config, snapshot, sums of the metrics, and what the run depends on.

        Args:
            more: further JSON entries of the caller's.
        """
        run = self.trainer.run
        returns = {"returns": dataclasses.asdict(self.returns)} if run.batch_type is Windows else {}
        description = {**saving.identity(run, self._provenance), **self.describe_run(), **returns}
        saving.save(path, self.trainer, {**(more or {}), "guard": self.guard.as_json(), **description})

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Continue from a checkpoint of the same algorithm, config, snapshot and seeds; otherwise raise `OffrlError` and change nothing.

        A learner without data accepts a checkpoint of any snapshot.
        """
        description = saving.restore(path, self.trainer, None if self.data is None else self._provenance)
        self.guard.load(description["guard"])
        self._execution.restore_linear(self.trainer, description.get("linear", "torch"), self._log)
        if self.data is None:  # so that a checkpoint written from here can still continue with its dataset
            self._provenance = {name: description[name] for name in ("snapshot", "held_out") if name in description}
            self._returns = Returns(**description["returns"]) if "returns" in description else None

    def describe_run(self) -> dict[str, Any]:
        """Return what this run depends on besides config and data: runner, device, threads, dtype and versions."""
        return saving.describe(self.trainer, "none" if self.data is None else self.data.sources.feed)

    # ----------------------------------------------------------------------------------------------------------- attributes
    @property
    def step(self) -> int:
        """Number of completed updates. It can be set; checkpoints store it."""
        return self.trainer.step

    @step.setter
    def step(self, step: int) -> None:
        self.trainer.step = step

    @property
    def algorithm(self) -> Algorithm:
        return self.trainer.run.algorithm

    @property
    def config(self) -> Any:
        return self.trainer.run.config

    @property
    def nets(self) -> Any:
        """The networks by name."""
        return self.trainer.run.nets

    @property
    def state(self) -> TrainState:
        return self.trainer.state

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, each an independent training run."""
        return self.trainer.run.seeds

    @property
    def scalers(self) -> Scalers:
        """The fitted scalers."""
        return self.trainer.run.scalers

    @property
    def space(self) -> dict[str, Any]:
        """The spaces as JSON (see `Space.as_json`)."""
        return self.trainer.run.space.as_json()

    @property
    def space_(self) -> Space:
        """The spaces as an object."""
        return self.trainer.run.space

    @property
    def store(self) -> EpisodeStore | None:
        """The dataset; None without one."""
        return None if self.data is None else self.data.store

    @property
    def holdout(self) -> np.ndarray:
        """Numbers of the held-out episodes."""
        return np.empty(0, np.int64) if self.data is None else self.data.holdout

    @holdout.setter
    def holdout(self, episodes: np.ndarray) -> None:
        if self.data is not None:
            self.data.holdout = episodes

    @property
    def snapshot(self) -> str | None:
        """Snapshot of the dataset that the learner was trained on; None without one."""
        return self._provenance.get("snapshot")

    @property
    def spent(self) -> Spent:
        """Time spent on updates, in seconds."""
        return self.trainer.spent

    @property
    def runner(self) -> str:
        """``eager``, ``compile`` or ``graph``."""
        return self.trainer.runner

    @property
    def linear(self) -> str:
        """``torch`` or ``onednn``."""
        return self.trainer.linear


__all__ = ["Learner"]
