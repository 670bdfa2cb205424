"""Training loops around a learner: by steps or by epochs, with callbacks, evaluators, files and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, TextIO

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import Episode, EpisodeStore
from offrl_store.store import EpisodeList
from offrl_store.temporary import create_temporary
from offrld.engine.definition.run import Run
from offrld.engine.learner.feeds import Selection, TrainingData
from offrld.engine.learner.trainer import Metrics, Trainer

BLOCK = 100  # updates between refreshes of the progress bar
Callback = Callable[[Any, int, int], None]  # (learner, epoch, step)
Evaluator = Callable[[Any, EpisodeList], Any]  # (learner, episodes) -> a number for the first seed, or {seed: number}


class Fitted(Protocol):
    """What the loops need from a learner. `reconfigure` may replace the trainer between epochs."""

    trainer: Trainer
    data: TrainingData | None

    def run(self, updates: int) -> None: ...

    def metrics(self) -> Metrics: ...

    def validate(self) -> Metrics: ...

    def guarded(self, metrics: Metrics) -> None: ...


def fitter(
    learner: Fitted,
    steps: int | None = None,
    *,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    episodes: Any = None,
    transitions: Any = None,
    shuffle: bool | None = None,
    callback: Callback | None = None,
    epoch_callback: Callback | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
    eval_episodes: Any = None,
    recorder: Callable[[int], Callable[[int, Metrics, bool], None]] | None = None,
    logger: Callable[[int, int, Metrics], None] | None = None,
    show_progress: bool = False,
    verbose: bool = False,
    output: TextIO | None = None,
) -> Iterator[tuple[int, Metrics]]:
    """Train, and yield (epoch, metrics) after each epoch; between epochs the caller may change the learner (`reconfigure`, ``step``).

    Each epoch runs, in this order: updates, ``epoch_callback``, evaluation, files and log. Epochs count from 1. Its metrics are the
    losses' means, ``validation_NAME`` if episodes are held out, the evaluators' results, and ``time_sample_batch`` and
    ``time_algorithm_update`` (seconds per update; on a GPU, the time to launch the work).

    Args:
        steps: number of updates, with samples drawn uniformly with replacement; the last epoch may be shorter. Or
        epochs: number of passes over the data, each in a new order (``shuffle=False``: the same number of draws with replacement). A
            pass leaves out samples that do not fill its last batch.
        steps_per_epoch: updates per epoch; by default 10,000, or with ``epochs`` the updates of one pass.
        episodes: train only on these: numbers, a part of ``store.episodes``, or a list of `Episode` with the dataset's fields. Scalers
            stay as fitted at creation.
        transitions: train only on these: rows, or a part of ``store.episodes.transitions``.
        callback, epoch_callback: called with (learner, epoch, step) after each update, or after each epoch.
        evaluators: name -> function of (learner, episodes) that returns a number for the first seed, or {seed: number}.
        eval_episodes: the evaluators' episodes; by default the held-out ones, or all if none are held out.
        recorder: called with the updates per epoch; returns a function that is called with (epoch, metrics, whether it is the last).
        logger: called with (epoch, step, metrics) after each epoch.
        show_progress: show a progress bar with the latest losses.
        verbose: print one line per epoch to ``output`` (by default standard error).

    Raises:
        InvalidInput: neither or both of steps and epochs; no dataset; unknown episodes.
        Diverged: every seed diverged; the learner stays at that step.
    """
    data = learner.data
    if data is None:
        raise InvalidInput("this learner has no dataset to train on", hint="pass one when you create or load it, or use update(batch)")
    trainer = learner.trainer
    plan = _plan(trainer, data, _Request(steps, epochs, steps_per_epoch, episodes, transitions, shuffle))
    output = sys.stderr if output is None else output
    evaluated = episodes_of(data, eval_episodes)
    record = None if recorder is None else recorder(plan.per_epoch)
    if plan.selection is not None:
        trainer.lend(data.open(trainer.run, plan.selection))
    bar = _Bar(plan.total) if show_progress else None
    try:
        if bar is not None:
            bar.start()
        done = epoch = 0
        while done < plan.total:
            epoch += 1
            updates = min(plan.per_epoch, plan.total - done)
            _epoch(learner, epoch, updates, callback, bar)
            done += updates
            if epoch_callback is not None:
                epoch_callback(learner, epoch, learner.trainer.step)
            metrics = _epoch_metrics(learner, evaluators or {}, evaluated)
            if record is not None:
                record(epoch, metrics, done == plan.total)
            if logger is not None:
                logger(epoch, learner.trainer.step, metrics)
            if verbose:
                print(f"epoch {epoch}, step {learner.trainer.step}: {_in_words(metrics)}", file=output, flush=True)
            learner.guarded(metrics)
            yield epoch, metrics
    finally:
        if bar is not None:
            bar.stop()
        learner.trainer.give_back()


def episodes_of(data: TrainingData, episodes: Any) -> EpisodeList:
    """Return episodes by number as a part of the store; None: the held-out ones, or all if none are held out."""
    if isinstance(episodes, EpisodeList):
        if episodes.store is not data.store:
            raise InvalidInput("these episodes belong to another store", hint="pass numbers of episodes, or open one store for both")
        return episodes
    everything = EpisodeList(data.store, np.arange(len(data.store)))
    if episodes is None:
        return everything.take(data.holdout) if len(data.holdout) else everything
    return everything.take(episodes)


# --- What to train on ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """Arguments of `fitter` that define the length and the data of training."""

    steps: int | None
    epochs: int | None
    steps_per_epoch: int | None
    episodes: Any
    transitions: Any
    shuffle: bool | None

    def length(self) -> tuple[int, bool]:
        """Return the number of updates or of passes over the data, and whether they are passes; raise `InvalidInput`."""
        if self.steps is not None and self.epochs is None:
            length, in_passes = self.steps, False
        elif self.epochs is not None and self.steps is None:
            length, in_passes = self.epochs, True
        else:
            raise InvalidInput("give either steps=N or epochs=N", hint="steps are updates, epochs are passes over the data")
        self._check()
        return length, in_passes

    def _check(self) -> None:
        for name in ("steps", "epochs", "steps_per_epoch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
                raise InvalidInput(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.episodes is not None and self.transitions is not None:
            raise InvalidInput("episodes and transitions are mutually exclusive", hint="give only one of them")
        if self.shuffle and self.epochs is None:
            raise InvalidInput("shuffle needs epochs", hint="pass epochs=N instead of steps")


@dataclass(frozen=True)
class _Plan:
    """The total number of updates, the updates per epoch, and the samples (None: the learner's own feeds)."""

    total: int
    per_epoch: int
    selection: Selection | None


def _plan(trainer: Trainer, data: TrainingData, request: _Request) -> _Plan:
    length, in_passes = request.length()
    run, arguments, store = trainer.run, dict[str, Any](), None
    if _are_episodes(request.episodes):
        store, arguments["episodes"] = _store_of(run, data, request.episodes), None
    elif request.episodes is not None:
        arguments["episodes"] = episodes_of(data, request.episodes).numbers
    if request.transitions is not None:
        arguments |= {"rows": request.transitions, "episodes": None}
    shuffled = in_passes and request.shuffle is not False
    if shuffled:
        arguments["replacement"] = False
    if not in_passes:
        selection = Selection(arguments, store) if arguments else None
        return _Plan(length, min(request.steps_per_epoch or 10_000, length), selection)
    in_a_pass = _updates_per_pass(run, data, arguments, store or data.store)
    # A pass starts at the beginning of an order, even after earlier training.
    offset = -(-trainer.step // in_a_pass) * in_a_pass - trainer.step if shuffled else 0
    per_epoch = request.steps_per_epoch or in_a_pass
    return _Plan(length * per_epoch, per_epoch, Selection(arguments, store, offset) if arguments else None)


def _store_of(run: Run, data: TrainingData, episodes: Sequence[Episode]) -> EpisodeStore:
    """Create a temporary store of episodes that are not in the run's own store."""
    if run.algorithm.prepare is not None or run.algorithm.next_action == "policy":
        raise InvalidInput(
            f"{run.algorithm.name} preprocesses its dataset before training, so it cannot train on other episodes",
            hint="train a new learner on them: offrld.train(...)",
        )
    store = create_temporary(data.store.schema)
    with store.writer() as writer:
        for episode in episodes:
            writer.append(episode)
    return store


def _updates_per_pass(run: Run, data: TrainingData, arguments: Mapping[str, Any], store: EpisodeStore) -> int:
    """Return the number of batches in which each transition occurs once."""
    training = data.training if len(data.training) < len(data.store) else None
    options: dict[str, Any] = {"episodes": training, "batch_size": run.config.batch_size, "seed": 0, **arguments}
    if run.algorithm.batch_kind == "windows":
        options["length"] = run.config.context_size
    else:
        options["n_steps"] = getattr(run.config, "n_steps", 1)
    return getattr(store, run.algorithm.sampler)(**options).batches_per_epoch


def _are_episodes(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, EpisodeList) and len(value) > 0 and isinstance(value[0], Episode)


# --- An epoch -----------------------------------------------------------------------------------------------------------------------


def _epoch(learner: Fitted, epoch: int, updates: int, callback: Callback | None, bar: _Bar | None) -> None:
    block = 1 if callback is not None else BLOCK if bar is not None else updates
    left = updates
    while left > 0:
        count = min(block, left)
        learner.run(count)
        left -= count
        if callback is not None:
            callback(learner, epoch, learner.trainer.step)
        if bar is not None:
            bar.show(epoch, count, learner.trainer.means.peek() if left % BLOCK == 0 else None)


def _epoch_metrics(learner: Fitted, evaluators: Mapping[str, Evaluator], episodes: EpisodeList) -> Metrics:
    seeds = learner.trainer.run.seeds
    metrics = {**learner.metrics(), **learner.validate()}
    for name, evaluate in evaluators.items():
        value = evaluate(learner, episodes)
        try:
            metrics[name] = {int(s): float(v) for s, v in value.items()} if isinstance(value, Mapping) else {seeds[0]: float(value)}
        except (TypeError, ValueError):
            raise InvalidInput(f"the evaluator {name!r} returned {value!r:.80}", hint="return a number, or {seed: number}") from None
    for name, seconds in learner.trainer.spent.take().items():
        metrics[name] = dict.fromkeys(seeds, seconds)
    return metrics


class _Bar:
    """A rich progress bar."""

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

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, epoch: int, updates: int, latest: Metrics | None) -> None:
        self._progress.update(self._task, advance=updates, epoch=epoch)
        if latest is not None:
            self._progress.update(self._task, shown=_in_words(latest))


def _in_words(metrics: Metrics) -> str:
    return "  ".join(f"{name} {', '.join(f'{value:.4g}' for value in values.values())}" for name, values in metrics.items())
