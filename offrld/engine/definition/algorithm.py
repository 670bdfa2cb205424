"""The form of an algorithm: a frozen config, networks, pure losses and a schedule of steps. The engine does the rest.

A loss is ``loss(params, config, nets, state, batch) -> (scalar, metrics)``. The engine differentiates it with respect to the parameters
in ``params`` that its step optimises (``params`` holds the others as constants). The loss reads everything else from ``state`` and
takes its random numbers from ``batch.noise``. It is written for one seed and runs for many: it must not branch on a tensor's value or call
``.item()``.

``params`` are in training mode (dropout, statistics of the batch), ``state.params`` and ``state.target`` in evaluation mode: a
policy's loss therefore evaluates the Q functions with ``state.params``. See `offrld.nets.context`.
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
    frame_stack: int = setting(1, "observations seen at once: the newest and the ones before it", unit="observations", low=1, high=1024)
    observation_scaler: ObservationScaler = ObservationScaler()


@dataclass(frozen=True)
class ActionConfig:
    """Settings of algorithms that learn continuous actions, beside `Config`."""

    action_scaler: ActionScaler = ActionScaler()


@dataclass(frozen=True)
class ValueConfig(Config):
    """Settings of every algorithm that learns values from rewards."""

    gamma: float = setting(0.99, "discount per step", low=0.0, high=1.0)
    n_steps: int = setting(1, "length of n-step returns", unit="steps", low=1, high=10_000)
    reward_scaler: RewardScaler = RewardScaler()


@dataclass(frozen=True)
class Batch:
    """One seed's transitions as losses see them: scaled, on the training device.

    Attributes:
        observation, next_observation: of the shape `Space.view`: ``[B, D]``, ``[B, C, H, W]``, or a dict of such.
        action: ``[B, A]`` in [-1, 1], or ``[B]`` int64.
        reward: the n-step sum, ``[B]``.
        terminal: 1 for a true end of the episode, ``[B]``.
        discount: gamma^n for the n steps of the sum, ``[B]``.
        noise: random numbers by the names of `Algorithm.noise`.
        key: a 0-d int64 tensor, from which networks draw their own random numbers.
        next_action: like ``action``; for algorithms with `Algorithm.next_action`.
        returns: discounted rewards to the episode's end, ``[B]``; for algorithms with `Algorithm.returns`.
        weight: how much each transition of a prioritized sampler counts, ``[B]``; None: all count alike.
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
        """Multiply the ``values`` of the transitions, which lie along ``axis``, by their weights."""
        if self.weight is None:
            return values
        shape = [1] * values.dim()
        shape[axis] = -1
        return values * self.weight.reshape(shape)

    def mean(self, values: Tensor) -> Tensor:
        """Average ``values [B, ...]``, each transition's multiplied by its weight. Losses end with it."""
        return self.weighted(values).mean()


@dataclass(frozen=True)
class Windows:
    """One seed's windows of L consecutive steps, for sequence models; positions before an episode's start, on the left, hold zeros.

    observation ``[B, L, ...]``, action ``[B, L, A]`` or ``[B, L]`` int64; reward, returns_to_go (undiscounted, to the episode's end),
    terminal and mask (1 for a real step) ``[B, L]``; timesteps ``[B, L]`` int64, from 1; noise and key as in `Batch`.
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
    """Steps that the policy itself has just played, for algorithms that learn from nothing older.

    observation as in `Batch`; action ``[B, A]`` as it was drawn, before any bound, or ``[B]`` int64. The rest is ``[B]`` each: the action's
    log density and the state's value when it was played, the advantage, and the return; noise and key as in `Batch`.
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
    """The constants of a loss: all parameters, target copies, the result of `Algorithm.prepare`, and the tensors of `Algorithm.carry`."""

    params: Params
    target: Params
    data: dict[str, Tensor] = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, Tensor]:
        """The earlier name of ``carry``, which losses of installed packages may still read."""
        return self.carry


LossResult = tuple[Tensor, dict[str, Tensor]]  # the scalar to differentiate, and the metrics by name
Loss = Callable[[Params, Any, Any, State, Any], LossResult]  # (params, config, nets, state, batch)


