"""The learner: losses into updates. Each update ``k`` takes batch ``k`` and does the steps of the
schedule that are due; the result depends on (snapshot, seeds, config, k) alone, never on how the updates were grouped.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from offrl import __version__
from offrl.errors import InvalidInput, OffrlError
from offrl_store import EpisodeStore
from offrld import settings
from offrld.engine.batches.feed import Feed, Scalers, placed, request_of
from offrld.engine.batches.source_choice import Supply
from offrld.engine.definition.algorithm import KINDS, Algorithm, Stage, Windows, by_name
from offrld.engine.definition.space import Space
from offrld.engine.learner import data
from offrld.engine.learner.acting import Acting
from offrld.engine.learner.chunked_training import Replaying
from offrld.engine.learner.creation import Creation
from offrld.engine.learner.fitting import Fitting
from offrld.engine.learner.guards import Guard, value_limit
from offrld.engine.learner.loaded import Loaded
from offrld.engine.learner.sequence_policy import Returns
from offrld.engine.learner.transfer import Transfer
from offrld.engine.updates import checkpoint
from offrld.engine.updates.means import Means, Spent
from offrld.engine.updates.runner import Gradients, agree, choose_linear, gradients
from offrld.engine.updates.train_state import TrainState, key_of
from offrld.engine.updates.update import Updater
from offrld.nets import onednn
from offrld.nets.linear import products


class Learner(Creation, Acting, Fitting, Transfer, Replaying):
    """Trains ``S`` seeds of one algorithm on one store. Make it with `Learner.create`.

    Attributes:
        algorithm, config: what is trained.
        store: the dataset; None for a learner that only acts and takes batches of the caller.
        seeds: each a training run of its own.
        step: updates done; it may be set, and is kept in checkpoints.
        inputs: what other runs have given to this one.
        holdout: numbers of the episodes that are not trained on.
        guard: what is known about metrics that run away.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        config: Any,
        store: EpisodeStore | None,
        space: Space,
        *,
        seeds: Sequence[int],
        device: torch.device,
        runner: str,
        dtype: torch.dtype,
        training: np.ndarray,
        holdout: np.ndarray,
        scalers: Scalers,
        stacked: bool,
        feed: str,
        linear: str,
        cache_dir: str | os.PathLike[str] | None,
        inputs: Mapping[str, Loaded],
        log: Callable[[str], None],
    ) -> None:
        self.algorithm, self.config, self.store, self.space_ = algorithm, config, store, space
        self.seeds = tuple(seeds)
        self._kind = KINDS[algorithm.batch_kind]
        self.holdout, self.inputs = holdout, inputs
        self.step = 0
        self._device, self._dtype, self._stacked, self._log = device, dtype, stacked, log
        self._training, self._scalers = training, scalers
        self._trained_on: dict[str, Any] = {} if store is None else {"snapshot": str(store.snapshot()), "held_out": len(holdout)}
        # The actions of a policy that is evaluated, at every row: computed once, for it does not change.
        self._policy_actions = None
        if algorithm.next_action == "policy" and store is not None:
            if "policy" not in inputs:
                raise InvalidInput(f"{algorithm.name} evaluates another job's policy and none is named", hint="--set policy=JOB")
            self._policy_actions = data.actions_of(inputs["policy"].policy(), store)
        self._supply = None if store is None else Supply(store, device, feed, log)
        self._means, self.spent = Means(self.seeds), Spent()
        self.guard = Guard(self.seeds, value_limit(config, store, space, scalers))
        self._runner_asked, self._linear_asked, self._cache_dir = runner, linear, cache_dir
        self._build()

    def _build(self) -> None:
        """Networks, state, schedule, feeds and runner of the config; the state is initial."""
        algorithm, config = self.algorithm, self.config
        self.nets = algorithm.nets(config, self.space_)
        self._stages = algorithm.stages(config) if algorithm.stages else (Stage("train", algorithm.schedule(config)),)
        prepared = {}
        if self.store is not None:
            self.dataset = data.Dataset(self.store, self.space_, self._scalers, self._training, self._dtype, self._device, self.inputs)
            prepared = algorithm.prepare(self.dataset, config) if algorithm.prepare else {}
        self._data = {name: placed(torch.as_tensor(value).to(self._device)) for name, value in prepared.items()}
        self.state = TrainState(
            by_name(self.nets),
            algorithm.targets,
            self._stages,
            self._data,
            algorithm.carry(config, self.space_),
            seeds=self.seeds,
            dtype=self._dtype,
            device=self._device,
            stacked=self._stacked,
        )
        self._taken = dict.fromkeys(self.state.moments, 0)
        self._feeds = [] if self.store is None else self._open_feeds({})
        differs = getattr(config, "n_steps", 1) > 1 and any(stage.single_steps for stage in self._stages)
        self._single_feeds = self._open_feeds({"n_steps": 1}) if differs and self._feeds else self._feeds
        self._behind = 0  # the feeds' number of a batch, less that of its update (see `_fed_by`)
        self._choose_runner(self._runner_asked)
        plain = self.runner == "eager" and not self._stacked
        self.linear, why = choose_linear(self._linear_asked, device=self._device, dtype=self._dtype, plain=plain, cache_dir=self._cache_dir)
        self._log(f"linear layers: by {self.linear}, {why}")

    def reconfigure(self, values: Mapping[str, Any]) -> None:
        """Go on with other settings (dotted names): learning rates, weights, intervals, the batch size.

        Raises:
            Unknown, InvalidInput: a setting that is none, or that changes networks, scalers or what the optimisers keep; nothing is
                changed then.
        """
        before, config = self.config, settings.build(self.config, values)
        for name in ("observation_scaler", "reward_scaler", "action_scaler", "frame_stack"):
            if getattr(config, name, None) != getattr(before, name, None):
                raise InvalidInput(f"{name} cannot change during training", hint="make a new learner, and start it from this one")
        attributes = dict(vars(self))
        self.config = config
        try:
            self._build()
            if not self.state.fits(attributes["state"].tensors()):
                raise InvalidInput(f"{', '.join(values)} changes what is trained", hint="make a new learner, and start it from this one")
        except BaseException:
            vars(self).update(attributes)
            raise
        self.state.load(attributes["state"].tensors())
        self._taken = attributes["_taken"]

    def _open_feeds(self, changed: Mapping[str, Any], store: EpisodeStore | None = None) -> list[Feed]:
        """A feed for each view.

        Args:
            changed: arguments of the sampler that are not the usual ones.
            store: another one of the same fields, of which all is taken.
        """
        groups = [self.seeds] if self._stacked else [(seed,) for seed in self.seeds]
        numbers = self._training if store is None else np.arange(len(store))
        return [self._feed(group, numbers, stacked=self._stacked, ahead=True, changed=changed, store=store) for group in groups]

    def _feed(
        self,
        seeds: tuple[int, ...],
        episodes: np.ndarray,
        *,
        stacked: bool,
        ahead: bool,
        changed: Mapping[str, Any] = MappingProxyType({}),
        store: EpisodeStore | None = None,
    ) -> Feed:
        supply = self._supply if store is None else Supply(store, self._device, "host", self._log)
        store = store or self.store
        everything = len(episodes) == len(store)
        request = request_of(
            self.algorithm,
            self.config,
            store,
            self.space_,
            self._scalers,
            self._policy_actions,
            seeds=seeds,
            episodes=None if everything else episodes,
            stacked=stacked,
        )
        request = dataclasses.replace(request, arguments={**request.arguments, **changed})
        source = supply.open(request, ahead=ahead)
        return Feed(self.config, request, source, self.space_, self._scalers, dtype=self._dtype, device=self._device)

    @contextmanager
    def _fed_by(self, feeds: list[Feed], behind: int) -> Iterator[None]:
        """Train on other batches meanwhile: that of update ``k`` is the feeds' number ``k + behind``."""
        own, self._behind = (self._feeds, self._single_feeds, self._chunks), behind
        self._feeds = self._single_feeds = feeds
        self._chunks = None  # which draw from the own feeds
        try:
            yield
        finally:
            (self._feeds, self._single_feeds, self._chunks), self._behind = own, 0
            for feed in feeds:
                feed.source.close()

    def _choose_runner(self, runner: str) -> None:
        cuda = self._device.type == "cuda"
        if runner == "graph" and not cuda:
            raise InvalidInput(f"runner 'graph' needs a CUDA device, this one is {self._device}", hint="use the runner auto")
        self.runner = "compile" if runner == "compile" or (runner in ("auto", "graph") and cuda) else "eager"
        self._gradients = self._all_gradients(self.runner == "compile")
        if runner in ("auto", "graph") and self.runner == "compile" and self._feeds and not self._compiled_agrees():
            self.runner, self._gradients = "eager", self._all_gradients(False)
        self._updater = Updater(self.state, self._gradients, stacked=self._stacked)
        self._chunks = None
        if runner in ("auto", "graph") and cuda and self._feeds:
            self._choose_graph()

    def _all_gradients(self, compiled: bool) -> dict[str, Gradients]:
        return {
            key_of(stage, step): gradients(step, self.config, self.nets, kind=self._kind, compiled=compiled, stacked=self._stacked)
            for stage in self._stages
            for step in stage.schedule
            if step.loss is not None
        }

    def _compiled_agrees(self) -> bool:
        """Whether the compiled gradients of the first batch equal the eager ones; moves nothing."""
        eager, batches = self._all_gradients(False), self._batches(0)
        for stage in self._stages:
            for step in stage.schedule:
                if step.loss is None:
                    continue
                key, view = key_of(stage, step), self.state.views[0]
                arguments = (view.leaves[key], view.state, batches[0])
                try:
                    same = agree(eager[key](*arguments).gradients, self._gradients[key](*arguments).gradients)
                except Exception as error:  # whatever the compiler cannot do is a reason to stay eager, and is told
                    self._log(f"runner: eager, because the compiler failed on step {step.name!r} ({type(error).__name__})")
                    return False
                if not same:
                    self._log(f"runner: eager, because compiled gradients of step {step.name!r} differ from eager ones")
                    return False
        return True

    # ------------------------------------------------------------------------------------------------------------ training
    def run(self, updates: int) -> None:
        """Do ``updates`` updates; raises `InvalidInput` where there is no dataset."""
        if not self._feeds:
            raise InvalidInput("this learner has no dataset to train on", hint="give one when it is made or loaded, or use update(batch)")
        end = self.step + updates
        while self.step < end:
            if self.algorithm.between is not None:
                self.algorithm.between(self, self.step)
            began = time.perf_counter()
            if self._chunks is not None and (done := self._replay(end)):
                self.spent.update += time.perf_counter() - began  # the sampling is within
                self.spent.updates += done
                continue
            batches = self._batches(self.step)
            sampled = time.perf_counter()
            self._do(batches)
            self.spent.sample += sampled - began
            self.spent.update += time.perf_counter() - sampled
            self.spent.updates += 1

    def _do(self, batches: list[Any]) -> None:
        """The present update, on these batches."""
        with products(through_onednn=self.linear == "onednn"):
            for due in self.state.schedules[self._stage(self.step).name]:
                if due.step.due(self.step):
                    self._means.add(self._updater.apply(due, batches, self._taken.get(due.moments_key, 0)))
                    if due.moments_key:
                        self._taken[due.moments_key] += 1
        self.step += 1

    def _once(self, batches: list[Any]) -> dict[str, dict[int, float]]:
        """`_do`, giving the metrics of this update alone."""
        means, self._means = self._means, Means(self.seeds, also=self._means)
        try:
            self._do(batches)
            return self._means.take()
        finally:
            self._means = means

    def _stage(self, k: int) -> Stage:
        for stage in self._stages[:-1]:
            if stage.updates is None or k < stage.updates:
                return stage
            k -= stage.updates
        return self._stages[-1]

    def _batches(self, k: int) -> list[Any]:
        """One batch per view: one per seed, or all seeds' stacked."""
        return [feed.batch(k + self._behind) for feed in (self._single_feeds if self._stage(k).single_steps else self._feeds)]

    # ------------------------------------------------------------------------------------------------------------ reading
    @property
    def scalers(self) -> Scalers:
        """The fitted scalers."""
        return self._scalers

    @property
    def snapshot(self) -> str | None:
        """Of the dataset that it was trained on; None without one."""
        return self._trained_on.get("snapshot")

    @property
    def space(self) -> dict[str, Any]:
        """The spaces as JSON (see `Space.as_json`)."""
        return self.space_.as_json()

    def metrics(self) -> dict[str, dict[int, float]]:
        """Means of the losses' metrics since the last call: name -> {seed -> value}."""
        return self._means.take()

    def latest(self) -> dict[str, dict[int, float]]:
        """As `metrics`, without starting anew."""
        return self._means.peek()

    def broken(self) -> dict[int, str]:
        """The seeds that have a parameter or a target that is not a finite number, with the first network that has one."""
        found: dict[int, str] = {}
        for name, value in [*self.state.params.items(), *self.state.target.items()]:
            fine = torch.isfinite(value).reshape(len(self.seeds), -1).all(1).tolist()
            for seed, good in zip(self.seeds, fine, strict=True):
                if not good:
                    found.setdefault(seed, name.split(".")[0])
        return found

    def describe_run(self) -> dict[str, Any]:
        """What this run depends on beside config and data: runner, device, threads, dtype and versions."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.processor() or platform.machine()
        return {
            "runner": self.runner,
            "linear": self.linear,
            "feed": self._supply.feed if self._supply is not None else "none",
            "device": str(self._device),
            "device_name": name,
            "threads": torch.get_num_threads(),
            "dtype": str(self._dtype).removeprefix("torch."),
            "seeds_together": self._stacked,
            "versions": {"offrl": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }

    # --------------------------------------------------------------------------------------------------------- checkpoints
    def save(self, path: str | os.PathLike[str], more: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint, atomically: state, step, config, snapshot, sums of the metrics, and what the run depends on.

        more: JSON of the caller's own, kept beside it under its own names.
        """
        scalers = {f"scaler/{name}": value for name, value in self._scalers.tensors().items()}
        description = {
            "step": self.step,
            "means": self._means.as_json(),
            "guard": self.guard.as_json(),
            **self._identity(),
            **self.describe_run(),
        }
        if self._kind is Windows:
            description["returns"] = dataclasses.asdict(self.returns)
        checkpoint.write(path, self.state.tensors() | scalers, {**(more or {}), **description})

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same algorithm, config, snapshot and seeds; raises `OffrlError` and changes nothing else.

        A learner without data takes one of any snapshot.
        """
        tensors, description = checkpoint.read(path)
        for name, mine in self._identity().items():
            if self.store is None and name in ("snapshot", "held_out"):
                continue
            if name == "config":
                self._check_config(path, description)
            elif name == "space" and _narrowed(description.get(name)) == _narrowed(mine):
                continue
            elif description.get(name) != mine:
                raise _unfit(path, f"has {name} {description.get(name)!r}, this run {mine!r}", description)
        state = {name: value for name, value in tensors.items() if not name.startswith("scaler/")}
        if not self.state.fits(state):
            raise _unfit(path, "does not fit the networks of this run", description)
        self.state.load(state)
        for name, value in self._scalers.tensors().items():
            value.copy_(tensors[f"scaler/{name}"])
        self.step = int(description["step"])
        self._taken = {key: int(moments.counts[0]) for key, moments in self.state.moments.items()}
        self._means = Means.from_json(self.seeds, description["means"])
        self.guard.load(description["guard"])
        self._restore_linear(description.get("linear", "torch"))
        if self.store is None:  # a copy of it can still go on with its data
            self._trained_on = {name: description[name] for name in ("snapshot", "held_out") if name in description}
            self._returns = Returns(**description["returns"]) if "returns" in description else None

    def _restore_linear(self, before: str) -> None:
        """Multiply as the checkpoint's run did, for the same bits, unless this one was told otherwise or cannot."""
        if before == self.linear or self._linear_asked != "auto":
            return
        if before == "onednn" and not (onednn.present() and self.runner == "eager" and not self._stacked and self._device.type == "cpu"):
            self._log("linear layers: by torch, because the checkpoint's oneDNN cannot be had: its last bits will differ")
            return
        self.linear = before
        self._log(f"linear layers: by {before}, as in the checkpoint")

    def _check_config(self, path: str | os.PathLike[str], description: dict[str, Any]) -> None:
        """The checkpoint's settings are this run's; one that an earlier version did not have yet counts as its default."""
        theirs, mine, defaults = description.get("config", {}), settings.as_flat(self.config), settings.as_flat(self.algorithm.config)
        for name in sorted(theirs.keys() | mine.keys()):
            before, now = theirs.get(name, defaults.get(name)), mine.get(name)
            if before != now or name not in mine:
                raise _unfit(path, f"has {name} {before!r}, this run {now!r}" if name in mine else f"has a setting {name}", description)

    def _identity(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm.name,
            "config": settings.as_flat(self.config),
            **self._trained_on,
            "seeds": list(self.seeds),
            "space": self.space,
        }


def _narrowed(space: Any) -> Any:
    """A space as JSON with float32 for float64: what runs of earlier versions noted of an environment's float64 observations."""
    try:
        fields = {name: {**field, "dtype": field["dtype"].replace("float64", "float32")} for name, field in space["observation"].items()}
        return {**space, "observation": fields} if space["source"].startswith("env") else space
    except (AttributeError, KeyError, TypeError):
        return space


def _unfit(path: str | os.PathLike[str], why: str, description: dict[str, Any]) -> OffrlError:
    """A checkpoint that this run cannot go on from: by which version it was written, and what to do."""
    version = description.get("versions", {}).get("offrl")
    written = f"offrl {version}" if version else "an earlier offrl"
    return OffrlError(
        f"checkpoint {os.fspath(path)} {why}",
        hint=f"it was written by {written}, this is {__version__}: go on with that version, or begin anew with `offrl rerun JOB`",
    )
