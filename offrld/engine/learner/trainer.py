"""The trainer turns losses into updates. Update ``k`` takes batch ``k`` and runs the steps that the schedule has for it.

The result depends only on (snapshot, seeds, config, k), never on how updates were grouped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from offrl.errors import InvalidInput
from offrld.engine.batches.caller_batches import caller_batches
from offrld.engine.definition.run import Run
from offrld.engine.learner.feeds import NO_FEEDS, Feeds
from offrld.engine.updates.graph import Capture, Chunks, length_for
from offrld.engine.updates.means import Means, Spent
from offrld.engine.updates.runner import Gradients, gradients
from offrld.engine.updates.train_state import TrainState, key_of
from offrld.engine.updates.update import Updater
from offrld.nets.linear import products

Metrics = dict[str, dict[int, float]]  # name -> seed -> value


class Trainer:
    """Perform the updates of a run. Other settings need another trainer.

    Attributes:
        run: the run that is trained.
        state: parameters, targets, optimizers and carry; updates change it in place.
        feeds: supply the batches.
        step: number of completed updates.
        moves: optimizer -> number of its steps.
        means, spent: metrics and seconds since they were last read.
        runner: how losses and updates run: ``eager``, ``compile`` or ``graph``.
        linear: the library for the products of linear layers: ``torch`` or ``onednn``.
        updater: runs single steps of the schedule.
        chunks: runs many updates together; None: each update runs alone.
    """

    def __init__(self, run: Run, state: TrainState, feeds: Feeds = NO_FEEDS) -> None:
        self.run, self.state, self.feeds = run, state, feeds
        self.step = 0
        self.moves = dict.fromkeys(state.moments, 0)
        self.means, self.spent = Means(run.seeds), Spent()
        self.runner, self.linear = "eager", "torch"
        self.chunks: Chunks | None = None
        self.differentiate(compiled=False)
        self._own: tuple[Feeds, Chunks | None] | None = None  # the trainer's own feeds and chunks, while it uses lent feeds

    # -------------------------------------------------------------------------------------------------------------- updates
    def train(self, updates: int, before: Callable[[int], None] | None = None) -> None:
        """Perform ``updates`` updates on batches of the feeds.

        Args:
            before: called before each update with its number; with chunks, only at the updates of `Algorithm.next_between`.

        Raises:
            InvalidInput: the run has no dataset.
        """
        if not self.feeds:
            raise InvalidInput("this learner has no dataset to train on", hint="pass one when you create or load it, or use update(batch)")
        end = self.step + updates
        while self.step < end:
            if before is not None:
                before(self.step)
            start = time.perf_counter()
            if self.chunks is not None and (done := self.replay(end)):
                self.spent.update += time.perf_counter() - start  # includes the sampling
                self.spent.updates += done
                continue
            batches = self.batches(self.step)
            sampled = time.perf_counter()
            self.apply(batches)
            self.spent.sample += sampled - start
            self.spent.update += time.perf_counter() - sampled
            self.spent.updates += 1

    def apply(self, batches: list[Any]) -> None:
        """Perform the current update on these batches, one per view."""
        with products(through_onednn=self.linear == "onednn"):
            for due in self.state.schedules[self.run.stage(self.step).name]:
                if due.step.due(self.step):
                    self.means.add(self.updater.apply(due, batches, self.moves.get(due.moments_key, 0)))
                    if due.moments_key:
                        self.moves[due.moments_key] += 1
        self.step += 1

    def take(self, batch: Any) -> None:
        """Perform one update on a batch of the caller's (see `caller_batches`)."""
        self.apply(caller_batches(self.run, batch, self.step))

    def update(self, batch: Any) -> Metrics:
        """Perform one update on a batch of the caller's; return the metrics of this update alone."""
        batches = caller_batches(self.run, batch, self.step)
        means, self.means = self.means, Means(self.run.seeds, also=self.means)
        try:
            self.apply(batches)
            return self.means.take()
        finally:
            self.means = means

    def batches(self, k: int) -> list[Any]:
        """Return the batches of update ``k``, one per view: each seed's, or all seeds' stacked."""
        return self.feeds.batches(self.run.stage(k), k)

    # --------------------------------------------------------------------------------------------------------------- chunks
    def use_chunks(self, capture: Capture, length: int | None = None) -> Chunks:
        """Train in chunks from now on; return the chunks.

        Raises:
            InvalidInput: batches are not drawn on the device.
        """
        if self.feeds.kind != "resident":
            raise InvalidInput(f"the feed is {self.feeds.kind}, but a graph draws its batches on the device", hint="use feed='resident'")
        feeds = {stage.name: self.feeds.of(stage) for stage in self.run.stages}
        if length is None:
            length = length_for(self.batches(0)[0]) // len(self.run.groups) or 1
        self.chunks = Chunks(self.updater, self.state.schedules, feeds, self.run.device, capture=capture, length=length)
        return self.chunks

    def replay(self, end: int, *, at_once: bool = False) -> int:
        """Perform several updates together, all before ``end``; return how many: 0 without chunks, or if a graph does not pay off yet."""
        if self.chunks is None:
            return 0
        stage = self.run.stage(self.step).name
        with products(through_onednn=self.linear == "onednn"):
            done, metrics, moves = self.chunks.run(stage, self.step, self.free(end), self.moves, at_once=at_once)
        self.means.add(metrics)
        for key, count in moves.items():
            self.moves[key] += count
        self.step += done
        return done

    def free(self, end: int) -> int:
        """Return how many updates can follow, up to ``end``, before another stage or the algorithm's hook intervenes."""
        run, k = self.run, self.step
        stop = end if (stage_end := run.stage_end(k)) is None else min(end, stage_end)
        if run.algorithm.between is not None:
            hook = run.algorithm.next_between
            stop = min(stop, k + 1 if hook is None else hook(run.config, k))
        return stop - k

    # ------------------------------------------------------------------------------------------------------------ the parts
    def gradients(self, compiled: bool) -> dict[str, Gradients]:
        """Return the gradient function of every step that has a loss, by its key."""
        run = self.run
        return {
            key_of(stage, step): gradients(step, run.config, run.nets, kind=run.batch_type, compiled=compiled, stacked=run.stacked)
            for stage in run.stages
            for step in stage.schedule
            if step.loss is not None
        }

    def differentiate(self, *, compiled: bool) -> None:
        """Compute gradients with compiled losses from now on, or with eager ones."""
        self.updater = Updater(self.state, self.gradients(compiled), stacked=self.run.stacked)

    def lend(self, feeds: Feeds) -> None:
        """Train on the batches of other feeds until `give_back`, update by update, because chunks draw from the trainer's own feeds."""
        self._own = (self.feeds, self.chunks)
        self.feeds, self.chunks = feeds, None

    def give_back(self) -> None:
        """Close the lent feeds and return to the trainer's own."""
        if self._own is not None:
            self.feeds.close()
            (self.feeds, self.chunks), self._own = self._own, None

    @property
    def lent(self) -> Feeds | None:
        """The feeds passed to `lend`, if any."""
        return None if self._own is None else self.feeds

    def close(self) -> None:
        """Close all feeds."""
        self.give_back()
        self.feeds.close()

    # ------------------------------------------------------------------------------------------------------------ the state
    def take_over(self, other: Trainer) -> None:
        """Continue from the state of a trainer with other settings.

        Raises:
            ValueError: the training states differ in names or shapes.
        """
        tensors = other.state.tensors()
        if not self.state.fits(tensors):
            raise ValueError("the training states differ")
        self.state.load(tensors)
        self.step, self.moves = other.step, dict(other.moves)
        self.means, self.spent = other.means, other.spent

    def broken(self) -> dict[int, str]:
        """Return the seeds that have a non-finite parameter or target, each with the first network that has one."""
        broken: dict[int, str] = {}
        for name, value in [*self.state.params.items(), *self.state.target.items()]:
            finite = torch.isfinite(value).reshape(len(self.run.seeds), -1).all(1).tolist()
            for seed, fine in zip(self.run.seeds, finite, strict=True):
                if not fine:
                    broken.setdefault(seed, name.split(".")[0])
        return broken
