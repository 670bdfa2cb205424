"""A trained seed without its learner: algorithm, config, networks, parameters and scalers, read from a self-describing checkpoint.

Everything that continues a finished run uses it: the evaluation of a policy (FQE), a model that generates data (MOPO, COMBO), a run that
starts from another's parameters, and actors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from offrl.errors import InvalidInput, Unknown
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.definition.run import Run, Scalers
from offrld.engine.definition.space import Space
from offrld.engine.learner import data
from offrld.engine.learner.actor import Actor
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.engine.learner.trainer import Trainer
from offrld.engine.updates import checkpoint
from offrld.nets import Params

Find = Callable[[str], Algorithm]
POLICY = "policy"  # in `Algorithm.inputs`: any algorithm that learns a policy


class Trained(Protocol):
    """A learner, or anything else that returns its seeds as `Loaded`."""

    seeds: tuple[int, ...]

    def loaded(self, seed: int | None = None) -> Loaded: ...


@dataclass(frozen=True, eq=False)
class Loaded:
    """One trained seed.

    Attributes:
        algorithm, config, space: those of the run.
        seed, step: the seed, and the number of its updates.
        nets: the networks by name.
        tensors: the seed's part of the training state, under the names of a checkpoint: ``params/NAME``, ``target/NAME``,
            ``memory/NAME``, ``optimizer/STAGE.STEP/PART/NAME`` and ``.../count``.
        scalers: fitted by the run.
        origin: the source, for messages.
    """

    algorithm: Algorithm
    config: Any
    space: Space
    seed: int
    step: int
    nets: Any
    tensors: Mapping[str, Tensor]
    scalers: Scalers
    origin: str

    @classmethod
    def read(cls, path: str | os.PathLike[str], find: Find, seed: int | None = None) -> Loaded:
        """Read one seed of a checkpoint, on the CPU.

        Args:
            path: a checkpoint file, or a job's run folder, whose newest checkpoint is read.
            find: returns the algorithm of a name, such as `offrld.algos.get`.
            seed: a trained seed; by default the first.

        Raises:
            InvalidInput: there is no checkpoint.
            CheckpointCorrupt: the checkpoint is damaged.
            Unknown: its algorithm, or a package that it used, is not installed; or the seed was not trained.
        """
        return choose(cls.read_all(path, find), seed)

    @classmethod
    def read_all(cls, path: str | os.PathLike[str], find: Find) -> list[Loaded]:
        """Read all seeds of a checkpoint, in the order of training; for arguments and errors see `read`."""
        file = newest(path)
        tensors, description = checkpoint.read(file)
        if missing := [key for key in ("algorithm", "config", "space", "seeds", "step") if key not in description]:
            raise checkpoint.CheckpointCorrupt(f"checkpoint {file} lacks the entry {missing[0]!r}", hint="use another checkpoint")
        algorithm = find(description["algorithm"])
        if algorithm.name != description["algorithm"]:
            raise InvalidInput(f"checkpoint {file} is of the algorithm {description['algorithm']!r}, not {algorithm.name!r}")
        config, space = algorithm.configure(description["config"]), Space.from_json(description["space"])
        scalers = data.rebuild_scalers(config, space, _below("scaler/", tensors))
        nets, step = algorithm.nets(config, space), int(description["step"])
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith("scaler/")}
        return [
            cls(algorithm, config, space, seed, step, nets, _of_seed(state, position), scalers, f"checkpoint {file}")
            for position, seed in enumerate(description["seeds"])
        ]

    @classmethod
    def of(cls, learner: Trained, seed: int | None = None) -> Loaded:
        """Copy the current state of a learner's seed to the CPU; raise `Unknown` for a seed that was not trained."""
        return learner.loaded(seed)

    @classmethod
    def of_trainer(cls, trainer: Trainer, seed: int | None = None) -> Loaded:
        """Copy the current state of a seed to the CPU; raise `Unknown` for a seed that was not trained."""
        run = trainer.run
        if seed is not None and seed not in run.seeds:
            raise _no_seed(run.algorithm.name, seed, run.seeds)
        seed = run.seed(seed)
        state = {name: tensor.detach().cpu() for name, tensor in trainer.state.tensors().items()}
        scalers = {name: tensor.detach().cpu().clone() for name, tensor in run.scalers.tensors().items()}
        copies = {name: tensor.clone() for name, tensor in _of_seed(state, run.seeds.index(seed)).items()}
        rebuilt = data.rebuild_scalers(run.config, run.space, scalers)
        origin = f"a learner of {run.algorithm.name}"
        return cls(run.algorithm, run.config, run.space, seed, trainer.step, run.nets, copies, rebuilt, origin)

    @property
    def params(self) -> Params:
        """The parameters of all networks by name."""
        return _below("params/", self.tensors)

    @property
    def target(self) -> Params:
        """The parameters of the target networks by name."""
        return _below("target/", self.tensors)

    @cached_property
    def actor(self) -> Actor:
        """An actor with these parameters, on the CPU."""
        return actor_of([self])

    def policy(self) -> PolicyModule:
        """Return the greedy policy as a module, float32 on the CPU, with inputs and outputs in the environment's units."""
        params = {name: tensor.to(torch.float32).clone() for name, tensor in self.params.items()}
        return PolicyModule(self.algorithm, self.config, self.nets, params, self.space, self.scalers)


