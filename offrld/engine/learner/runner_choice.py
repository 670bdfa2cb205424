"""How updates run on this machine: eager or compiled losses, single updates or CUDA graphs, torch's or oneDNN's products.

A faster method is used only if it reproduces the results of the ordinary one; if it does not, one log line gives the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from offrl.errors import InvalidInput
from offrld import settings
from offrld.engine.batches.feed import placed
from offrld.engine.definition.algorithm import Step
from offrld.engine.definition.run import Run
from offrld.engine.learner.data import Dataset
from offrld.engine.learner.feeds import NO_FEEDS, TrainingData
from offrld.engine.learner.trainer import Trainer
from offrld.engine.updates.graph import cuda_capture, moved_alike, restore
from offrld.engine.updates.means import Means
from offrld.engine.updates.runner import agree, choose_linear
from offrld.engine.updates.train_state import TrainState, key_of
from offrld.nets import onednn

Log = Callable[[str], None]
RUNNERS = ("auto", "eager", "compile", "graph")


@dataclass(frozen=True)
class Execution:
    """How updates should run.

    Attributes:
        runner: ``eager``, ``compile``, ``graph`` or ``auto``.
        linear: ``torch``, ``onednn`` or ``auto``.
        cache_dir: folder that stores the choice of ``linear="auto"`` between runs.
    """

    runner: str = "auto"
    linear: str = "auto"
    cache_dir: str | os.PathLike[str] | None = None

    def prepare(self, trainer: Trainer, log: Log) -> None:
        """Choose the trainer's runner and its linear product; leave the training state unchanged.

        Raises:
            InvalidInput: the runner is ``graph`` without a CUDA device, or the product is unknown.
        """
        choose_runner(trainer, self.runner, log)
        run = trainer.run
        trainer.linear, why = choose_linear(
            self.linear, device=run.device, dtype=run.dtype, plain=_plain(trainer), cache_dir=self.cache_dir
        )
        log(f"linear layers: by {trainer.linear}, {why}")

    def restore_linear(self, trainer: Trainer, before: str, log: Log) -> None:
        """Use the linear product of a checkpoint's run, for the same bits, unless the user chose another or this machine lacks it."""
        if before == trainer.linear or self.linear != "auto":
            return
        if before == "onednn" and not (onednn.present() and _plain(trainer) and trainer.run.device.type == "cpu"):
            log("linear layers: by torch, because the checkpoint's oneDNN is not available: the last bits will differ")
            return
        trainer.linear = before
        log(f"linear layers: by {before}, as in the checkpoint")


def ready_trainer(
    run: Run, data: TrainingData | None, dataset: Dataset | None, execution: Execution, log: Log, before: Trainer | None = None
) -> Trainer:
    """Create a trainer of a run, prepare its data and choose its runner.

    Args:
        dataset: the training episodes for `Algorithm.prepare`.
        before: a trainer with other settings, which the new one continues; it is not modified.

    Raises:
        InvalidInput: the settings of ``before`` and of the run differ in one that cannot change during training.
    """
    prepared, feeds = {}, NO_FEEDS
    if dataset is not None and run.algorithm.prepare is not None:
        prepared = run.algorithm.prepare(dataset, run.config)
    state = TrainState(run, {name: placed(torch.as_tensor(value).to(run.device)) for name, value in prepared.items()})
    if before is not None and not state.fits(before.state.tensors()):
        old, new = settings.as_flat(before.run.config), settings.as_flat(run.config)
        changed = ", ".join(name for name in new if new[name] != old.get(name))
        raise InvalidInput(f"{changed} changes what is trained", hint="create a new learner, and start it from this one")
    if data is not None:
        feeds = data.open(run)
    trainer = Trainer(run, state, feeds)
    try:
        if before is not None:
            trainer.step = before.step  # so that the next updates decide the choice of the runner
        execution.prepare(trainer, log)
        if before is not None:
            trainer.take_over(before)
            if data is not None and before.lent is not None:
                trainer.lend(data.open(run, before.lent.selection))
    except BaseException:
        trainer.close()
        raise
    return trainer


