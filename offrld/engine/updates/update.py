"""One update: the due steps of the schedule, each with its gradients, its optimizer, new values of buffers, and the targets.

All that changes is in the training state; the batch and the number of moves so far are arguments. So an update may
run by itself, or be captured with others as one CUDA graph (see `offrld.engine.updates.graph`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offrld.engine.definition import optimizer_step
from offrld.engine.definition.optimizer_step import polyak
from offrld.engine.updates.runner import Gradients
from offrld.engine.updates.train_state import Due, TrainState


class Updater:
    """Does steps on a training state.

    Args:
        gradients: of every step that has a loss, by its key.
        stacked: the seeds are one view.
    """

    def __init__(self, state: TrainState, gradients: Mapping[str, Gradients], *, stacked: bool) -> None:
        self.state, self.gradients, self.stacked = state, gradients, stacked

    def apply(self, due: Due, batches: list[Any], taken: int | Tensor) -> dict[str, Tensor]:
        """Do one step; returns its metrics, each ``[S]``.

        Args:
            batches: one per view.
            taken: how often the optimizer of this step has moved; a 0-d int64 tensor if the call is captured.
        """
        metrics: dict[str, Tensor] = {}
        if due.step.loss is not None:
            run = self.gradients[due.key]
            results = [run(view.leaves[due.key], view.state, batch) for view, batch in zip(self.state.views, batches, strict=True)]
            with torch.no_grad():
                self._move(due, [result.gradients for result in results], taken)
                for position, result in enumerate(results):
                    self.state.update(position, result.updates)
                metrics = self._joined([result.metrics for result in results])
        for targets, online, rate in due.followers:  # the rate is `tau`, or 1 for a copy at an interval
            polyak(targets, online, rate)
        return metrics

    def _move(self, due: Due, gradients: list[tuple[Tensor, ...]], taken: int | Tensor) -> None:
        """Let the optimizer of a step move its parameters."""
        step = due.step
        for view, grads, (params, parts, count) in zip(self.state.views, gradients, due.groups, strict=True):
            optimizer_step.step(
                step.optimizer,
                step.learning_rate,
                params,
                grads,
                parts,
                count,
                taken=taken,
                names=due.names,
                factor=None if step.rate is None else step.rate(view.state.carry),
                seeds_axis=self.stacked,
            )

    def _joined(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Metrics of the views, 0-d or ``[S]``, as ``[S]`` each."""
        if self.stacked:
            return {name: value.detach() for name, value in rows[0].items()}
        if len(rows) == 1:
            return {name: value.detach().unsqueeze(0) for name, value in rows[0].items()}
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
