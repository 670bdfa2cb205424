"""A trained seed without its learner: algorithm, config, networks, parameters and scalers, read from a checkpoint's own description.

It serves whatever goes on from a finished run: a policy that is evaluated (FQE), a model that makes data (MOPO, COMBO), parameters that
another run starts from, a learner that is loaded to predict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offrl.errors import InvalidInput, Unknown
from offrld.engine.batches.feed import Scalers
from offrld.engine.definition.algorithm import Algorithm
from offrld.engine.definition.space import Space
from offrld.engine.learner import data
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.engine.updates import checkpoint
from offrld.nets import Params

if TYPE_CHECKING:
    from offrld.engine.learner.learner import Learner

Find = Callable[[str], Algorithm]
POLICY = "policy"  # in `Algorithm.inputs`: any algorithm that learns to act


@dataclass(frozen=True, eq=False)
class Loaded:
    """One trained seed.

    Attributes:
        algorithm, config, space: of the run.
        seed, step: which of its seeds, and after how many updates.
        nets: the networks by name.
        tensors: that seed's part of the training state, under the names of a checkpoint: ``params/NAME``, ``target/NAME``,
            ``memory/NAME``, ``optimizer/STAGE.STEP/PART/NAME`` and ``.../count``.
        scalers: fitted by the run.
        origin: where it comes from, for messages.
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
        """One seed of a checkpoint, on the CPU.

        Args:
            path: a checkpoint file, or a job's run folder: its newest checkpoint.
            find: gives the algorithm of a name: `offrld.algos.get`.
            seed: one that was trained; by default the first.

        Raises:
            InvalidInput: there is no checkpoint.
            CheckpointCorrupt: it is damaged.
            Unknown: its algorithm, or a package that it used, is not installed here; or the seed was not trained.
        """
        return choose(cls.read_all(path, find), seed)

    @classmethod
    def read_all(cls, path: str | os.PathLike[str], find: Find) -> list[Loaded]:
        """All seeds of a checkpoint, in the order in which they were trained; arguments and errors as of `read`."""
        file = newest(path)
        tensors, told = checkpoint.read(file)
        if missing := [key for key in ("algorithm", "config", "space", "seeds", "step") if key not in told]:
            raise checkpoint.CheckpointCorrupt(f"checkpoint {file} does not say its {missing[0]}", hint="take another one")
        algorithm = find(told["algorithm"])
        if algorithm.name != told["algorithm"]:
            raise InvalidInput(f"checkpoint {file} is of the algorithm {told['algorithm']!r}, not {algorithm.name!r}")
        config, space = algorithm.configure(told["config"]), Space.from_json(told["space"])
        scalers = data.rebuild_scalers(config, space, _below("scaler/", tensors))
        nets = algorithm.nets(config, space)
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith("scaler/")}
        return [
            cls(algorithm, config, space, seed, int(told["step"]), nets, _of_seed(state, position), scalers, f"checkpoint {file}")
            for position, seed in enumerate(told["seeds"])
        ]

    @classmethod
    def of(cls, learner: Learner, seed: int | None = None) -> Loaded:
        """A copy of a learner's seed as it is now, on the CPU; raises `Unknown` for a seed that was not trained."""
        seed = learner.seeds[0] if seed is None else seed
        if seed not in learner.seeds:
            raise _no_seed(learner.algorithm.name, seed, learner.seeds)
        state = {name: tensor.detach().cpu() for name, tensor in learner.state.tensors().items()}
        scalers = {name: tensor.detach().cpu().clone() for name, tensor in learner.scalers.tensors().items()}
        mine = {name: tensor.clone() for name, tensor in _of_seed(state, learner.seeds.index(seed)).items()}
        return cls(
            learner.algorithm,
            learner.config,
            learner.space_,
            seed,
            learner.step,
            learner.nets,
            mine,
            data.rebuild_scalers(learner.config, learner.space_, scalers),
            f"a learner of {learner.algorithm.name}",
        )

    @property
    def params(self) -> Params:
        """The parameters of all networks, by the names that they give them."""
        return _below("params/", self.tensors)

    @property
    def target(self) -> Params:
        """The target copies."""
        return _below("target/", self.tensors)

    def policy(self) -> PolicyModule:
        """The greedy policy as a module, float32 on the CPU: environment's units in and out."""
        params = {name: tensor.to(torch.float32).clone() for name, tensor in self.params.items()}
        return PolicyModule(self.algorithm, self.config, self.nets, params, self.space, self.scalers)


