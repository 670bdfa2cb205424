"""Training in-process: `offrld.train`, the same engine that a job's worker runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.engine.algorithm import Algorithm
from offrld.engine.learner import Learner


def train(
    algorithm: str | Algorithm,
    store: EpisodeStore | str | os.PathLike[str],
    *,
    steps: int,
    config: Mapping[str, Any] | None = None,
    preset: str | None = None,
    seeds: Sequence[int] = (0,),
    on_metrics: Callable[[int, dict[str, dict[int, float]]], None] | None = None,
    metrics_every: int = 1000,
    **options: Any,
) -> Learner:
    """Train and give the learner, which predicts, saves and exports.

    Args:
        algorithm: a name of the registry, or an `Algorithm` of your own.
        store: an `EpisodeStore` or its path.
        steps: updates.
        config: dotted setting -> value; ``preset`` is applied before.
        seeds: one training run each.
        on_metrics: called with the step and ``{name: {seed: mean}}`` every ``metrics_every`` updates.
        options: further arguments of `Learner.create` (device, runner, threads, holdout, ...).

    Raises:
        Unknown, InvalidInput: a name, setting or dataset that does not fit.
    """
    if isinstance(algorithm, str):
        algorithm = get(algorithm)
    if not isinstance(store, EpisodeStore):
        store = EpisodeStore.open(store)
    learner = Learner.create(algorithm, algorithm.configure(config, preset), store, seeds=seeds, **options)
    while learner.step < steps:
        learner.run(min(metrics_every - learner.step % metrics_every, steps - learner.step))
        means = learner.metrics()
        if on_metrics is not None:
            on_metrics(learner.step, means)
    return learner
