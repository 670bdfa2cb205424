"""Training loops around a learner: by steps or by epochs, with callbacks, evaluators, files and a progress bar; and single updates."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TextIO

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore
from offrl_store.store import EpisodeList
from offrl_store.temporary import create_temporary
from offrld.engine.batches.caller_batches import Given
from offrld.engine.learner.guards import HELP, Diverged
from offrld.engine.updates.means import Means

Metrics = dict[str, dict[int, float]]  # name -> seed -> value
VALIDATION_BATCHES = 16
BLOCK = 100  # updates between two looks at the progress bar


class Fitting:
    """The part of `Learner` that runs it."""

    algorithm: Any
    config: Any
    store: EpisodeStore | None
    seeds: tuple[int, ...]
    step: int
    holdout: np.ndarray

    # -------------------------------------------------------------------------------------------------------- single updates
    def update(self, batch: Any) -> Metrics:
        """One update of all seeds on a batch of your own; its losses' metrics: name -> seed -> value.

        The step counter goes on by one, and `metrics` counts it in. Reading the metrics waits for the device.

        Args:
            batch: what a store's sampler gave (``store.transitions(...).sample()``, ``.windows``, ``.prioritized``; rewards and
                observations in the dataset's units), of any size, for all seeds alike, each transition of which counts by its ``weight``
                where there is one; or, for a single seed, an engine's `Batch`.

        Raises:
            InvalidInput: a batch without what the algorithm reads, or of other shapes.
        """
        return self._once(self._given().batches(batch, self.step))

    def take(self, batch: Any) -> None:
        """As `update`, without reading the metrics: nothing waits for the device. `metrics` has their means."""
        self._do(self._given().batches(batch, self.step))
        self.spent.updates += 1

    def _given(self) -> Given:
        groups = [self.seeds] if self._stacked else [(seed,) for seed in self.seeds]
        return Given(
            self.algorithm,
            self.config,
            self.space_,
            self._scalers,
            groups=groups,
            stacked=self._stacked,
            dtype=self._dtype,
            device=self._device,
        )

    # ----------------------------------------------------------------------------------------------------------------- loops
    def fit(self, steps: int | None = None, **options: Any) -> list[tuple[int, Metrics]]:
        """Train; every epoch's (number, metrics). Arguments and errors as of `fitter`."""
        return list(self.fitter(steps, **options))

    def fitter(
        self,
        steps: int | None = None,
        *,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        episodes: Any = None,
        transitions: Any = None,
        shuffle: bool | None = None,
        callback: Callable[[Any, int, int], None] | None = None,
        epoch_callback: Callable[[Any, int, int], None] | None = None,
        evaluators: Mapping[str, Callable[[Any, EpisodeList], Any]] | None = None,
        eval_episodes: Any = None,
        recorder: Callable[[int], Callable[[int, Metrics, bool], None]] | None = None,
        logger: Callable[[int, int, Metrics], None] | None = None,
        show_progress: bool = False,
        verbose: bool = False,
        output: TextIO | None = None,
    ) -> Iterator[tuple[int, Metrics]]:
        """Train, giving (epoch, metrics) after each epoch; between two of them the caller may change things (`reconfigure`, ``step``).

        An epoch does, in this order: updates, ``epoch_callback``, evaluation, files and log. Epochs count from 1. Its metrics are the
        losses' means, ``validation_NAME`` where episodes are held out, the evaluators' results, and ``time_sample_batch``,
        ``time_algorithm_update`` (seconds per update; on a GPU the time to hand over the work).

        Args:
            steps: updates in all, drawn uniformly with repetitions; the last epoch has what is left. Or
            epochs: passes over the data, each in a new order (``shuffle=False``: draws with repetitions, as many). What does not fill a
                batch at the end of a pass is left out of it.
            steps_per_epoch: updates of an epoch; by default 10,000, or with ``epochs`` those of a pass.
            episodes: train on these alone: numbers, a part of ``store.episodes``, or a list of `Episode` of the dataset's fields. Scalers
                stay as they were fitted at creation.
            transitions: train on these alone: rows, or a part of ``store.episodes.transitions``.
            callback, epoch_callback: called with (learner, epoch, step) after each update, or each epoch.
            evaluators: name -> function of (learner, episodes): a number for the first seed, or {seed: number}.
            eval_episodes: what evaluators get; by default the held-out episodes, or all where none are.
            recorder: called with the updates of an epoch; gives what is then called with (epoch, metrics, whether it is the last).
            logger: called with (epoch, step, metrics) after each epoch.
            show_progress: a bar with the newest losses, on the terminal.
            verbose: one line for each epoch, to ``output`` (by default standard error).

        Raises:
            InvalidInput: neither or both of steps and epochs; no dataset; episodes that are not there.
            Diverged: every seed has; the learner is as it was at that step.
        """
        plan = self._plan(steps, epochs, steps_per_epoch, episodes, transitions, shuffle)
        output = sys.stderr if output is None else output
        evaluated = self._episodes(eval_episodes)
        record = None if recorder is None else recorder(plan.per_epoch)
        with ExitStack() as stack:
            if plan.feeds is not None:
                stack.enter_context(self._fed_by(plan.feeds, plan.first - self.step))
            bar = stack.enter_context(_Bar(plan.total)) if show_progress else None
            done = epoch = 0
            while done < plan.total:
                epoch += 1
                updates = min(plan.per_epoch, plan.total - done)
                self._epoch(epoch, updates, callback, bar)
                done += updates
                if epoch_callback is not None:
                    epoch_callback(self, epoch, self.step)
                metrics = self._epoch_metrics(evaluators or {}, evaluated)
                if record is not None:
                    record(epoch, metrics, done == plan.total)
                if logger is not None:
                    logger(epoch, self.step, metrics)
                if verbose:
                    print(f"epoch {epoch}, step {self.step}: {_in_words(metrics)}", file=output, flush=True)
                self.guarded(metrics)
                yield epoch, metrics

    def guarded(self, metrics: Metrics) -> None:
        """Look at metrics as a job's worker does: tell of values that run away, raise `Diverged` once no seed is in order."""
        warnings, stops = self.guard.check(self.step, metrics)
        for trouble in warnings:
            self._log(f"warning: {trouble}; {HELP}")
        for trouble in stops:
            self._log(f"{trouble}: this seed counts no more")
        if stops and not self.guard.running:
            worst = stops[0]
            raise Diverged(str(worst), hint=f"it was in order at step {worst.good}; {HELP}")

    def validate(self) -> dict[str, dict[int, float]]:
        """The losses' metrics on held-out episodes, as ``validation_NAME``; the same batches at every call. Empty without a holdout."""
        if len(self.holdout) == 0:
            return {}
        stage = self._stage(max(self.step - 1, 0))
        single = {"n_steps": 1} if stage.single_steps and getattr(self.config, "n_steps", 1) > 1 else {}
        feed = self._feed((0,), self.holdout, stacked=False, ahead=False, changed=single)
        means = Means(self.seeds)
        for k in range(VALIDATION_BATCHES):
            batch = feed.batch(k)
            for step in stage.schedule:
                if step.loss is None:
                    continue
                rows = [
                    step.loss(state.params, self.config, self.nets, state, batch)[1]
                    for state in (self.state.of_seed(position, self._data) for position in range(len(self.seeds)))
                ]
                means.add({name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]})
        return {f"validation_{name}": values for name, values in means.take().items()}

    # -------------------------------------------------------------------------------------------------------------- plumbing
    def _plan(
        self, steps: int | None, epochs: int | None, per_epoch: int | None, episodes: Any, transitions: Any, shuffle: bool | None
    ) -> _Plan:
        if self.store is None:
            raise InvalidInput("this learner has no dataset to train on", hint="give one when it is made or loaded, or use update(batch)")
        if (steps is None) == (epochs is None):
            raise InvalidInput("give steps=N or epochs=N: one of them", hint="steps are updates, epochs passes over the data")
        for name, value in (("steps", steps), ("epochs", epochs), ("steps_per_epoch", per_epoch)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InvalidInput(f"{name} takes a whole number from 1, got {value!r}")
        if episodes is not None and transitions is not None:
            raise InvalidInput("both episodes and transitions were given", hint="choose one of them")
        passes = epochs is not None and shuffle is not False
        if shuffle and epochs is None:
            raise InvalidInput("shuffled passes are counted in epochs", hint="give epochs=N instead of steps")
        changed: dict[str, Any] = {}
        store = None
        if _are_episodes(episodes):
            store, changed["episodes"] = self._store_of(episodes), None
        elif episodes is not None:
            changed["episodes"] = self._episodes(episodes).numbers
        if transitions is not None:
            changed |= {"rows": transitions, "episodes": None}
        if passes:
            changed["replacement"] = False
        feeds = self._open_feeds(changed, store) if changed else None
        pass_ = 1 if epochs is None else self._feed_passes(changed, store or self.store)
        first = self.step
        if passes:
            first = -(-self.step // pass_) * pass_  # a pass begins at the begin of an order, also where training went before
        if epochs is None:
            return _Plan(steps, min(per_epoch or 10_000, steps), feeds, first)
        per_epoch = per_epoch or pass_
        return _Plan(epochs * per_epoch, per_epoch, feeds, first)

    def _store_of(self, episodes: Sequence[Episode]) -> EpisodeStore:
        """A temporary store of episodes that are not in this learner's own."""
        if self.algorithm.prepare is not None or self.algorithm.next_action == "policy":
            raise InvalidInput(
                f"{self.algorithm.name} learns from what it has prepared of its own dataset, not from other episodes",
                hint="make a new learner of them: offrld.train(...)",
            )
        store = create_temporary(self.store.schema)
        with store.writer() as writer:
            for episode in episodes:
                writer.append(episode)
        return store

    def _feed_passes(self, changed: dict[str, Any], store: EpisodeStore) -> int:
        """Batches in which each transition comes once."""
        base = {"episodes": self._training if len(self._training) < len(self.store) else None, "batch_size": self.config.batch_size}
        arguments = {**base, "seed": 0, **changed}
        if self.algorithm.batch_kind == "windows":
            arguments["length"] = self.config.context_size
        else:
            arguments["n_steps"] = getattr(self.config, "n_steps", 1)
        return getattr(store, self.algorithm.batch_kind)(**arguments).batches_per_epoch

    def _episodes(self, given: Any) -> EpisodeList:
        """Episodes by number as a part of the store; None: the held-out ones, or all."""
        if isinstance(given, EpisodeList):
            if given.store is not self.store:
                raise InvalidInput("these episodes are of another store", hint="give numbers of episodes, or open one store for both")
            return given
        everything = EpisodeList(self.store, np.arange(len(self.store)))
        if given is None:
            return everything.take(self.holdout) if len(self.holdout) else everything
        return everything.take(given)

    def _epoch(self, epoch: int, updates: int, callback: Callable[[Any, int, int], None] | None, bar: _Bar | None) -> None:
        block = 1 if callback is not None else BLOCK if bar is not None else updates
        left = updates
        while left > 0:
            count = min(block, left)
            self.run(count)
            left -= count
            if callback is not None:
                callback(self, epoch, self.step)
            if bar is not None:
                bar.show(epoch, count, self.latest() if left % BLOCK == 0 else None)

    def _epoch_metrics(self, evaluators: Mapping[str, Callable[[Any, EpisodeList], Any]], episodes: EpisodeList) -> Metrics:
        metrics = {**self.metrics(), **self.validate()}
        for name, evaluate in evaluators.items():
            value = evaluate(self, episodes)
            metrics[name] = {int(s): float(v) for s, v in value.items()} if isinstance(value, Mapping) else {self.seeds[0]: float(value)}
        for name, seconds in self.spent.take().items():
            metrics[name] = dict.fromkeys(self.seeds, seconds)
        return metrics


def _are_episodes(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, EpisodeList) and len(given) > 0 and isinstance(given[0], Episode)


@dataclasses.dataclass(frozen=True)
class _Plan:
    total: int  # updates
    per_epoch: int
    feeds: Any  # None: the learner's own
    first: int  # the feeds' number of the first batch


class _Bar:
    """A progress bar of rich."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        self._task = self._progress.add_task("training", total=total, epoch=1, shown="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def show(self, epoch: int, updates: int, latest: Metrics | None) -> None:
        more = {} if latest is None else {"shown": _in_words(latest)}
        self._progress.update(self._task, advance=updates, epoch=epoch, **more)


def _in_words(metrics: Metrics) -> str:
    return "  ".join(f"{name} {', '.join(f'{value:.4g}' for value in values.values())}" for name, values in metrics.items())


__all__ = ["Fitting", "Metrics"]