def newest(path: str | os.PathLike[str]) -> Path:
    """The checkpoint file that ``path`` means: itself, or the newest of a run folder. Raises `InvalidInput` where there is none."""
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise InvalidInput(f"there is no checkpoint {os.fspath(path)!r}", hint="`offrl fetch JOB --kind checkpoint` brings one")
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = sorted(folder.glob("*.safetensors"))  # named by their steps, with leading zeros
    if not found:
        raise InvalidInput(f"there is no checkpoint in {os.fspath(path)!r}", hint="they are made about once a minute, and at the end")
    return found[-1]


def choose(trained: list[Loaded], seed: int | None) -> Loaded:
    """The one of ``seed``, or the first; raises `Unknown`."""
    if seed is None:
        return trained[0]
    for each in trained:
        if each.seed == seed:
            return each
    raise _no_seed(trained[0].origin, seed, [each.seed for each in trained])


def take_inputs(algorithm: Algorithm, config: Any, space: Space, given: Mapping[str, Loaded | Learner]) -> dict[str, Loaded]:
    """What the settings named in ``algorithm.inputs`` stand for, checked; those that are none, and not given, are left out.

    Args:
        given: setting -> what to take for it.

    Raises:
        InvalidInput: it is not of the algorithm that is needed, or was trained for other observations or actions; or an evaluation has
            no policy.
    """
    for name in given:
        if name not in algorithm.inputs:
            hint = f"it takes {', '.join(algorithm.inputs)}" if algorithm.inputs else "it takes none"
            raise Unknown(f"{algorithm.name} takes no input {name!r}", hint=hint)
    found = {}
    for name, wanted in algorithm.inputs.items():
        if name not in given:
            if getattr(config, name) is not None:
                raise InvalidInput(f"{name}={getattr(config, name)!r} is not loaded", hint=f"inputs={{{name!r}: offrld.load(...)}}")
            continue
        value = given[name]
        found[name] = value if isinstance(value, Loaded) else Loaded.of(value)
        _check(name, wanted, found[name], space)
    if algorithm.next_action == POLICY and POLICY not in found:
        raise InvalidInput(f"{algorithm.name} evaluates a policy, and none was named", hint="set policy to the job that trained it")
    return found


def _check(name: str, wanted: str, given: Loaded, space: Space) -> None:
    if not (given.algorithm.acts if wanted == POLICY else given.algorithm.name == wanted):
        what = "a policy" if wanted == POLICY else f"a run of {wanted}"
        raise InvalidInput(f"{name} takes {what}, {given.origin} is of {given.algorithm.name}", hint=f"train {what} first")
    if wanted == POLICY and given.algorithm.batch_kind == "windows":
        raise InvalidInput(f"{name}: {given.origin} is of {given.algorithm.name}, which acts on whole episodes", hint="run it instead")
    if given.space.observation != space.observation:
        mine, other = (
            ", ".join(f"{field} {dtype} {shape}" for field, (dtype, shape) in each.observation.items()) for each in (space, given.space)
        )
        raise InvalidInput(f"{name}: {given.origin} takes observations {other}, the dataset has {mine}")
    if (given.space.discrete, given.space.action_size) != (space.discrete, space.action_size):
        mine, other = (f"{each.action_size} {'discrete actions' if each.discrete else 'dimensions'}" for each in (space, given.space))
        raise InvalidInput(f"{name}: {given.origin} acts with {other}, the dataset has {mine}")


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_seed(state: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
    """One seed's part of `TrainState.tensors`; how often an optimiser moved is one number for all seeds."""
    return {name: tensor if name.endswith("/count") and tensor.dim() == 0 else tensor[position] for name, tensor in state.items()}


def _no_seed(where: str, seed: int, trained: Any) -> Unknown:
    return Unknown(f"{where}: seed {seed} was not trained", hint=f"trained: {', '.join(map(str, trained))}")
