"""Training in-process: `train`, `build` and `load`, on the same engine that a job's worker runs."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld.algos import get
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.learner.creation import device_of
from offrld.engine.learner.data import rebuild_scalers
from offrld.engine.learner.loaded import Loaded, newest
from offrld.engine.learner.shapes import Shapes
from offrld.engine.updates import checkpoint
from offrld.inprocess.learner import Learner
from offrld.inprocess.sources import opened


def train(
    algorithm: str | Algorithm,
    store: Any,
    *,
    steps: int,
    config: Mapping[str, Any] | None = None,
    preset: str | None = None,
    seeds: Sequence[int] = (0,),
    on_metrics: Callable[[int, dict[str, dict[int, float]]], None] | None = None,
    metrics_every: int = 1000,
    check_export: bool = False,
    **options: Any,
) -> Learner:
    """Train and return the learner, which predicts, saves and exports. `Learner.fit` has more: epochs, evaluators, files, a progress bar.

    All random numbers of a run (initial parameters, batches, noise) follow from its seed and the step; no global generator is used. On the
    CPU the same arguments give the same bits.

    Args:
        algorithm: a name of the registry, or an `Algorithm` of your own.
        store: the dataset: an `EpisodeStore`, its path, or the path of a file that can be imported; episodes (a
            part of ``store.episodes``, a list, a generator of `Episode`); or a dict of flat arrays or tensors.
        steps: updates.
        config: dotted setting -> value; ``preset`` is applied before.
        seeds: one training run each.
        on_metrics: called with the step and ``{name: {seed: mean}}`` every ``metrics_every`` updates.
        check_export: first export the untrained policy, as every job does (some seconds), so that a policy that cannot be exported fails
            before the first update.
        options: further arguments of `Learner.create` (device, runner, threads, holdout, start, ...), and ``action_low``,
            ``action_high``: bounds of the actions, which take precedence over the dataset's.

    Raises:
        Unknown, InvalidInput: a name, setting or dataset that does not fit.
        CheckFailed: ``check_export``, and the policy cannot be exported.
        Diverged: every seed has; the message names metric, seed and step.
    """
    if isinstance(steps, bool) or not isinstance(steps, numbers.Real) or not 0 <= steps == steps // 1:
        raise InvalidInput(f"steps is {steps!r}, expected a whole number from 0", hint="for example steps=10_000")
    learner = build(algorithm, store, config=config, preset=preset, seeds=seeds, **options)
    if check_export and learner.algorithm.has_policy:
        learner.check_export()
    while learner.step < steps:
        learner.run(min(metrics_every - learner.step % metrics_every, steps - learner.step))
        means = learner.metrics()
        if on_metrics is not None:
            on_metrics(learner.step, means)
        learner.guarded(means)
    return learner


def build(
    algorithm: str | Algorithm,
    source: Any = None,
    *,
    env: Any = None,
    config: Mapping[str, Any] | None = None,
    preset: str | None = None,
    **options: Any,
) -> Learner:
    """An untrained learner.

    Args:
        source: a dataset (as for `train`), a gymnasium environment, or `Shapes`; without a dataset the learner acts, takes
            batches of the caller (`Learner.update`), trains online (`Learner.fit_online`) and loads checkpoints.
        env: a gymnasium environment or its id, instead of ``source``.
        options: further arguments of `Learner.create`. Other runs (``inputs``, ``start``, and settings that name one) may also be
            paths of a checkpoint or of a job's run folder.

    Raises:
        Unknown, InvalidInput: a name, setting or source that does not fit.
    """
    algorithm = _algorithm(algorithm)
    if (source is None) == (env is None):
        raise InvalidInput("a learner is built from a dataset or an environment: pass one of them", hint='build("sac", env="Pendulum-v1")')
    if env is not None:
        source = Shapes.of_env(env)
    elif not isinstance(source, Shapes):
        if hasattr(source, "action_space"):
            source = Shapes.of_env(source)
        else:
            source, numbers = opened(source)
            options = options if numbers is None else {"episodes": numbers, **options}
    chosen = algorithm.configure(config, preset)
    named = {name: getattr(chosen, name) for name in algorithm.inputs if getattr(chosen, name) is not None}
    inputs = {name: _loaded(value)[0] for name, value in (named | dict(options.pop("inputs", None) or {})).items()}
    start = options.pop("start", None)
    return Learner.create(algorithm, chosen, source, inputs=inputs, start=None if start is None else _loaded(start), **options)


def load(
    path: str | os.PathLike[str],
    store: EpisodeStore | str | os.PathLike[str] | None = None,
    *,
    algorithm: Algorithm | None = None,
    **options: Any,
) -> Learner:
    """A learner from a checkpoint's own description: algorithm, settings, seeds, networks, scalers, optimizers, step.

    Args:
        path: a checkpoint, or a job's run folder: its newest one.
        store: the run's dataset, to train on; of a path the run's snapshot is opened. Without it the learner acts, exports, and takes
            batches of the caller.
        algorithm: needed if it is not in the registry.
        options: arguments of `Learner.create`, such as ``device``, ``holdout`` (as it was), ``inputs``.

    Raises:
        InvalidInput, CheckpointCorrupt: there is no such checkpoint, or it is damaged.
        Unknown: its algorithm, or a package that it uses, is not installed here.
        OffrlError: the store is not the run's.
    """
    file = newest(path)
    trained = Loaded.read_all(file, get if algorithm is None else lambda name: algorithm)
    first, (_, description) = trained[0], checkpoint.read(file)
    options = {"dtype": getattr(torch, description["dtype"]), **options}
    where = device_of(options.get("device", "auto"))
    if store is None:
        source: EpisodeStore | Shapes = Shapes(first.space)
    else:
        source = store if isinstance(store, EpisodeStore) else EpisodeStore.open(store, description.get("snapshot"))
        if not first.space.discrete:  # as they were, wherever they came from
            options = {"bounds": (first.space.low, first.space.high), "bounds_source": first.space.source, **options}
    scalers = rebuild_scalers(first.config, first.space, first.scalers.tensors(), options["dtype"], where)
    learner = Learner.create(first.algorithm, first.config, source, seeds=description["seeds"], scalers=scalers, **options)
    learner.restore(file)
    return learner


def _algorithm(algorithm: str | Algorithm) -> Algorithm:
    return get(algorithm) if isinstance(algorithm, str) else algorithm


def _loaded(source: Any) -> list[Any]:
    """The seeds of another run; all seeds of a checkpoint if ``source`` is a path."""
    if isinstance(source, str | os.PathLike):
        return Loaded.read_all(source, get)
    return list(source) if isinstance(source, Sequence) else [source]


__all__ = ["Learner", "Loaded", "Shapes", "build", "load", "train"]
