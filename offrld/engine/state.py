"""The training state: a flat dict of tensors with a leading seed axis ``[S, ...]``, and the views through which updates move it.

Names: ``params/NAME``, ``target/NAME``, and per step ``adam/STAGE.STEP/first/NAME``, ``.../second/NAME``, ``.../count``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine.algorithm import Stage, State, Step
from offrld.nets import Params


@dataclass
class _Moments:
    """Adam's state of one step: tensors ``[S, ...]`` like the parameters that it moves, and how often it moved them."""

    first: Params
    second: Params
    counts: Tensor


@dataclass(frozen=True)
class View:
    """The state as losses and optimiser see it: one seed's tensors, or all seeds' together. Memory is shared with the state."""

    state: State
    leaves: dict[str, Params]                                # step -> the parameters that it differentiates
    moments: dict[str, tuple[list[Tensor], list[Tensor]]]    # step -> Adam's moments of these


@dataclass(frozen=True)
class Due:
    """A step of the schedule with all that it moves, over all views."""

    step: Step
    key: str
    moved: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]   # parameters, first and second moments, counts
    followers: tuple[tuple[list[Tensor], list[Tensor], float], ...]        # targets, online, rate


class TrainState:
    """Parameters, targets and moments of ``S`` seeds.

    Args:
        networks: name -> network; the parameters of each begin with its name.
        targets: the networks that have target copies, which start as exact copies.
        stages: their steps say which parameters have moments.
        data: constants of `Algorithm.prepare`, given to every loss.
        stacked: one view of all seeds together, rather than one per seed.
    """

    def __init__(
        self,
        networks: dict[str, Any],
        targets: Sequence[str],
        stages: Sequence[Stage],
        data: dict[str, Tensor],
        *,
        seeds: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        stacked: bool,
    ) -> None:
        per_seed = [_initial(networks, seed, dtype) for seed in seeds]
        self.params = {name: torch.stack([params[name] for params in per_seed]).to(device) for name in per_seed[0]}
        self.target = {name: value.clone() for name, value in of(targets, self.params).items()}
        self.moments: dict[str, _Moments] = {}
        steps = {key_of(stage, step): step for stage in stages for step in stage.schedule if step.loss is not None}
        for key, step in steps.items():
            mine = of(step.optimizes, self.params)
            first, second = ({name: torch.zeros_like(value) for name, value in mine.items()} for _ in range(2))
            self.moments[key] = _Moments(first, second, torch.zeros(1, device=device))
        self.views = [self._view(part, steps, data) for part in ([slice(None)] if stacked else range(len(seeds)))]
        self.schedules = {stage.name: [self._due(stage, step) for step in stage.schedule] for stage in stages}

    def _view(self, part: Any, steps: dict[str, Step], data: dict[str, Tensor]) -> View:
        params = {name: value[part] for name, value in self.params.items()}
        target = {name: value[part] for name, value in self.target.items()}
        # A leaf shares the memory of its parameter, so that the optimiser's in-place step is the parameter's step.
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        return View(
            State(params, target, data),
            {key: of(step.optimizes, leaves) for key, step in steps.items()},
            {key: ([t[part] for t in m.first.values()], [t[part] for t in m.second.values()]) for key, m in self.moments.items()},
        )

    def _due(self, stage: Stage, step: Step) -> Due:
        key = key_of(stage, step)
        moved: tuple[list[Tensor], ...] = ([], [], [], [])
        if step.loss is not None:
            for view in self.views:
                for collected, tensors in zip(moved, (view.leaves[key].values(), *view.moments[key]), strict=False):
                    collected.extend(tensors)
            moved[3].extend(self.moments[key].counts.unbind())
        followers = []
        for network, rate in step.polyak.items():
            targets = of((network,), self.target)
            followers.append((list(targets.values()), [self.params[name] for name in targets], rate))
        return Due(step, key, moved, tuple(followers))

    def of_seed(self, position: int, data: dict[str, Tensor]) -> State:
        """One seed's state, for reading."""
        params = {name: value[position].detach() for name, value in self.params.items()}
        return State(params, {name: value[position].detach() for name, value in self.target.items()}, data)

    def tensors(self) -> dict[str, Tensor]:
        """The flat dict; its tensors are the state itself."""
        tensors = {f"params/{name}": value for name, value in self.params.items()}
        tensors |= {f"target/{name}": value for name, value in self.target.items()}
        for key, moments in self.moments.items():
            tensors |= {f"adam/{key}/first/{name}": value for name, value in moments.first.items()}
            tensors |= {f"adam/{key}/second/{name}": value for name, value in moments.second.items()}
            tensors[f"adam/{key}/count"] = moments.counts[0]
        return tensors

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether `load` can take them: the same names and shapes."""
        mine = self.tensors()
        return mine.keys() == tensors.keys() and all(mine[name].shape == tensors[name].shape for name in mine)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the values of a flat dict that `fits`."""
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(tensors[name])
            for moments in self.moments.values():
                moments.counts.fill_(moments.counts[0].item())


def key_of(stage: Stage, step: Step) -> str:
    """The name under which a step's moments and gradients are kept."""
    return f"{stage.name}.{step.name}"


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
