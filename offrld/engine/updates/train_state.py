"""The training state: a flat dict of tensors with a leading seed axis ``[S, ...]``, and the views through which updates move it.

Names: ``params/NAME``, ``target/NAME``, ``memory/NAME`` (the carry; checkpoints keep its earlier name), and per step
``optimizer/STAGE.STEP/PART/NAME`` with ``.../count``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine.definition.algorithm import Stage, State, Step, by_name
from offrld.engine.definition.optimizer import parts_of
from offrld.engine.definition.run import Run
from offrld.nets import Params, is_buffer


@dataclass
class Moments:
    """The optimizer's state of one step: for each part (Adam: first, second) tensors ``[S, ...]`` like its parameters, and the count of its
    moves."""

    parts: dict[str, Params]
    counts: Tensor  # one per view, all equal


@dataclass(frozen=True)
class View:
    """The state as losses and optimizer see it: one seed's tensors, or all seeds' together. Memory is shared with the state."""

    state: State
    leaves: dict[str, Params]  # step -> the parameters whose gradients it takes
    moments: dict[str, dict[str, list[Tensor]]]  # step -> the optimizer's tensors of these


@dataclass(frozen=True)
class Due:
    """A step of the schedule with the tensors that it moves."""

    step: Step
    key: str  # of its gradients
    moments_key: str  # of its optimizer state
    names: tuple[str, ...]  # of the parameters that it moves
    groups: tuple[tuple[list[Tensor], dict[str, list[Tensor]], Tensor], ...]  # per view: parameters, optimizer's tensors, count
    followers: tuple[tuple[list[Tensor], list[Tensor], float], ...]  # targets, online, rate


class TrainState:
    """Parameters, targets, optimizer state and carry of ``S`` seeds.

    Args:
        run: its networks, targets, stages and carry decide the tensors; the parameters of each network begin with its name.
        data: constants of `Algorithm.prepare`, given to every loss.
    """

    def __init__(self, run: Run, data: dict[str, Tensor]) -> None:
        seeds, dtype, device, networks = run.seeds, run.dtype, run.device, by_name(run.nets)
        carry = run.algorithm.carry(run.config, run.space)
        self.data = data
        per_seed = [_initial(networks, seed, dtype) for seed in seeds]
        self.params = {name: torch.stack([params[name] for params in per_seed]).to(device) for name in per_seed[0]}
        self.target = {name: value.clone() for name, value in of(run.algorithm.targets, self.params).items()}
        self.carry = {name: torch.zeros(len(seeds), *shape, dtype=dtype, device=device) for name, shape in carry.items()}
        self.moments: dict[str, Moments] = {}
        steps = {key_of(stage, step): step for stage in run.stages for step in stage.schedule if step.loss is not None}
        for stage in run.stages:
            for step in stage.schedule:
                key = moments_of(stage, step)
                if step.loss is None or key in self.moments:
                    continue
                mine = trained(step.optimizes, self.params)
                parts = {part: {n: torch.zeros_like(v) for n, v in mine.items()} for part in parts_of(step.optimizer)}
                self.moments[key] = Moments(parts, torch.zeros(len(run.groups), device=device))
        self.views = [self._view(part, steps, data) for part in ([slice(None)] if run.stacked else range(len(seeds)))]
        self.schedules = {stage.name: [self._due(stage, step) for step in stage.schedule] for stage in run.stages}

    def _view(self, part: Any, steps: dict[str, Step], data: dict[str, Tensor]) -> View:
        params = {name: value[part] for name, value in self.params.items()}
        target = {name: value[part] for name, value in self.target.items()}
        carry = {name: value[part] for name, value in self.carry.items()}
        # A leaf shares the memory of its parameter, so that the optimizer's in-place step is the parameter's step.
        leaves = {name: value.detach().requires_grad_() for name, value in params.items() if not is_buffer(name)}
        return View(
            State(params, target, data, carry),
            {key: of(step.optimizes, leaves) for key, step in steps.items()},
            {key: {p: [t[part] for t in ts.values()] for p, ts in m.parts.items()} for key, m in self.moments.items()},
        )

    def _due(self, stage: Stage, step: Step) -> Due:
        key, followers = key_of(stage, step), []
        for network, rate in step.polyak.items():
            targets = of((network,), self.target)
            online = {name: self.params[name] for name in targets}
            for buffers in (False, True):  # statistics of a batch norm are copied: an average of averages lags behind the weights
                chosen = [name for name in targets if is_buffer(name) == buffers]
                if chosen:
                    followers.append(([targets[n] for n in chosen], [online[n] for n in chosen], 1.0 if buffers else rate))
        if step.loss is None:
            return Due(step, key, "", (), (), tuple(followers))
        moments_key, groups = moments_of(stage, step), []
        counts = self.moments[moments_key].counts.unbind()
        for position, view in enumerate(self.views):
            groups.append((list(view.leaves[key].values()), view.moments[moments_key], counts[position]))
        names = tuple(self.views[0].leaves[key])
        return Due(step, key, moments_key, names, tuple(groups), tuple(followers))

    def update(self, position: int, values: dict[str, Tensor]) -> None:
        """Store the new values of buffers and of the carry from the losses of view ``position``."""
        state = self.views[position].state
        for name, value in values.items():
            kind, _, rest = name.partition("/")
            (state.carry[rest] if kind == "memory" else state.params[name]).copy_(value.detach())

    def of_seed(self, position: int, data: dict[str, Tensor]) -> State:
        """One seed's state, for reading."""
        params, target = ({name: value[position].detach() for name, value in part.items()} for part in (self.params, self.target))
        return State(params, target, data, {name: value[position] for name, value in self.carry.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The flat dict; its tensors are the state itself."""
        tensors = {f"params/{name}": value for name, value in self.params.items()}
        tensors |= {f"target/{name}": value for name, value in self.target.items()}
        tensors |= {f"memory/{name}": value for name, value in self.carry.items()}
        for key, moments in self.moments.items():
            for part, values in moments.parts.items():
                tensors |= {f"optimizer/{key}/{part}/{name}": value for name, value in values.items()}
            tensors[f"optimizer/{key}/count"] = moments.counts[0]
        return tensors

    def moving(self) -> list[Tensor]:
        """Every tensor that an update writes to."""
        return [*self.tensors().values(), *(moments.counts for moments in self.moments.values())]

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether `load` takes these tensors: the same names and shapes."""
        mine = self.tensors()
        return mine.keys() == tensors.keys() and all(mine[name].shape == tensors[name].shape for name in mine)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy the values of a flat dict that `fits`."""
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(tensors[name])
            for moments in self.moments.values():
                moments.counts.fill_(moments.counts[0].item())


def key_of(stage: Stage, step: Step) -> str:
    """The key of a step's gradients."""
    return f"{stage.name}.{step.name}"


def moments_of(stage: Stage, step: Step) -> str:
    """The key of a step's optimizer state."""
    return f"{stage.name}.{step.moments or step.name}"


def trained(networks: Sequence[str], params: Params) -> Params:
    """The trained parameters of some networks: all but the buffers."""
    return {name: value for name, value in of(networks, params).items() if not is_buffer(name)}


def of(networks: Sequence[str], params: Params) -> Params:
    """The parameters of some networks."""
    return {name: value for name, value in params.items() if name.split(".")[0] in networks}


def _initial(networks: dict[str, Any], seed: int, dtype: torch.dtype) -> Params:
    params: Params = {}
    for name, network in networks.items():
        # A generator per network: its numbers do not depend on which networks are made before it.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        params.update(network.init(generator, dtype))
    return params
