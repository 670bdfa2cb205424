"""The form of an algorithm: a frozen config, networks, pure losses and a schedule of steps. The engine does the rest.

A loss is ``loss(params, config, nets, state, batch) -> (scalar, metrics)``. The engine differentiates it with respect to the parameters
in ``params`` that its step optimizes (``params`` holds the others as constants). The loss reads everything else from ``state`` and
takes its random numbers from ``batch.noise``. It is written for one seed and runs for many, so it must not branch on a tensor's value or
call ``.item()``.

``params`` are in training mode (dropout, batch statistics), ``state.params`` and ``state.target`` in evaluation mode. A policy's loss
therefore evaluates the Q functions with ``state.params``. See `offrld.nets.context`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from torch import Tensor

from offrl.errors import InvalidInput, Unknown, nearest
from offrld import settings
from offrld.engine.definition.optimizer import Optimizer
from offrld.engine.definition.space import Space
from offrld.fits import check_kind
from offrld.nets import Observation, Params
from offrld.preprocess.rewards import RewardScaler
from offrld.preprocess.scalers import ActionScaler, ObservationScaler
from offrld.settings import setting


@dataclass(frozen=True)
class Config:
    """Settings that every algorithm has."""

    batch_size: int = setting(256, "transitions per update", unit="transitions", low=1, high=1_000_000)
    frame_stack: int = setting(1, "number of consecutive observations that the networks see at once", unit="observations", low=1, high=1024)
    observation_scaler: ObservationScaler = ObservationScaler()


@dataclass(frozen=True)
class ActionConfig:
    """Settings of algorithms with continuous actions, in addition to `Config`."""

    action_scaler: ActionScaler = ActionScaler()


@dataclass(frozen=True)
class ValueConfig(Config):
    """Settings of every algorithm that learns values from rewards."""

    gamma: float = setting(0.99, "discount per step", low=0.0, high=1.0)
    n_steps: int = setting(1, "number of steps in n-step returns", unit="steps", low=1, high=10_000)
    reward_scaler: RewardScaler = RewardScaler()


@dataclass(frozen=True)
class Batch:
    """One seed's transitions as losses see them: scaled, on the training device.

    Attributes:
        observation, next_observation: in the shape of `Space.view`: ``[B, D]``, ``[B, C, H, W]``, or a dict of such tensors.
        action: ``[B, A]`` in [-1, 1], or int64 ``[B]``.
        reward: the n-step sum, ``[B]``.
        terminal: 1 for a true end of the episode, ``[B]``.
        discount: gamma^n for the n steps of the sum, ``[B]``.
        noise: random numbers by the names of `Algorithm.noise`.
        key: a 0-d int64 tensor, from which networks draw their own random numbers.
        next_action: like ``action``; for algorithms with `Algorithm.next_action`.
        returns: discounted return to the episode's end, ``[B]``; for algorithms with `Algorithm.returns`.
        weight: weight of each transition from a prioritized sampler, ``[B]``; None: equal weights.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    next_observation: Observation
    terminal: Tensor
    discount: Tensor
    noise: dict[str, Tensor]
    key: Tensor
    next_action: Tensor | None = None
    returns: Tensor | None = None
    weight: Tensor | None = None

    def weighted(self, values: Tensor, axis: int = 0) -> Tensor:
        """Multiply the transitions' ``values`` along ``axis`` by their weights."""
        if self.weight is None:
            return values
        shape = [1] * values.dim()
        shape[axis] = -1
        return values * self.weight.reshape(shape)

    def mean(self, values: Tensor) -> Tensor:
        """Average ``values [B, ...]`` after multiplying each transition's values by its weight; losses end with this."""
        return self.weighted(values).mean()


@dataclass(frozen=True)
class Windows:
    """One seed's windows of L consecutive steps, for sequence models; zeros on the left pad positions before an episode's start.

    observation ``[B, L, ...]``, action ``[B, L, A]`` or int64 ``[B, L]``; reward, returns_to_go (undiscounted, to the episode's end),
    terminal and mask (1 for a real step) ``[B, L]``; timesteps int64 ``[B, L]``, counted from 1; noise and key as in `Batch`.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    returns_to_go: Tensor
    terminal: Tensor
    mask: Tensor
    timesteps: Tensor
    noise: dict[str, Tensor]
    key: Tensor


@dataclass(frozen=True)
class Rollout:
    """Steps that the current policy has just taken, for on-policy algorithms.

    observation as in `Batch`; action as drawn, before bounds apply, ``[B, A]``, or int64 ``[B]``. The others are ``[B]``: the action's log
    density and the state's value at the time of the step, the advantage, and the return; noise and key as in `Batch`.
    """

    observation: Observation
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor
    noise: dict[str, Tensor]
    key: Tensor


KINDS = {"transitions": Batch, "windows": Windows, "rollouts": Rollout}


@dataclass(frozen=True)
class State:
    """The constants of a loss: all parameters, target networks, the result of `Algorithm.prepare`, and the tensors of `Algorithm.carry`."""

    params: Params
    target: Params
    data: dict[str, Tensor] = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, Tensor]:
        """The earlier name of ``carry``, which other packages' losses may still use."""
        return self.carry


