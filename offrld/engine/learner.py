"""The learner: losses into updates. Each update ``k`` takes batch ``k`` and does the steps of the
schedule that are due; the result depends on (snapshot, seeds, config, k) alone, never on how the updates were grouped.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from offrl.errors import InvalidInput, OffrlError
from offrl_store import EpisodeStore
from offrl_store.errors import EmptyStore
from offrld import settings
from offrld.engine import checkpoint, data
from offrld.engine.algorithm import Algorithm, Batch, Stage, Windows
from offrld.engine.feed import Feed, Scalers, request_of
from offrld.engine.graph import Capture, Chunks, cuda_capture, length_for, moved_alike, restore
from offrld.engine.loaded import Loaded, take_inputs
from offrld.engine.metrics import Means
from offrld.engine.policy import PolicyModule
from offrld.engine.runner import Gradients, agree, choose_linear, gradients
from offrld.engine.sequence_policy import Returns, SequencePolicy
from offrld.engine.space import Space, space_of
from offrld.engine.state import TrainState, key_of
from offrld.engine.supply import Supply
from offrld.engine.update import Updater
from offrld.nets import onednn
from offrld.nets.linear import products

VALIDATION_BATCHES = 16


class Learner:
    """Trains ``S`` seeds of one algorithm on one store. Make it with `Learner.create`."""

    def __init__(
        self,
        algorithm: Algorithm,
        config: Any,
        store: EpisodeStore,
        space: Space,
        *,
        seeds: Sequence[int],
        device: torch.device,
        runner: str,
        dtype: torch.dtype,
        training: np.ndarray,
        holdout: np.ndarray,
        stacked: bool,
        feed: str,
        linear: str,
        inputs: Mapping[str, Loaded],
        log: Callable[[str], None],
    ) -> None:
        self.algorithm, self.config, self.store, self.space_ = algorithm, config, store, space
        self.seeds = tuple(seeds)
        self._kind = Windows if algorithm.batch_kind == "windows" else Batch
        self.holdout, self.inputs = holdout, inputs
        self.step = 0
        self._device, self._dtype, self._stacked, self._log = device, dtype, stacked, log
        self._training = training
        networks = algorithm.networks(config, space)
        self.nets = SimpleNamespace(**networks)
        self._scalers = data.fit_scalers(config, store, space, training, dtype, device)
        self._stages = algorithm.stages(config) if algorithm.stages else (Stage("train", algorithm.schedule(config)),)
        self.dataset = data.Dataset(store, space, self._scalers, training, dtype, device, inputs)
        prepared = algorithm.prepare(self.dataset, config) if algorithm.prepare else {}
        self._data = {name: torch.as_tensor(value).to(device) for name, value in prepared.items()}
        self.state = TrainState(
            networks, algorithm.targets, self._stages, self._data, algorithm.memory(config, space),
            seeds=self.seeds, dtype=dtype, device=device, stacked=stacked,
        )  # fmt: skip
        self._taken = dict.fromkeys(self.state.moments, 0)
        # The actions of a policy that is evaluated, at every row: computed once, for it does not change.
        self._policy_actions = None
        if algorithm.next_action == "policy":
            if "policy" not in inputs:
                raise InvalidInput(f"{algorithm.name} evaluates another job's policy and none is named", hint="--set policy=JOB")
            self._policy_actions = data.actions_of(inputs["policy"].policy(), store)
        self._supply = Supply(store, device, feed, log)
        self._feeds = self._open_feeds(config)
        one = dataclasses.replace(config, n_steps=1) if getattr(config, "n_steps", 1) > 1 else config
        differs = one is not config and any(stage.single_steps for stage in self._stages)
        self._single_feeds = self._open_feeds(one) if differs else self._feeds
        self._means = Means(self.seeds)
        self._returns: Returns | None = None  # of the training episodes, once a policy wants them
        self._choose_runner(runner)
        plain = self.runner == "eager" and not stacked
        self.linear, why = choose_linear(linear, device=device, dtype=dtype, plain=plain)
        self._linear_asked = linear != "auto"
        log(f"linear layers: by {self.linear}, {why}")

    # ------------------------------------------------------------------------------------------------------------ creation
    @classmethod
    def create(
        cls,
        algorithm: Algorithm,
        config: Any,
        store: EpisodeStore,
        *,
        seeds: Sequence[int] = (0,),
        device: str = "auto",
        runner: str = "auto",
        threads: int | None = None,
        holdout: float = 0.0,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        env_id: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        dtype: torch.dtype = torch.float32,
        stacked: bool | None = None,
        feed: str = "auto",
        linear: str = "auto",
        inputs: Mapping[str, Loaded | Learner | str | os.PathLike[str]] | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> Learner:
        """A learner at step 0.

        Args:
            store: opened at the snapshot that the run is pinned to.
            seeds: one training run each; a seed alone decides its initialisation, batches and noise.
            device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
            runner: ``eager``, ``compile``, ``graph`` (CUDA graphs of many updates), or ``auto``: eager on the CPU; on CUDA compiled losses
                where their first gradients agree with eager ones, in graphs where their first updates agree with single ones.
            threads: CPU threads of torch (None: as it is).
            holdout: share of the episodes kept out of training, for `validate`.
            bounds: of the actions, from the evaluation environment ``env_id``; they take precedence over the store's.
            cache_dir: folder where compiled kernels are kept between runs.
            stacked: whether seeds are differentiated together (None: on CUDA).
            feed: where batches come from: ``host``, ``prefetch``, ``resident`` or ``auto`` (see `Supply`); the batches are the same.
            linear: what multiplies in linear layers: ``torch``, ``onednn``, or ``auto``: oneDNN where it is the faster on this processor
                (the environment's OFFRL_LINEAR may name it). It decides last bits: a resumed run goes on with that of its checkpoint.
            inputs: for the settings that name another run (`Algorithm.inputs`), what to take in their place.
            log: takes one-line messages.

        Raises:
            InvalidInput: the data's actions do not fit the algorithm, or an input does not fit the data.
            EmptyStore: no transition to train on.
        """
        if len(set(seeds)) != len(seeds) or not seeds:
            raise InvalidInput(f"seeds must be given once each, got {list(seeds)}")
        if threads is not None:
            torch.set_num_threads(threads)
        if cache_dir is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(cache_dir)
        where = _device(device)
        space = space_of(store.schema, store.metadata, bounds, env_id, config.frame_stack)
        algorithm.check(space)
        training, held_out = data.split(len(store), holdout)
        if store.transition_count == 0:
            raise EmptyStore("the dataset has no transition to train on", hint="add episodes of at least one step")
        together = where.type == "cuda" if stacked is None else stacked
        return cls(
            algorithm, config, store, space,
            seeds=seeds, device=where, runner=runner, dtype=dtype, training=training, holdout=held_out,
            stacked=together and len(seeds) > 1, feed=feed, linear=linear,
            inputs=take_inputs(algorithm, config, space, inputs or {}), log=log,
        )  # fmt: skip

    def _open_feeds(self, config: Any) -> list[Feed]:
        groups = [self.seeds] if self._stacked else [(seed,) for seed in self.seeds]
        return [self._feed(config, group, self._training, stacked=self._stacked, ahead=True) for group in groups]

    def _feed(self, config: Any, seeds: tuple[int, ...], episodes: np.ndarray, *, stacked: bool, ahead: bool) -> Feed:
        everything = len(episodes) == len(self.store)
        request = request_of(
            self.algorithm, config, self.store, self.space_, self._scalers, self._policy_actions,
            seeds=seeds, episodes=None if everything else episodes, stacked=stacked,
        )  # fmt: skip
        source = self._supply.open(request, ahead=ahead)
        return Feed(config, request, source, self.space_, self._scalers, dtype=self._dtype, device=self._device)

    def _choose_runner(self, runner: str) -> None:
        cuda = self._device.type == "cuda"
        if runner == "graph" and not cuda:
            raise InvalidInput(f"runner 'graph' needs a CUDA device, this one is {self._device}", hint="use the runner auto")
        self.runner = "compile" if runner == "compile" or (runner in ("auto", "graph") and cuda) else "eager"
        self._gradients = self._all_gradients(self.runner == "compile")
        if runner in ("auto", "graph") and self.runner == "compile" and not self._compiled_agrees():
            self.runner, self._gradients = "eager", self._all_gradients(False)
        self._updater = Updater(self.state, self._gradients, stacked=self._stacked)
        self._chunks: Chunks | None = None
        if runner in ("auto", "graph") and cuda:
            self._choose_graph()

    def _choose_graph(self) -> None:
        """Take CUDA graphs where chunks can be captured and move the state as single updates do; else tell why not."""
        losses = self.runner
        try:
            self.use_chunks(cuda_capture(self.state.moving()))
            why = "" if self._chunks_agree() else "replayed updates differ from single ones"
        except Exception as error:  # whatever cannot be captured is a reason to do without, and is told
            why = f"capturing failed ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
        if why:
            self._chunks = None
            self._log(f"runner: {losses}, because {why}")
            return
        self.runner = "graph"
        self._log(f"runner: graph, {self._chunks.length} updates at a time, losses by {losses}")

    def use_chunks(self, capture: Capture, length: int | None = None) -> None:
        """Train in chunks from now on (see `offrld.engine.graph`).

        Raises:
            InvalidInput: batches are not drawn on the device.
        """
        if self._supply.feed != "resident":
            raise InvalidInput(f"the feed is {self._supply.feed}, and a graph draws its batches on the device", hint="feed='resident'")
        feeds = {stage.name: self._single_feeds if stage.single_steps else self._feeds for stage in self._stages}
        whole = length_for(self._batches(0)[0]) // len(self._feeds) or 1
        self._chunks = Chunks(
            self._updater, self.state.schedules, feeds, self._device, capture=capture, length=whole if length is None else length
        )  # fmt: skip

    def _chunks_agree(self) -> bool:
        """Whether the first updates take the state to the same place in a chunk as one by one; moves nothing in the end."""
        state = self.state.moving()
        start, ends = [tensor.clone() for tensor in state], []
        step, taken, means = self.step, dict(self._taken), self._means
        updates = min(self._chunks.length, self._free(step, step + self._chunks.length))
        try:
            for chunked in (False, True):
                self._means = Means(self.seeds)
                if chunked:
                    self._replay(step + updates, at_once=True)
                else:
                    for _ in range(updates):
                        self._update()
                ends.append([tensor.clone() for tensor in state])
                restore(state, start)
                self.step, self._taken = step, dict(taken)
        finally:
            restore(state, start)
            self.step, self._taken, self._means = step, taken, means
        return moved_alike(start, *ends)

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
        """Do ``updates`` updates."""
        end = self.step + updates
        with products(through_onednn=self.linear == "onednn"):
            while self.step < end:
                if self.algorithm.between is not None:
                    self.algorithm.between(self, self.step)
                if self._chunks is None or not self._replay(end):
                    self._update()

    def _update(self) -> None:
        """One update, at once."""
        batches = self._batches(self.step)
        for due in self.state.schedules[self._stage(self.step).name]:
            if due.step.due(self.step):
                self._means.add(self._updater.apply(due, batches, self._taken.get(due.moments_key, 0)))
                if due.moments_key:
                    self._taken[due.moments_key] += 1
        self.step += 1

    def _replay(self, end: int, *, at_once: bool = False) -> bool:
        """Some updates together, up to ``end``, where they are worth a graph; whether there were any."""
        done, metrics, moves = self._chunks.run(
            self._stage(self.step).name, self.step, self._free(self.step, end), self._taken, at_once=at_once
        )  # fmt: skip
        self._means.add(metrics)
        for key, count in moves.items():
            self._taken[key] += count
        self.step += done
        return done > 0

    def _free(self, k: int, end: int) -> int:
        """How many updates from ``k`` on follow each other without another stage or the algorithm's hook in between."""
        stop, first = end, 0
        for stage in self._stages[:-1]:
            first += stage.updates or 0
            if stage.updates is not None and first > k:
                stop = min(stop, first)
                break
        if self.algorithm.between is not None:
            hook = self.algorithm.next_between
            stop = min(stop, k + 1 if hook is None else hook(self.config, k))
        return stop - k

    def _stage(self, k: int) -> Stage:
        for stage in self._stages[:-1]:
            if stage.updates is None or k < stage.updates:
                return stage
            k -= stage.updates
        return self._stages[-1]

    def _batches(self, k: int) -> list[Any]:
        """One batch per view: one per seed, or all seeds' stacked."""
        return [feed.batch(k) for feed in (self._single_feeds if self._stage(k).single_steps else self._feeds)]

    # ------------------------------------------------------------------------------------------------------------ reading
    @property
    def scalers(self) -> Scalers:
        """The fitted scalers."""
        return self._scalers

    @property
    def space(self) -> dict[str, Any]:
        """The spaces as JSON (see `Space.as_json`)."""
        return self.space_.as_json()

    def metrics(self) -> dict[str, dict[int, float]]:
        """Means of the losses' metrics since the last call: name -> {seed -> value}."""
        return self._means.take()

    def validate(self) -> dict[str, dict[int, float]]:
        """The losses' metrics on held-out episodes, as ``validation_NAME``; the same batches at every call. Empty without a holdout."""
        if len(self.holdout) == 0:
            return {}
        stage = self._stage(max(self.step - 1, 0))
        config = dataclasses.replace(self.config, n_steps=1) if stage.single_steps and hasattr(self.config, "n_steps") else self.config
        feed = self._feed(config, (0,), self.holdout, stacked=False, ahead=False)
        means = Means(self.seeds)
        for k in range(VALIDATION_BATCHES):
            batch = feed.batch(k)
            for step in stage.schedule:
                if step.loss is None:
                    continue
                rows = [
                    step.loss(state.params, self.config, self.nets, state, batch)[1]
                    for state in (self.state.of_seed(position, self._data) for position in range(len(self.seeds)))
                ]
                means.add({name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]})
        return {f"validation_{name}": values for name, values in means.take().items()}

    def policy(self, seed: int) -> PolicyModule:
        """The greedy policy of a trained seed as a module: environment's units in and out; a copy, so training goes on beside it."""
        if "policy" in self.inputs:
            return self.inputs["policy"].policy()
        if not self.algorithm.acts:
            raise InvalidInput(f"{self.algorithm.name} learns no policy", hint="give its job to an algorithm that takes it as an input")
        if seed not in self.seeds:
            raise InvalidInput(f"seed {seed} was not trained", hint=f"trained: {', '.join(map(str, self.seeds))}")
        params = {name: value[self.seeds.index(seed)].detach().cpu().to(torch.float32).clone() for name, value in self.state.params.items()}
        parts = (self.algorithm, self.config, self.nets, params, self.space_, self._scalers)
        if self._kind is not Windows:
            return PolicyModule(*parts)
        if self._returns is None:
            self._returns = Returns.of(self.store, self._training, self._scalers.reward)
        return SequencePolicy(*parts, self._returns)

    def describe_run(self) -> dict[str, Any]:
        """What this run depends on beside config and data: runner, device, threads, dtype and versions."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.processor() or platform.machine()
        return {
            "runner": self.runner,
            "linear": self.linear,
            "feed": self._supply.feed,
            "device": str(self._device),
            "device_name": name,
            "threads": torch.get_num_threads(),
            "dtype": str(self._dtype).removeprefix("torch."),
            "seeds_together": self._stacked,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }

    # --------------------------------------------------------------------------------------------------------- checkpoints
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically: state, step, config, snapshot, sums of the metrics, and what the run depends on."""
        scalers = {f"scaler/{name}": value for name, value in self._scalers.tensors().items()}
        description = {"step": self.step, "means": self._means.as_json(), **self._identity(), **self.describe_run()}
        checkpoint.write(path, self.state.tensors() | scalers, description)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same algorithm, config, snapshot and seeds; raises `OffrlError` and changes nothing else."""
        tensors, description = checkpoint.read(path)
        for name, mine in self._identity().items():
            if description.get(name) != mine:
                raise OffrlError(f"checkpoint {os.fspath(path)} has {name} {description.get(name)!r}, this run {mine!r}")
        state = {name: value for name, value in tensors.items() if not name.startswith("scaler/")}
        if not self.state.fits(state):
            raise OffrlError(f"checkpoint {os.fspath(path)} does not fit the networks of this run")
        self.state.load(state)
        for name, value in self._scalers.tensors().items():
            value.copy_(tensors[f"scaler/{name}"])
        self.step = int(description["step"])
        self._taken = {key: int(moments.counts[0]) for key, moments in self.state.moments.items()}
        self._means = Means.from_json(self.seeds, description["means"])
        self._restore_linear(description.get("linear", "torch"))

    def _restore_linear(self, before: str) -> None:
        """Multiply as the checkpoint's run did, for the same bits, unless this one was told otherwise or cannot."""
        if before == self.linear or self._linear_asked:
            return
        if before == "onednn" and not (onednn.present() and self.runner == "eager" and not self._stacked and self._device.type == "cpu"):
            self._log("linear layers: by torch, because the checkpoint's oneDNN cannot be had: its last bits will differ")
            return
        self.linear = before
        self._log(f"linear layers: by {before}, as in the checkpoint")

    def _identity(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm.name,
            "config": settings.as_flat(self.config),
            "snapshot": str(self.store.snapshot()),
            "seeds": list(self.seeds),
            "space": self.space,
        }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count()
        raise InvalidInput(f"device {name!r} is not there: this machine has {found} CUDA devices", hint="use the device cpu, or auto")
    return device
