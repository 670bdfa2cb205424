"""How a learner is made: from a dataset or from shapes, on a device, fresh or from what another run has learned."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrl_store.errors import EmptyStore
from offrld.engine.batches.feed import Scalers
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.definition.space import space_of
from offrld.engine.learner import data
from offrld.engine.learner.acting import Acting
from offrld.engine.learner.guards import check_precision, mistakes
from offrld.engine.learner.loaded import Loaded, take_inputs
from offrld.engine.learner.shapes import Shapes
from offrld.engine.learner.transfer import Part, loaded_of, scalers_like


class Creation:
    """The part of `Learner` that makes one."""

    @classmethod
    def create(
        cls,
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
        inputs: Mapping[str, Loaded | Acting] | None = None,
        start: Loaded | Sequence[Loaded] | Acting | None = None,
        transfer: Part = "all",
        fresh_optimizer: bool = False,
        scalers: Scalers | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """A learner at step 0.

        Args:
            store: opened at the snapshot that the run is pinned to; or `Shapes`, for a learner without data, which acts and takes
                batches of the caller.
            seeds: one training run each; a seed alone decides its initialisation, batches and noise.
            device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
            runner: ``eager``, ``compile``, ``graph`` (CUDA graphs of many updates), or ``auto``: eager on the CPU; on CUDA compiled losses
                where their first gradients agree with eager ones, in graphs where their first updates agree with single ones.
            threads: CPU threads of torch (None: as it is).
            holdout: share of the episodes kept out of training, for `validate`.
            episodes: numbers of those to use, or a part of ``store.episodes``; all without.
            bounds: of the actions, from the evaluation environment ``env_id``; they take precedence over the store's. What has no bounds
                gets those that the data show.
            bounds_source: where ``bounds`` come from (`Space.source`), if not from ``env_id``.
            action_low, action_high: bounds of the actions, each a number or ``[A]``; one of them alone leaves the other as it is.
            cache_dir: folder where compiled kernels and the choice of ``linear="auto"`` are kept between runs (without: torch's own, and
                the user's cache).
            stacked: whether seeds are differentiated together (None: on CUDA).
            feed: where batches come from: ``host``, ``prefetch``, ``resident`` or ``auto`` (see `Supply`); the batches are the same.
            linear: what multiplies in linear layers: ``torch``, ``onednn``, or ``auto``: oneDNN where it is the faster on this processor
                (the environment's OFFRL_LINEAR may name it). It decides last bits: a resumed run goes on with that of its checkpoint.
            inputs: for the settings that name another run (`Algorithm.inputs`), what to take in their place.
            start: another run to take parameters from (see `start_from`): ``transfer`` says which, ``fresh_optimizer`` that the
                optimisers begin anew. Observations and actions are then scaled as in that run.
            scalers: fitted before, instead of those that the config asks for.
            log: takes one-line messages; also what `guards.mistakes` finds in data and settings.

        Raises:
            InvalidInput: the data's actions do not fit the algorithm, which may also learn from no dataset; or an input or a start does not
                fit the data.
            EmptyStore: no transition to train on.
        """
        if len(set(seeds)) != len(seeds) or not seeds:
            raise InvalidInput(f"seeds must be given once each, got {list(seeds)}")
        if threads is not None:
            torch.set_num_threads(threads)
        if cache_dir is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(cache_dir)
        where = device_of(device)
        if isinstance(store, Shapes):
            shapes, dataset = store, None
            space = dataclasses.replace(shapes.space, frame_stack=config.frame_stack)
            training = held_out = np.empty(0, np.int64)
        elif algorithm.plays:
            raise InvalidInput(f"{algorithm.name} learns from its own play, not from a dataset", hint="give it an environment")
        else:
            if store.transition_count == 0:
                raise EmptyStore("the dataset has no transition to train on", hint="add episodes of at least one step")
            dataset, source = store, bounds_source or ("declared" if env_id is None else f"env:{env_id}")
            if action_low is not None or action_high is not None:
                bounds, source = _declared(store.schema, action_low, action_high), "declared"
            space = space_of(store.schema, store.metadata, bounds, source, config.frame_stack, lambda: data.action_range(store))
            if space.source == "inferred" and not space.discrete and store.metadata.get("bounds") != "inferred":
                log(
                    "the dataset declares no bounds for its actions: the range of the data is taken; "
                    "action_low and action_high declare others"
                )
            training, held_out = data.split(len(store), holdout, episodes)
        algorithm.check(space)
        source = None if start is None else loaded_of(start)
        if scalers is None:
            own = (
                data.fit_scalers(config, dataset, space, training, dtype, where)
                if dataset is not None
                else shapes.scalers(config, dtype, where)
            )
            scalers = own if source is None else scalers_like(source[0], config, space, own, dtype=dtype, device=where, log=log)
        if dataset is not None:
            for text in check_precision(dataset, config, space, scalers, training):
                log(f"warning: {text}")
        together = where.type == "cuda" if stacked is None else stacked
        learner = cls(
            algorithm,
            config,
            dataset,
            space,
            seeds=seeds,
            device=where,
            runner=runner,
            dtype=dtype,
            training=training,
            holdout=held_out,
            scalers=scalers,
            stacked=together and len(seeds) > 1,
            feed=feed,
            linear=linear,
            cache_dir=cache_dir,
            inputs=take_inputs(algorithm, config, space, inputs or {}),
            log=log,
        )
        if source is not None:
            learner.start_from(source, transfer, fresh_optimizer=fresh_optimizer)
        if dataset is not None:
            for text in mistakes(algorithm, config, dataset, space, scalers, training):
                log(f"warning: {text}")
        return learner


def _declared(schema: Any, low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds given by hand, those of the schema in the place of one that is not."""
    if isinstance(schema.action, dict) or schema.action.discrete:
        raise InvalidInput("action_low and action_high are of continuous actions, the dataset has others", hint="leave them out")
    shape, found = schema.action.shape, []
    for name, given, kept in (("action_low", low, schema.action.low), ("action_high", high, schema.action.high)):
        value = np.nan if given is None and kept is None else kept if given is None else given  # NaN: taken from the data
        try:
            bound = np.broadcast_to(np.asarray(value, np.float64), shape)
        except (TypeError, ValueError):
            raise InvalidInput(f"{name} is {given!r}", hint=f"give a number, or {int(np.prod(shape))} of them") from None
        if given is not None and np.isnan(bound).any():
            raise InvalidInput(f"{name} is {given!r}", hint="give numbers")
        found.append(bound)
    return found[0], found[1]


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto``: CUDA where there is one. Raises `InvalidInput` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # its text lists twenty kinds of devices
        raise InvalidInput(f"there is no device {name!r}", hint="auto, cpu, cuda, or cuda:1 for the second card") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count()
        raise InvalidInput(f"device {name!r} is not there: this machine has {found} CUDA devices", hint="use the device cpu, or auto")
    return device
