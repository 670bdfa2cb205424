"""What an algorithm is: a frozen config, networks, pure losses and a schedule of steps. The engine does the rest.

A loss is ``loss(params, config, nets, state, batch) -> (scalar, metrics)``: it differentiates with respect to ``params`` (the
networks that its step optimises; the others are there as constants), reads everything else from ``state``, and takes its random
numbers from ``batch.noise``. It sees one seed; the engine runs it for many. No branch on a tensor, no ``.item()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from torch import Tensor

from offrl.errors import InvalidInput, Unknown, nearest
from offrld import settings
from offrld.engine.space import Space
from offrld.nets import Params
from offrld.preprocess.rewards import RewardScaler
from offrld.preprocess.scalers import ObservationScaler
from offrld.settings import setting


@dataclass(frozen=True)
class Config:
    """Settings that every algorithm has."""

    batch_size: int = setting(256, "transitions per update", unit="transitions", low=1, high=1_000_000)
    observation_scaler: ObservationScaler = ObservationScaler()


@dataclass(frozen=True)
class ValueConfig(Config):
    """Settings of every algorithm that learns values from rewards."""

    gamma: float = setting(0.99, "discount per step", low=0.0, high=1.0)
    n_steps: int = setting(1, "length of n-step returns", unit="steps", low=1, high=10_000)
    reward_scaler: RewardScaler = RewardScaler()


@dataclass(frozen=True)
class Batch:
    """One seed's batch as losses see it: scaled, on the training device.

    observation, next_observation ``[B, D]``; action ``[B, A]`` in [-1, 1] or ``[B]`` int64; reward (n-step sum), terminal (1 for a
    true end), discount (gamma^steps used) ``[B]``; next_action like action (for algorithms that ask for it); noise by name.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminal: Tensor
    discount: Tensor
    noise: dict[str, Tensor]
    next_action: Tensor | None = None


@dataclass(frozen=True)
class State:
    """What a loss may read as constants: all parameters, the target copies, and what `Algorithm.prepare` computed."""

    params: Params
    target: Params
    data: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Adam:
    """The Adam optimiser (Kingma & Ba 2015) of one step."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


Loss = Callable[[Params, Any, Any, State, Batch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Step:
    """One part of an update, done whenever ``k % every == 0`` (so on the very first update as well).

    In order: ``loss`` is differentiated with respect to the networks named in ``optimizes`` and ``optimizer`` moves them; then the
    target copies named in ``polyak`` follow by that rate (``target += rate * (online - target)``); 1.0 copies.
    """

    name: str
    loss: Loss | None = None
    optimizes: tuple[str, ...] = ()
    optimizer: Adam | None = None
    every: int = 1
    polyak: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A part of training with its own schedule: ``updates`` of it (None: all that are left)."""

    name: str
    schedule: tuple[Step, ...]
    updates: int | None = None


@dataclass(frozen=True)
class Noise:
    """Random numbers that a loss wants: ``shape`` of one seed's tensor, standard normal or uniform on [0, 1)."""

    shape: tuple[int, ...]
    distribution: Literal["normal", "uniform"] = "normal"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm as its file declares it.

    Attributes:
        name: the registry's name, in snake case.
        summary: one line for `offrl algos`.
        paper: where it comes from.
        actions: the kind of actions that it can learn.
        config: the settings with their defaults (which follow the paper).
        networks: ``(config, space) -> {name: network}``; each network's parameters begin with its name.
        schedule: ``config -> steps`` in the order in which an update does them.
        act: ``(nets, params, observation) -> `` greedy action ``[B, A]`` in [-1, 1], or the scores ``[B, n]`` of discrete actions.
        noise: ``(config, space) -> {name: Noise}``.
        targets: the networks that have target copies.
        presets: name -> settings; ``paper`` and ``d3rlpy`` exist for every algorithm.
        next_action: whether batches carry the dataset's next action.

    Hooks for what is special, declared rather than coded into the trainer:
        batch_kind: what a batch is made of.
        prepare: ``(store, config) -> {name: array}`` computed once from the dataset, given to losses as ``state.data``.
        stages: ``config -> stages`` where training has several; else there is one with ``schedule``.
        between: ``(learner, k) -> None`` before update ``k`` (model rollouts, rates that depend on what was seen).
        inputs: settings that name another job whose policy or model this algorithm takes.
    """

    name: str
    summary: str
    paper: str
    actions: Literal["continuous", "discrete", "both"]
    config: Config
    networks: Callable[[Any, Space], dict[str, Any]]
    schedule: Callable[[Any], tuple[Step, ...]]
    act: Callable[[SimpleNamespace, Params, Tensor], Tensor]
    noise: Callable[[Any, Space], dict[str, Noise]] = lambda config, space: {}
    targets: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    next_action: bool = False
    batch_kind: Literal["transitions"] = "transitions"
    prepare: Callable[[Any, Any], dict[str, Any]] | None = None
    stages: Callable[[Any], tuple[Stage, ...]] | None = None
    between: Callable[[Any, int], None] | None = None
    inputs: tuple[str, ...] = ()

    def configure(self, values: Mapping[str, Any] | None = None, preset: str | None = None) -> Any:
        """The config with a preset and then ``values`` (dotted names) applied; raises `Unknown` or `InvalidInput`."""
        if preset is not None and preset not in self.presets:
            raise Unknown(f"algorithm {self.name!r} has no preset {preset!r}", hint=nearest(preset, list(self.presets)))
        return settings.build(self.config, self.presets[preset] if preset is not None else {}, values or {})

    def check(self, space: Space) -> None:
        """Raise `InvalidInput` where the dataset's actions are of the wrong kind."""
        kind = "discrete" if space.discrete else "continuous"
        if self.actions not in ("both", kind):
            raise InvalidInput(
                f"algorithm {self.name!r} learns {self.actions} actions, the dataset has {kind} ones",
                hint=f"`offrl algos` lists the {kind} algorithms",
            )
