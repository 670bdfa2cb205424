"""The learner: losses into updates. It owns the training state and nothing else knows how it is kept.

State is a flat dict of tensors with a leading seed axis ``[S, ...]``: ``params/NAME``, ``target/NAME``, and per step
``adam/STEP/first/NAME``, ``adam/STEP/second/NAME``, ``adam/STEP/count``. Each update ``k`` takes batch ``k`` and does the steps of the
schedule that are due; the result depends on (snapshot, seeds, config, k) alone, never on how the updates were grouped.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from offrl.errors import InvalidInput, OffrlError
from offrl_store import EpisodeStore
from offrl_store.errors import EmptyStore
from torch import Tensor

from offrld import settings
from offrld.engine import checkpoint, data
from offrld.engine.algorithm import Algorithm, Batch, Stage, State, Step
from offrld.engine.feed import Feed
from offrld.engine.metrics import Means
from offrld.engine.optimizer import adam_step, polyak
from offrld.engine.policy import PolicyModule
from offrld.engine.runner import Gradients, agree, gradients
from offrld.engine.space import Space, space_of
from offrld.nets import Params

VALIDATION_BATCHES = 16


@dataclass
class _Moments:
    """Adam's state of one step: tensors like the parameters that it moves, and the count of its updates."""

    first: Params
    second: Params
    count: Tensor


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
        log: Callable[[str], None],
    ) -> None:
        self.algorithm, self.config, self.store, self.space_ = algorithm, config, store, space
        self.seeds = tuple(seeds)
        self.holdout = holdout
        self.step = 0
        self._device, self._dtype, self._stacked, self._log = device, dtype, stacked, log
        self._training = training
        networks = algorithm.networks(config, space)
        self.nets = SimpleNamespace(**networks)
        self._scalers = data.fit_scalers(config, store, space, training, dtype, device)
        self._stages = algorithm.stages(config) if algorithm.stages else (Stage("train", algorithm.schedule(config)),)
        self._init_state(networks)
        self._feeds = [self._feed(seed, training) for seed in self.seeds]
        self._means = Means(self.seeds)
        self._choose_runner(runner)

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
        log: Callable[[str], None] = lambda text: None,
    ) -> Learner:
        """A learner at step 0.

        Args:
            store: opened at the snapshot that the run is pinned to.
            seeds: one training run each; a seed alone decides its initialisation, batches and noise.
            device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
            runner: ``eager``, ``compile``, or ``auto``: compiled on CUDA when its first gradients agree with eager ones, else eager.
            threads: CPU threads of torch (None: as it is).
            holdout: share of the episodes kept out of training, for `validate`.
            bounds: of the actions, from the evaluation environment ``env_id``; they take precedence over the store's.
            cache_dir: folder where compiled kernels are kept between runs.
            stacked: whether seeds are differentiated together (None: on CUDA).
            log: takes one-line messages.

        Raises:
            InvalidInput: the data's actions do not fit the algorithm, or images were given.
            EmptyStore: no transition to train on.
        """
        if len(set(seeds)) != len(seeds) or not seeds:
            raise InvalidInput(f"seeds must be given once each, got {list(seeds)}")
        if threads is not None:
            torch.set_num_threads(threads)
        if cache_dir is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(cache_dir)
        where = _device(device)
        space = space_of(store.schema, store.metadata, bounds, env_id)
        algorithm.check(space)
        training, held_out = data.split(len(store), holdout)
        if store.transition_count == 0:
            raise EmptyStore("the dataset has no transition to train on", hint="add episodes of at least one step")
        together = where.type == "cuda" if stacked is None else stacked
        return cls(
            algorithm, config, store, space,
            seeds=seeds, device=where, runner=runner, dtype=dtype, training=training, holdout=held_out,
            stacked=together and len(seeds) > 1, log=log,
        )  # fmt: skip

    def _feed(self, seed: int, episodes: np.ndarray) -> Feed:
        everything = len(episodes) == len(self.store)
        return Feed(
            self.algorithm, self.config, self.store, self.space_, self._scalers,
            seed=seed, episodes=None if everything else episodes, dtype=self._dtype, device=self._device,
        )  # fmt: skip

    def _init_state(self, networks: dict[str, Any]) -> None:
        per_seed = []
        for seed in self.seeds:
            params: Params = {}
            for name, network in networks.items():
                # A generator per network: its numbers do not depend on which networks are made before it.
                generator = torch.Generator().manual_seed(int(np.uint64(seed) * np.uint64(1_000_003) % np.uint64(2**63)) + _number(name))
                params.update(network.init(generator, self._dtype))
            per_seed.append(params)
        self._params = {name: torch.stack([p[name] for p in per_seed]).to(self._device) for name in per_seed[0]}
        self._target = {name: value.clone() for name, value in self._params.items() if name.split(".")[0] in self.algorithm.targets}
        prepared = self.algorithm.prepare(self.store, self.config) if self.algorithm.prepare else {}
        self._data = {name: torch.as_tensor(value).to(self._device) for name, value in prepared.items()}
        self._moments: dict[str, _Moments] = {}
        for stage in self._stages:
            for step in stage.schedule:
                if step.loss is not None:
                    mine = self._of(step.optimizes, self._params)
                    zeros = [{name: torch.zeros_like(value) for name, value in mine.items()} for _ in range(2)]
                    self._moments[f"{stage.name}.{step.name}"] = _Moments(*zeros, torch.zeros((), device=self._device))
        self._lay_out()

    def _lay_out(self) -> None:
        """Views through which updates read and move the state: per seed, or all seeds together when stacked.

        A leaf shares the memory of its parameter, so that the optimiser's in-place step is the parameter's step.
        """
        parts = [slice(None)] if self._stacked else range(len(self.seeds))
        self._views = []
        for part in parts:
            params = {name: value[part] for name, value in self._params.items()}
            target = {name: value[part] for name, value in self._target.items()}
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            moments = {
                key: ([m.first[n][part] for n in m.first], [m.second[n][part] for n in m.second]) for key, m in self._moments.items()
            }
            self._views.append(SimpleNamespace(params=params, target=target, leaves=leaves, moments=moments))

    def _of(self, networks: Sequence[str], params: Params) -> Params:
        return {name: value for name, value in params.items() if name.split(".")[0] in networks}

    def _choose_runner(self, runner: str) -> None:
        self.runner = "compile" if runner == "compile" or (runner == "auto" and self._device.type == "cuda") else "eager"
        self._gradients = self._all_gradients(self.runner == "compile")
        if runner == "auto" and self.runner == "compile" and not self._compiled_agrees():
            self.runner, self._gradients = "eager", self._all_gradients(False)

    def _all_gradients(self, compiled: bool) -> dict[str, Gradients]:
        return {
            f"{stage.name}.{step.name}": gradients(step.loss, self.config, self.nets, compiled=compiled, stacked=self._stacked)
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
                key, view = f"{stage.name}.{step.name}", self._views[0]
                arguments = (self._of(step.optimizes, view.leaves), State(view.params, view.target, self._data), batches[0])
                try:
                    same = agree(eager[key](*arguments)[0], self._gradients[key](*arguments)[0])
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
        for _ in range(updates):
            if self.algorithm.between is not None:
                self.algorithm.between(self, self.step)
            stage = self._stage(self.step)
            batches = self._batches(self.step)
            for step in stage.schedule:
                if self.step % step.every == 0:
                    self._apply(stage, step, batches)
            self.step += 1

    def _stage(self, k: int) -> Stage:
        for stage in self._stages[:-1]:
            if stage.updates is None or k < stage.updates:
                return stage
            k -= stage.updates
        return self._stages[-1]

    def _batches(self, k: int) -> list[Batch]:
        """One batch per view: one per seed, or all seeds' stacked."""
        batches = [feed.batch(k) for feed in self._feeds]
        return [_stack(batches)] if self._stacked else batches

    def _apply(self, stage: Stage, step: Step, batches: list[Batch]) -> None:
        key = f"{stage.name}.{step.name}"
        if step.loss is not None:
            moments = self._moments[key]
            moved: tuple[list[Tensor], ...] = ([], [], [], [])
            collected = []
            for view, batch in zip(self._views, batches, strict=True):
                leaves = self._of(step.optimizes, view.leaves)
                grads, metrics = self._gradients[key](leaves, State(view.params, view.target, self._data), batch)
                for part, tensors in zip(moved, (leaves.values(), grads, *view.moments[key]), strict=True):
                    part.extend(tensors)
                collected.append(metrics)
            count = moments.count
            with torch.no_grad():
                counts = [count.clone() for _ in moved[0]]
                adam_step(step.optimizer, *moved, counts)
                count += 1
            self._means.add(collected, stacked=self._stacked)
        for network, rate in step.polyak.items():
            targets = self._of((network,), self._target)
            polyak(list(targets.values()), [self._params[name] for name in targets], rate)

    # ------------------------------------------------------------------------------------------------------------ reading
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
        feed = self._feed(0, self.holdout)
        means = Means(self.seeds)
        for k in range(VALIDATION_BATCHES):
            batch = feed.batch(k)
            for step in self._stage(max(self.step - 1, 0)).schedule:
                if step.loss is None:
                    continue
                rows = [
                    step.loss(params, self.config, self.nets, State(params, target, self._data), batch)[1]
                    for params, target in self._seed_states()
                ]
                means.add(rows, stacked=False)
        return {f"validation_{name}": values for name, values in means.take().items()}

    def _seed_states(self) -> list[tuple[Params, Params]]:
        return [
            ({n: v[s].detach() for n, v in self._params.items()}, {n: v[s].detach() for n, v in self._target.items()})
            for s in range(len(self.seeds))
        ]

    def policy(self, seed: int) -> PolicyModule:
        """The greedy policy of a trained seed as a module: environment's units in and out; a copy, so training goes on beside it."""
        if seed not in self.seeds:
            raise InvalidInput(f"seed {seed} was not trained", hint=f"trained: {', '.join(map(str, self.seeds))}")
        params = {name: value[self.seeds.index(seed)].detach().cpu().to(torch.float32).clone() for name, value in self._params.items()}
        return PolicyModule(self.algorithm, self.nets, params, self.space_, self._scalers)

    def describe_run(self) -> dict[str, Any]:
        """What this run depends on beside config and data: runner, device, threads, dtype and versions."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.processor() or platform.machine()
        return {
            "runner": self.runner,
            "device": str(self._device),
            "device_name": name,
            "threads": torch.get_num_threads(),
            "dtype": str(self._dtype).removeprefix("torch."),
            "seeds_together": self._stacked,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }

    # --------------------------------------------------------------------------------------------------------- checkpoints
    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"params/{name}": value for name, value in self._params.items()}
        tensors |= {f"target/{name}": value for name, value in self._target.items()}
        for key, moments in self._moments.items():
            tensors |= {f"adam/{key}/first/{name}": value for name, value in moments.first.items()}
            tensors |= {f"adam/{key}/second/{name}": value for name, value in moments.second.items()}
            tensors[f"adam/{key}/count"] = moments.count
        return tensors

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically: state, step, config, snapshot, sums of the metrics, and what the run depends on."""
        scalers = {f"scaler/{name}": value for name, value in self._scalers.tensors().items()}
        description = {"step": self.step, "means": self._means.as_json(), **self._identity(), **self.describe_run()}
        checkpoint.write(path, self._tensors() | scalers, description)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same algorithm, config, snapshot and seeds; raises `OffrlError` and changes nothing else."""
        tensors, description = checkpoint.read(path)
        for name, mine in self._identity().items():
            if description.get(name) != mine:
                raise OffrlError(f"checkpoint {os.fspath(path)} has {name} {description.get(name)!r}, this run {mine!r}")
        mine = self._tensors()
        state = {name: value for name, value in tensors.items() if not name.startswith("scaler/")}
        if state.keys() != mine.keys() or any(state[name].shape != mine[name].shape for name in mine):
            raise OffrlError(f"checkpoint {os.fspath(path)} does not fit the networks of this run")
        with torch.no_grad():
            for name, value in state.items():
                mine[name].copy_(value)
        for name, value in self._scalers.tensors().items():
            value.copy_(tensors[f"scaler/{name}"])
        self.step = int(description["step"])
        self._means = Means.from_json(self.seeds, description["means"])

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


def _number(name: str) -> int:
    import zlib

    return zlib.crc32(name.encode())


def _stack(batches: list[Batch]) -> Batch:
    first = batches[0]
    together = {
        name: torch.stack([getattr(b, name) for b in batches])
        for name in ("observation", "action", "reward", "next_observation", "terminal", "discount")
    }
    noise = {name: torch.stack([b.noise[name] for b in batches]) for name in first.noise}
    following = None if first.next_action is None else torch.stack([b.next_action for b in batches])
    return Batch(**together, noise=noise, next_action=following)