LossResult = tuple[Tensor, dict[str, Tensor]]  # the scalar to differentiate, and the metrics by name
Loss = Callable[[Params, Any, Any, State, Any], LossResult]  # (params, config, nets, state, batch)


@dataclass(frozen=True)
class Step:
    """One part of an update; it runs in every update ``k`` with ``start <= k < until`` and ``k % every == 0``.

    First ``loss`` is differentiated with respect to the networks named in ``optimizes``, and ``optimizer`` moves them. Then the target
    networks named in ``polyak`` move at their rates: ``target += rate * (online - target)``; a rate of 1.0 copies.

    Attributes:
        moments: the step whose optimizer state this step shares; None: it has its own. Both optimize the same networks.
        rate: computes a factor on the learning rate from the carry, a 0-d tensor; for schedules that depend on the data so far.
    """

    name: str
    loss: Loss | None = None
    optimizes: tuple[str, ...] = ()
    optimizer: Optimizer = Optimizer()
    learning_rate: float = 0.0
    every: int = 1
    polyak: Mapping[str, float] = field(default_factory=dict)
    start: int = 0
    until: int | None = None
    moments: str | None = None
    rate: Callable[[dict[str, Tensor]], Tensor] | None = None

    def due(self, k: int) -> bool:
        """Return whether update ``k`` runs this step."""
        return k % self.every == 0 and k >= self.start and (self.until is None or k < self.until)


@dataclass(frozen=True)
class Stage:
    """A part of training with its own schedule, for ``updates`` updates (None: all remaining ones).

    ``single_steps``: its batches hold 1-step transitions whatever ``n_steps`` is, as models of the environment need.
    """

    name: str
    schedule: tuple[Step, ...]
    updates: int | None = None
    single_steps: bool = False


