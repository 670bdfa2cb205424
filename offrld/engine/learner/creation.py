"""Create a learner: from a dataset or from shapes, on a device, with new parameters or those of another run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrl_store.errors import EmptyStore
from offrld.engine.batches.source_choice import SourceChoice
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.definition.run import Run, Scalers
from offrld.engine.definition.space import Space, space_of
from offrld.engine.learner import data
from offrld.engine.learner.feeds import TrainingData
from offrld.engine.learner.guards import check_precision, mistakes
from offrld.engine.learner.loaded import Loaded, Trained, seeds_of, take_inputs
from offrld.engine.learner.runner_choice import Execution
from offrld.engine.learner.shapes import Shapes
from offrld.engine.learner.transfer import Part, scalers_like

Log = Callable[[str], None]
MOST_THREADS = 1024


class Startable(Protocol):
    """What `create` needs from the learner that it creates."""

    def start_from(self, start: Sequence[Loaded], part: Part = "all", *, fresh_optimizer: bool = False) -> None: ...


L = TypeVar("L", bound=Startable)


def create(
    cls: Callable[..., L],
    algorithm: Algorithm,
    config: Any,
    store: EpisodeStore | Shapes,
    *,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    runner: str = "auto",
    threads: int | None = None,
    holdout: float = 0.0,
    episodes: Any = None,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    env_id: str | None = None,
    bounds_source: str | None = None,
    action_low: Any = None,
    action_high: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    stacked: bool | None = None,
    feed: str = "auto",
    linear: str = "auto",
    inputs: Mapping[str, Loaded | Trained] | None = None,
    start: Loaded | Trained | Sequence[Loaded | Trained] | None = None,
    transfer: Part = "all",
    fresh_optimizer: bool = False,
    scalers: Scalers | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> L:
    """Create a learner at step 0.

    Args:
        store: the dataset, opened at the snapshot to pin the run to; or `Shapes`, for a learner without data, which acts and trains on
            the caller's batches.
        seeds: one training run each; a seed alone determines its initialisation, batches and noise.
        device: ``auto`` (CUDA if there is a card), ``cpu``, ``cuda`` or ``cuda:1``.
        runner: ``eager``, ``compile``, ``graph`` (CUDA graphs of many updates), or ``auto``: eager on the CPU; on CUDA compiled losses
            if their first gradients agree with eager ones, in graphs if their first updates agree with single ones.
        threads: CPU threads of torch (None: unchanged).
        holdout: fraction of the episodes kept out of training, for `validate`.
        episodes: numbers of the episodes to use, or a part of ``store.episodes``; None: all.
        bounds: bounds of the actions, from the evaluation environment ``env_id``; they override the store's. A dimension without bounds
            gets the range of the data.
        bounds_source: the source of ``bounds`` (`Space.source`), if it is not ``env_id``.
        action_low, action_high: bounds of the actions, each a number or ``[A]``; one alone leaves the other unchanged.
        cache_dir: folder that keeps compiled kernels and the choice of ``linear="auto"`` between runs (None: torch's own folder, and the
            user's cache).
        stacked: whether seeds are differentiated together (None: only on CUDA).
        feed: the source of batches: ``host``, ``prefetch``, ``resident`` or ``auto`` (see `SourceChoice`); all give the same batches.
        linear: the library for the products of linear layers: ``torch``, ``onednn``, or ``auto``: oneDNN if it is faster on this processor
            (OFFRL_LINEAR overrides ``auto``). It affects the last bits of results; a resumed run keeps its checkpoint's library.
        inputs: the runs that settings name (`Algorithm.inputs`).
        start: another run to take parameters from (see `start_from`): ``transfer`` selects them, ``fresh_optimizer`` resets the
            optimizers. Observations and actions are scaled as in that run.
        scalers: fitted scalers to use instead of those of the config.
        log: receives one-line messages, including the warnings of `guards.mistakes` about data and settings.

    Raises:
        InvalidInput: the data's actions do not fit the algorithm; the algorithm does not learn from a dataset; or an input or the start
            does not fit the data.
        EmptyStore: the dataset has no transition to train on.
    """
    _check_numbers(seeds, threads, holdout, dtype)
    if threads is not None:
        torch.set_num_threads(threads)
    if cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(cache_dir)
    where = device_of(device)
    if isinstance(store, Shapes):
        dataset = None
        space = dataclasses.replace(store.space, frame_stack=config.frame_stack)
        training = held_out = np.empty(0, np.int64)
    else:
        dataset = store
        space = _space(algorithm, config, dataset, _Bounds(bounds, env_id, bounds_source, action_low, action_high), log)
        training, held_out = data.split(len(store), holdout, episodes)
    algorithm.check(space)
    source = None if start is None else seeds_of(start)
    if scalers is None:
        if isinstance(store, Shapes):
            own = store.scalers(config, dtype, where)
        else:
            own = data.fit_scalers(config, store, space, training, dtype, where)
        scalers = own if source is None else scalers_like(source[0], config, space, own, dtype=dtype, device=where, log=log)
    if dataset is not None:
        for text in check_precision(dataset, config, space, scalers, training):
            log(f"warning: {text}")
    together = (where.type == "cuda" if stacked is None else stacked) and len(seeds) > 1
    sources = take_inputs(algorithm, config, space, inputs or {})
    run = Run(algorithm, config, algorithm.nets(config, space), space, scalers, tuple(seeds), where, dtype, together)
    training_data = None if dataset is None else _training_data(run, dataset, (training, held_out), sources, feed, log)
    learner = cls(run, training_data, inputs=sources, execution=Execution(runner, linear, cache_dir), log=log)
    if source is not None:
        learner.start_from(source, transfer, fresh_optimizer=fresh_optimizer)
    if dataset is not None:
        for text in mistakes(algorithm, config, dataset, space, scalers, training):
            log(f"warning: {text}")
    return learner


def _check_numbers(seeds: Any, threads: Any, holdout: Any, dtype: Any) -> None:
    """Raise `InvalidInput` for arguments of `create` that torch would refuse later or misinterpret."""
    if not isinstance(seeds, Sequence | np.ndarray) or not len(seeds) or not all(isinstance(seed, Integral) for seed in seeds):
        raise InvalidInput(f"seeds is {seeds!r}", hint="pass a list of whole numbers, for example seeds=[0]")
    if len(set(seeds)) != len(seeds):
        raise InvalidInput(f"seeds must be given once each, got {list(seeds)}")
    if threads is not None and (not isinstance(threads, Integral) or not 1 <= int(threads) <= MOST_THREADS):
        raise InvalidInput(f"threads is {threads!r}", hint=f"pass a whole number from 1 to {MOST_THREADS}")
    if not isinstance(holdout, Real) or not 0 <= float(holdout) <= 1:
        raise InvalidInput(f"holdout is {holdout!r}", hint="pass the fraction of the episodes to hold out, at least 0 and below 1")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidInput(f"dtype is {dtype!r}", hint="pass torch.float32 or torch.float64")


@dataclass(frozen=True)
class _Bounds:
    """The arguments of `create` that define the bounds of actions."""

    bounds: tuple[np.ndarray, np.ndarray] | None
    env_id: str | None
    source: str | None
    low: Any
    high: Any


def _space(algorithm: Algorithm, config: Any, store: EpisodeStore, bounds: _Bounds, log: Log) -> Space:
    """Return the spaces of a dataset with the effective bounds of its actions."""
    if algorithm.plays:
        raise InvalidInput(f"{algorithm.name} learns from its own rollouts, not from a dataset", hint="give it an environment")
    if store.transition_count == 0:
        raise EmptyStore("the dataset has no transition to train on", hint="add episodes of at least one step")
    limits, source = bounds.bounds, bounds.source or ("declared" if bounds.env_id is None else f"env:{bounds.env_id}")
    if bounds.low is not None or bounds.high is not None:
        limits, source = _declared(store.schema, bounds.low, bounds.high), "declared"
    space = space_of(store.schema, store.metadata, limits, source, config.frame_stack, lambda: data.action_range(store))
    if space.source == "inferred" and not space.discrete and store.metadata.get("bounds") != "inferred":
        log("the dataset declares no bounds for its actions: using the range of the data; set action_low and action_high for others")
    return space


def _training_data(
    run: Run, store: EpisodeStore, split: tuple[np.ndarray, np.ndarray], inputs: Mapping[str, Loaded], feed: str, log: Log
) -> TrainingData:
    """Return the data of a run, with the actions of the policy that it evaluates; they are constant, so they are computed once."""
    policy_actions = None
    if run.algorithm.next_action == "policy":
        policy_actions = data.actions_of(inputs["policy"].policy(), store)
    sources = SourceChoice(store, run.device, feed, log)
    return TrainingData(store, *split, sources, policy_actions=policy_actions, log=log)


def _declared(schema: Any, low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return explicitly set bounds; a missing one comes from the schema, or from the data (NaN)."""
    if isinstance(schema.action, dict) or schema.action.discrete:
        raise InvalidInput(
            "action_low and action_high apply only to continuous actions, which the dataset does not have", hint="leave them out"
        )
    shape, bounds = schema.action.shape, []
    for name, own, declared in (("action_low", low, schema.action.low), ("action_high", high, schema.action.high)):
        value = np.nan if own is None and declared is None else declared if own is None else own
        try:
            bound = np.broadcast_to(np.asarray(value, np.float64), shape)
        except (TypeError, ValueError):
            raise InvalidInput(f"{name} is {own!r}", hint=f"pass one number, or {int(np.prod(shape))} numbers") from None
        if own is not None and np.isnan(bound).any():
            raise InvalidInput(f"{name} is {own!r}", hint="pass numbers")
        bounds.append(bound)
    return bounds[0], bounds[1]


def device_of(name: str) -> torch.device:
    """Return the device of this name; ``auto``: CUDA if available. Raise `InvalidInput` for a device that does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's message lists twenty kinds of devices
        raise InvalidInput(f"unknown device {name!r}", hint="use auto, cpu, cuda, or cuda:1 for the second GPU") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InvalidInput(
            f"device {name!r} does not exist: this machine has {torch.cuda.device_count()} CUDA devices", hint="use the device cpu or auto"
        )
    return device