def actor_of(trained: Sequence[Loaded]) -> Actor:
    """Return an actor of several seeds of one run, on the CPU, in the dtype of their training."""
    first = trained[0]
    params = {name: torch.stack([one.params[name] for one in trained]) for name in first.params}
    dtype, device = next(iter(params.values())).dtype, torch.device("cpu")
    seeds = tuple(one.seed for one in trained)
    return Actor(Run(first.algorithm, first.config, first.nets, first.space, first.scalers, seeds, device, dtype), params)


def newest(path: str | os.PathLike[str]) -> Path:
    """Return the checkpoint file of ``path``: the file itself, or the newest one of a run folder. Raise `InvalidInput` if none exists."""
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise InvalidInput(f"there is no checkpoint {os.fspath(path)!r}", hint="`offrl fetch JOB --kind checkpoint` downloads one")
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    files = sorted(folder.glob("*.safetensors"))  # their names are zero-padded steps
    if not files:
        raise InvalidInput(
            f"there is no checkpoint in {os.fspath(path)!r}", hint="a job writes one about once a minute, and one at its end"
        )
    return files[-1]


def choose(trained: list[Loaded], seed: int | None) -> Loaded:
    """Return the run of this seed, or the first for None; raise `Unknown` if there is none."""
    if seed is None:
        return trained[0]
    for loaded in trained:
        if loaded.seed == seed:
            return loaded
    raise _no_seed(trained[0].origin, seed, [loaded.seed for loaded in trained])


def take_inputs(algorithm: Algorithm, config: Any, space: Space, sources: Mapping[str, Loaded | Trained]) -> dict[str, Loaded]:
    """Check and return the other runs that the settings in ``algorithm.inputs`` name; omit settings that are None.

    Args:
        sources: setting -> the other run.

    Raises:
        Unknown: the algorithm has no such input.
        InvalidInput: a source has the wrong algorithm or other observations or actions; or an evaluation has no policy.
    """
    for name in sources:
        if name not in algorithm.inputs:
            hint = f"its inputs: {', '.join(algorithm.inputs)}" if algorithm.inputs else "it has no inputs"
            raise Unknown(f"{algorithm.name} has no input {name!r}", hint=hint)
    inputs = {}
    for name, wanted in algorithm.inputs.items():
        if name not in sources:
            if getattr(config, name) is not None:
                raise InvalidInput(f"{name}={getattr(config, name)!r} is not loaded", hint=f"inputs={{{name!r}: offrld.load(...)}}")
            continue
        source = sources[name]
        inputs[name] = source if isinstance(source, Loaded) else source.loaded()
        _check(name, wanted, inputs[name], space)
    if algorithm.next_action == POLICY and POLICY not in inputs:
        raise InvalidInput(f"{algorithm.name} evaluates a policy, and none was named", hint="set policy to the job that trained it")
    return inputs


def seeds_of(source: Loaded | Trained | Iterable[Loaded | Trained]) -> list[Loaded]:
    """Return the result of `loaded_of`; raise `InvalidInput` if it has no seed."""
    if not (loaded := loaded_of(source)):
        raise InvalidInput("the other run has no seed", hint="pass a learner, or the result of offrld.Loaded.read")
    return loaded


def loaded_of(source: Loaded | Trained | Iterable[Loaded | Trained]) -> list[Loaded]:
    """Return the seeds of another run, which may be loaded or a learner."""
    if isinstance(source, Loaded):
        return [source]
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping):
        return [loaded for part in source for loaded in loaded_of(part)]
    if isinstance(source, Mapping) or not hasattr(source, "loaded"):
        raise InvalidInput(f"another run is given as a {type(source).__name__}", hint="pass a learner, or the result of offrld.Loaded.read")
    return [source.loaded(seed) for seed in source.seeds]


def _check(name: str, wanted: str, source: Loaded, space: Space) -> None:
    if not (source.algorithm.acts if wanted == POLICY else source.algorithm.name == wanted):
        what = "a policy" if wanted == POLICY else f"a run of {wanted}"
        raise InvalidInput(f"{name} takes {what}, {source.origin} is of {source.algorithm.name}", hint=f"train {what} first")
    if wanted == POLICY and source.algorithm.batch_kind == "windows":
        raise InvalidInput(f"{name}: {source.origin} is of {source.algorithm.name}, which acts on whole episodes", hint="run it instead")
    if source.space.observation != space.observation:
        mine, theirs = (
            ", ".join(f"{field} {dtype} {shape}" for field, (dtype, shape) in one.observation.items()) for one in (space, source.space)
        )
        raise InvalidInput(f"{name}: {source.origin} takes observations {theirs}, the dataset has {mine}")
    if (source.space.discrete, source.space.action_size) != (space.discrete, space.action_size):
        mine, theirs = (f"{one.action_size} {'discrete actions' if one.discrete else 'dimensions'}" for one in (space, source.space))
        raise InvalidInput(f"{name}: {source.origin} acts with {theirs}, the dataset has {mine}")


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_seed(state: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
    """Return one seed's part of `TrainState.tensors`; an optimizer's step count is one number for all seeds."""
    return {name: tensor if name.endswith("/count") and tensor.dim() == 0 else tensor[position] for name, tensor in state.items()}


def _no_seed(where: str, seed: int, trained: Any) -> Unknown:
    return Unknown(f"{where}: seed {seed} was not trained", hint=f"trained seeds: {', '.join(map(str, trained))}")