def _plain(trainer: Trainer) -> bool:
    """Return whether losses run in eager code, seed by seed."""
    return trainer.runner == "eager" and not trainer.run.stacked


def choose_runner(trainer: Trainer, runner: str, log: Log) -> None:
    """Set the trainer's runner to the best one that agrees with eager losses and single updates."""
    cuda = trainer.run.device.type == "cuda"
    if runner not in RUNNERS:
        raise InvalidInput(f"unknown runner {runner!r}", hint=f"use one of {', '.join(RUNNERS)}")
    if runner == "graph" and not cuda:
        raise InvalidInput(f"runner 'graph' needs a CUDA device, this one is {trainer.run.device}", hint="use the runner auto")
    tries = runner in ("auto", "graph") and cuda
    if runner == "compile" or tries:
        trainer.runner = "compile"
        trainer.differentiate(compiled=True)
    if tries and trainer.feeds:
        if not _compiled_agrees(trainer, log):
            trainer.runner = "eager"
            trainer.differentiate(compiled=False)
        choose_graph(trainer, log)


def _compiled_agrees(trainer: Trainer, log: Log) -> bool:
    """Return whether the compiled gradients of the first batch equal the eager ones; change nothing."""
    eager, compiled = trainer.gradients(False), trainer.updater.gradients
    batch, view = trainer.batches(0)[0], trainer.state.views[0]
    for step, key in _losses(trainer.run):
        arguments = (view.leaves[key], view.state, batch)
        try:
            same = agree(eager[key](*arguments).gradients, compiled[key](*arguments).gradients)
        except Exception as error:  # any failure of the compiler is a reason to stay eager, and is logged
            log(f"runner: eager, because the compiler failed on step {step.name!r} ({type(error).__name__})")
            return False
        if not same:
            log(f"runner: eager, because compiled gradients of step {step.name!r} differ from eager ones")
            return False
    return True


def _losses(run: Run) -> list[tuple[Step, str]]:
    """Return every step that has a loss, with its key."""
    return [(step, key_of(stage, step)) for stage in run.stages for step in stage.schedule if step.loss is not None]


def choose_graph(trainer: Trainer, log: Log) -> None:
    """Use CUDA graphs if chunks can be captured and change the state as single updates do; otherwise log the reason."""
    losses = trainer.runner
    try:
        chunks = trainer.use_chunks(cuda_capture(trainer.state.moving()))
        why = "" if chunks_agree(trainer) else "replayed updates differ from single ones"
    except Exception as error:  # any failure to capture is a reason not to use graphs, and is logged
        why = f"capturing failed ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
    if why:
        trainer.chunks = None
        log(f"runner: {losses}, because {why}")
        return
    trainer.runner = "graph"
    log(f"runner: graph, {chunks.length} updates at a time, losses by {losses}")


def chunks_agree(trainer: Trainer) -> bool:
    """Return whether the first updates give the same state in a chunk as one by one; restore the state afterwards."""
    state = trainer.state.moving()
    start, ends = [tensor.clone() for tensor in state], []
    step, moves, means = trainer.step, dict(trainer.moves), trainer.means
    length = 1 if trainer.chunks is None else trainer.chunks.length
    updates = min(length, trainer.free(step + length))
    try:
        for chunked in (False, True):
            trainer.means = Means(trainer.run.seeds)
            if chunked:
                trainer.replay(step + updates, at_once=True)
            else:
                for _ in range(updates):
                    trainer.apply(trainer.batches(trainer.step))
            ends.append([tensor.clone() for tensor in state])
            restore(state, start)
            trainer.step, trainer.moves = step, dict(moves)
    finally:
        restore(state, start)
        trainer.step, trainer.moves, trainer.means = step, moves, means
    return moved_alike(start, *ends)
