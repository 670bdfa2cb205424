"""Metrics of the losses on held-out episodes."""

from __future__ import annotations

import torch

from offrld.engine.learner.feeds import TrainingData
from offrld.engine.learner.trainer import Metrics, Trainer
from offrld.engine.updates.means import Means

BATCHES = 16


def validate(trainer: Trainer, data: TrainingData) -> Metrics:
    """Return the losses' metrics on the held-out episodes, as ``validation_NAME``; {} without any. Every call uses the same batches."""
    if len(data.holdout) == 0:
        return {}
    run, state = trainer.run, trainer.state
    stage = run.stage(max(trainer.step - 1, 0))
    feed, means = data.open_holdout(run, stage), Means(run.seeds)
    for k in range(BATCHES):
        batch = feed.batch(k)
        for step in stage.schedule:
            if step.loss is None:
                continue
            states = [state.of_seed(position, state.data) for position in range(len(run.seeds))]
            rows = [step.loss(constants.params, run.config, run.nets, constants, batch)[1] for constants in states]
            means.add({name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]})
    return {f"validation_{name}": values for name, values in means.take().items()}