@dataclass(frozen=True)
class Noise:
    """Random numbers for a loss: the ``shape`` of one seed's tensor, and the distribution, standard normal or uniform on [0, 1)."""

    shape: tuple[int, ...]
    distribution: Literal["normal", "uniform"] = "normal"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm, as its file declares it.

    Attributes:
        name: the registry's name, in snake case.
        summary: one line for `offrl algos`.
        paper: the reference.
        actions: the kind of actions that it supports.
        config: the settings with their defaults (which follow the paper).
        networks: ``(config, space) -> `` a frozen dataclass with one field per network, or a dict of networks by name. A network's
            parameters start with its name; a field is None if this config does not need that network.
        schedule: ``config -> steps``, in their order within an update.
        act: ``(params, config, nets, observation) -> `` greedy action ``[B, A]`` in [-1, 1], or the scores ``[B, n]`` of discrete
            actions; without random numbers. A sequence model gets an
            `offrld.engine.learner.sequence_policy.ActingWindow` as its observation.
        candidates: ``(params, config, nets, observation) -> `` actions ``[K, B, A]`` in [-1, 1] and their scores ``[K, B]``, if ``act``
            takes the best of several. Code that sums in another order may then choose another candidate of the same score.
        sample: ``(params, config, nets, observation, noise) -> `` an action of a stochastic policy, drawn with standard normal noise
            ``[B, A]``; None: the policy acts greedily.
        draws_scores: discrete actions are drawn from the softmax of ``act``'s scores.
        value: ``(params, config, nets, observation, action) -> `` values ``[N, B]`` of the ensemble; None for algorithms without values.
        play: ``(params, nets, observation, noise) -> `` a drawn action, its log probability and the state's value, for algorithms that
            learn from rollouts; the noise is standard normal ``[B, A]``, or uniform ``[B, n]`` for discrete actions.
        noise: ``(config, space) -> {name: Noise}``.
        targets: the networks that have target networks.
        presets: name -> settings; every algorithm has ``paper``.
        next_action: whether batches hold the dataset's next action; ``policy``: the next action of the policy in ``inputs``.
        returns: whether batches hold the return from each transition on.

    Hooks, which keep special cases out of the trainer:
        batch_kind: the type of a batch: `Batch`, `Windows` (of ``config.context_size`` steps), or `Rollout`, which does not come from a
            dataset: such an algorithm learns from its own rollouts (`offrld.collect.on_policy`).
        carry: ``(config, space) -> {name: shape}`` of tensors that one update passes to the next. They are part of the training state, one
            set per seed, and start as zeros; losses set them with `offrld.nets.remember`, and ``between`` writes to them.
            ``memory`` is the earlier name of this argument.
        prepare: ``(dataset, config) -> {name: array}``, computed once from the training episodes (a `Dataset`); losses read
            it as ``state.data``.
        stages: ``config -> stages`` if training has several; None: one stage with ``schedule``.
        between: ``(learner, k) -> None``, called before update ``k`` (model rollouts, rates that depend on the data so far).
        next_between: ``(config, k) -> `` the next update after ``k`` before which ``between`` has work, so that the updates up to it can
            run as one graph; None: the next update.
        acts: whether ``act`` is a policy that is learned here; false for models of the environment and evaluations of another policy.
        inputs: settings (text, or none) that name another job whose result this algorithm uses, each with the required algorithm of that
            job, or ``policy`` for any algorithm that learns a policy. ``learner.inputs`` holds the results, as
            `offrld.engine.learner.loaded.Loaded`, by the time ``prepare`` runs.
    """

    name: str
    summary: str
    paper: str
    actions: Literal["continuous", "discrete", "both"]
    config: Config
    networks: Callable[[Any, Space], Any]
    schedule: Callable[[Any], tuple[Step, ...]]
    act: Callable[[Params, Any, Any, Any], Tensor]
    noise: Callable[[Any, Space], dict[str, Noise]] = lambda config, space: {}
    targets: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    candidates: Callable[[Params, Any, Any, Observation], tuple[Tensor, Tensor]] | None = None
    sample: Callable[[Params, Any, Any, Observation, Tensor], Tensor] | None = None
    draws_scores: bool = False
    value: Callable[[Params, Any, Any, Observation, Tensor], Tensor] | None = None
    play: Callable[[Params, Any, Observation, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    next_action: bool | Literal["policy"] = False
    returns: bool = False
    batch_kind: Literal["transitions", "windows", "rollouts"] = "transitions"
    carry: Callable[[Any, Space], dict[str, tuple[int, ...]]] = lambda config, space: {}
    prepare: Callable[[Any, Any], dict[str, Any]] | None = None
    stages: Callable[[Any], tuple[Stage, ...]] | None = None
    between: Callable[[Any, int], None] | None = None
    next_between: Callable[[Any, int], int] | None = None
    acts: bool = True
    inputs: Mapping[str, str] = field(default_factory=dict)
    memory: InitVar[Callable[[Any, Space], dict[str, tuple[int, ...]]] | None] = None

    def __post_init__(self, memory: Callable[[Any, Space], dict[str, tuple[int, ...]]] | None) -> None:
        if memory is not None:
            object.__setattr__(self, "carry", memory)

    @property
    def has_policy(self) -> bool:
        """Whether a run yields a policy: the one that it learns, or the one that it evaluates."""
        return self.acts or "policy" in self.inputs.values()

    def nets(self, config: Any, space: Space) -> Any:
        """Build the networks of a config, as attributes of the algorithm's dataclass, or of a namespace if it returns a dict."""
        networks = self.networks(config, space)
        return SimpleNamespace(**networks) if isinstance(networks, Mapping) else networks

    def configure(self, values: Mapping[str, Any] | None = None, preset: str | None = None) -> Any:
        """Apply a preset and then ``values`` (dotted names) to the default config; raise `Unknown` or `InvalidInput`."""
        if preset is not None and preset not in self.presets:
            raise Unknown(f"algorithm {self.name!r} has no preset {preset!r}", hint=nearest(preset, list(self.presets)))
        return settings.build(self.config, self.presets[preset] if preset is not None else {}, values or {})

    @property
    def plays(self) -> bool:
        """Whether the algorithm learns from its own rollouts instead of a dataset."""
        return self.batch_kind == "rollouts"

    @property
    def sampler(self) -> Literal["transitions", "windows"]:
        """The store's method that samples its batches. Raises `InvalidInput` if the algorithm learns from its own rollouts."""
        if self.batch_kind == "rollouts":
            raise InvalidInput(f"{self.name} learns from its own rollouts, not from a dataset", hint="give it an environment")
        return self.batch_kind

    def check(self, space: Space) -> None:
        """Raise `InvalidInput` if the dataset's actions are of the wrong kind."""
        check_kind(self.name, self.actions, discrete=space.discrete)


def by_name(nets: Any) -> dict[str, Any]:
    """Return the networks of `Algorithm.nets` by name, without those that the config does not need."""
    return {name: network for name, network in vars(nets).items() if network is not None}