@dataclass(frozen=True)
class Step:
    """One part of an update, done in every update ``k`` with ``start <= k < until`` and ``k % every == 0``.

    In order: ``loss`` is differentiated with respect to the networks named in ``optimizes`` and ``optimizer`` moves them; then the
    target copies named in ``polyak`` follow at their rates: ``target += rate * (online - target)``; 1.0 copies.

    Attributes:
        moments: the step whose optimizer state this step shares; None: it has its own. Both optimise the same networks.
        rate: a factor on the learning rate, computed from the carry: a 0-d tensor, for schedules that depend on the data seen so far.
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
        """Whether update ``k`` does it."""
        return k % self.every == 0 and k >= self.start and (self.until is None or k < self.until)


@dataclass(frozen=True)
class Stage:
    """A part of training with its own schedule, for ``updates`` updates (None: all that are left).

    ``single_steps``: its batches hold single steps, whatever ``n_steps`` is, as models of the environment need.
    """

    name: str
    schedule: tuple[Step, ...]
    updates: int | None = None
    single_steps: bool = False


@dataclass(frozen=True)
class Noise:
    """Random numbers for a loss: the ``shape`` of one seed's tensor, and whether they are standard normal or uniform on [0, 1)."""

    shape: tuple[int, ...]
    distribution: Literal["normal", "uniform"] = "normal"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm as its file declares it.

    Attributes:
        name: the registry's name, in snake case.
        summary: one line for `offrl algos`.
        paper: its reference.
        actions: the kind of actions that it learns.
        config: the settings with their defaults (which follow the paper).
        networks: ``(config, space) -> `` a frozen dataclass with one field per network, or a dict of networks by name. A network's
            parameters begin with its name; a field that is None stands for a network that this config does without.
        schedule: ``config -> steps`` in the order in which an update does them.
        act: ``(params, config, nets, observation) -> `` greedy action ``[B, A]`` in [-1, 1], or the scores ``[B, n]`` of discrete
            actions; without random numbers. A sequence model gets an
            `offrld.engine.learner.sequence_policy.ActingWindow` as its observation.
        candidates: ``(params, config, nets, observation) -> `` actions ``[K, B, A]`` in [-1, 1] and their scores ``[K, B]``, if ``act``
            takes the best of several: code that sums in another order may choose another candidate of the same score.
        sample: ``(params, config, nets, observation, noise) -> `` an action drawn from a stochastic policy by standard normal noise
            ``[B, A]``; None: it acts greedily.
        draws_scores: discrete actions are drawn by the softmax of ``act``'s scores.
        value: ``(params, config, nets, observation, action) -> `` values ``[N, B]`` of the ensemble; None for algorithms without values.
        play: ``(params, nets, observation, noise) -> `` an action as it is drawn, its log probability and the state's value, for algorithms
            that learn from rollouts; ``noise [B, A]`` is standard normal, or uniform ``[B, n]`` for discrete actions.
        noise: ``(config, space) -> {name: Noise}``.
        targets: the networks that have target copies.
        presets: name -> settings; every algorithm has ``paper``.
        next_action: whether batches hold the dataset's next action; ``policy``: they hold that of the policy in ``inputs``.
        returns: whether batches hold the return from the transition on.

    Hooks, which keep special cases out of the trainer:
        batch_kind: the contents of a batch: `Batch`, `Windows` (of ``config.context_size`` steps), or `Rollout`, which no dataset has:
            such an algorithm learns from its own play (`offrld.collect.on_policy`).
        carry: ``(config, space) -> {name: shape}`` of tensors that one update hands to the next. They live in the training state, one
            set per seed, and start as zeros; losses set them by `offrld.nets.remember`, ``between`` writes into them.
            ``memory`` is the earlier name of this argument.
        prepare: ``(dataset, config) -> {name: array}`` computed once from the training episodes (a `Dataset`); losses read
            it as ``state.data``.
        stages: ``config -> stages`` if training has several; None: one stage with ``schedule``.
        between: ``(learner, k) -> None``, called before update ``k`` (model rollouts, rates that depend on the data seen so far).
        next_between: ``(config, k) -> `` the first update after ``k`` before which ``between`` acts again, so that the updates up to it may
            run as one graph; None: the next update.
        acts: whether ``act`` is a policy that is learned here; false for models of the environment and evaluations of another policy.
        inputs: settings (text, or none) that name another job whose result this algorithm uses, each with the algorithm that the job must
            have, or ``policy`` for any algorithm that learns to act. From before ``prepare`` on, ``learner.inputs`` holds the results
            as `offrld.engine.learner.loaded.Loaded`.
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
        """Whether a run yields a policy: a learned one, or the one that it evaluates."""
        return self.acts or "policy" in self.inputs.values()

    def nets(self, config: Any, space: Space) -> Any:
        """Build the networks of a config, each an attribute of the algorithm's dataclass, or of a namespace made from its dict."""
        networks = self.networks(config, space)
        return SimpleNamespace(**networks) if isinstance(networks, Mapping) else networks

    def configure(self, values: Mapping[str, Any] | None = None, preset: str | None = None) -> Any:
        """Apply a preset and then ``values`` (dotted names) to the default config; raises `Unknown` or `InvalidInput`."""
        if preset is not None and preset not in self.presets:
            raise Unknown(f"algorithm {self.name!r} has no preset {preset!r}", hint=nearest(preset, list(self.presets)))
        return settings.build(self.config, self.presets[preset] if preset is not None else {}, values or {})

    @property
    def plays(self) -> bool:
        """Whether it learns from its own play instead of a dataset."""
        return self.batch_kind == "rollouts"

    @property
    def sampler(self) -> Literal["transitions", "windows"]:
        """The method of a store that samples its batches; raises `InvalidInput` for an algorithm that learns from its own play."""
        if self.batch_kind == "rollouts":
            raise InvalidInput(f"{self.name} learns from its own play, not from a dataset", hint="give it an environment")
        return self.batch_kind

    def check(self, space: Space) -> None:
        """Raise `InvalidInput` if the dataset's actions are of the wrong kind."""
        check_kind(self.name, self.actions, discrete=space.discrete)


def by_name(nets: Any) -> dict[str, Any]:
    """The networks of `Algorithm.nets` by name, without those that the config does without."""
    return {name: network for name, network in vars(nets).items() if network is not None}
