"""Training on imagined transitions: the settings, stages, rollouts and mixed batches that MOPO and COMBO share.

Before the first policy update, and then every `rollout_interval` updates, rollouts start from `rollout_batch_size` observations of the
data. At each of their `rollout_horizon` steps the policy acts and a random member of the ensemble predicts the outcome. The transitions go
into a first-in-first-out buffer in the training state. A fraction `real_ratio` of a batch is real, the rest imagined. Imagined transitions
are never terminal; n-step returns run along a rollout.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl_store import rng
from offrld.engine import Batch, Learner, Loss, LossResult, Noise, Optimizer, Scaler, Scalers, Space, Stage, State, Step, setting
from offrld.losses import dynamics, sac
from offrld.nets import Encoder, Params
from offrld.nets.dynamics import EnsembleDynamics

DYNAMICS = "ensemble_dynamics"


@dataclass(frozen=True)
class ModelBasedConfig(sac.SACConfig):
    """Settings of the family, in addition to SAC's."""

    update_actor_interval: int = setting(
        1, "critic updates per update of the policy, the temperature and the target", unit="updates", low=1
    )
    dynamics: str | None = setting(None, "ensemble_dynamics job to use; none: train the ensemble first, in a stage of this job")
    dynamics_steps: int = setting(50_000, "dynamics updates in the first stage, if no job is named", unit="updates", low=1, probe=2)
    dynamics_batch_size: int = setting(100, "transitions per update of the dynamics", unit="transitions", low=1, high=1_000_000)
    dynamics_learning_rate: float = setting(1e-3, "learning rate of the dynamics", low=0.0, exclusive_low=True)
    n_ensembles: int = setting(5, "number of models in the ensemble", low=1, high=100)
    rollout_interval: int = setting(1000, "updates between rollouts", unit="updates", low=1, probe=2)
    rollout_horizon: int = setting(5, "steps per rollout", unit="steps", low=1, high=1000)
    rollout_batch_size: int = setting(50_000, "rollouts generated at once", unit="rollouts", low=1, high=10_000_000, probe=7)
    real_ratio: float = setting(0.5, "fraction of real transitions in a batch", low=0.0, high=1.0)
    generated_maxlen: int = setting(
        1_250_000, "capacity of the buffer of imagined transitions", unit="transitions", low=1, high=16_000_000, probe=64
    )
    dynamics_encoder: Encoder = Encoder()
    dynamics_optimizer: Optimizer = Optimizer(weight_decay=1e-4)


@dataclass(frozen=True)
class Nets(sac.Nets):
    """The networks of the family; ``dynamics`` is None if another job trained the ensemble."""

    dynamics: EnsembleDynamics | None = None


def networks(config: ModelBasedConfig, space: Space) -> Nets:
    """Build SAC's networks, and the ensemble unless another job trained it."""
    ensemble = None if config.dynamics is not None else dynamics.networks(config, space, config.dynamics_encoder).dynamics
    return Nets(**vars(sac.networks(config, space)), dynamics=ensemble)


def noise(config: ModelBasedConfig, space: Space) -> dict[str, Noise]:
    """Declare SAC's noise, the bootstrap's coins, and the choice of imagined transitions."""
    return {**sac.noise(config, space), **dynamics.noise(config, space), "imagined": Noise((config.batch_size - real(config),), "uniform")}


def carry(config: ModelBasedConfig, space: Space) -> dict[str, tuple[int, ...]]:
    """Declare the buffer of imagined transitions, its fill count, and the position of the next write."""
    size, d, a = config.generated_maxlen, space.observation_size, space.action_size
    return {
        "observation": (size, d),
        "action": (size, a),
        "reward": (size,),
        "next_observation": (size, d),
        "discount": (size,),
        "count": (),
        "next": (),
    }


def real(config: ModelBasedConfig) -> int:
    """Return the number of real transitions in a batch."""
    return int(config.real_ratio * config.batch_size)


def mixed(config: ModelBasedConfig, state: State, batch: Batch) -> Batch:
    """Return the batch with all rows from index ``real(config)`` on replaced by imagined transitions."""
    n_real, buffer = real(config), state.carry
    index = (batch.noise["imagined"].double() * buffer["count"]).long()  # [B - n_real]
    parts = {name: buffer[name][index] for name in ("observation", "action", "reward", "next_observation", "discount")}
    rows: dict[str, Any] = {name: torch.cat([getattr(batch, name)[:n_real], part]) for name, part in parts.items()}
    terminal = torch.cat([batch.terminal[:n_real], torch.zeros_like(parts["reward"])])
    weight = batch.weight if batch.weight is None else torch.cat([batch.weight[:n_real], torch.ones_like(parts["reward"])])
    return dataclasses.replace(batch, **rows, terminal=terminal, weight=weight)


def on_mixture(loss: Loss) -> Loss:
    """Wrap a loss so that it trains on mixed batches."""

    def mixed_loss(params: Params, config: ModelBasedConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
        return loss(params, config, nets, state, mixed(config, state, batch))

    return mixed_loss


def dynamics_loss(params: Params, config: ModelBasedConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    """Return the ensemble's loss on the first `dynamics_batch_size` transitions of the batch."""
    n = config.dynamics_batch_size
    rows: dict[str, Any] = {name: getattr(batch, name)[:n] for name in ("observation", "action", "reward", "next_observation")}
    weight = batch.weight if batch.weight is None else batch.weight[:n]
    coins = {"bootstrap": batch.noise["bootstrap"][:, :n]}
    assert nets.dynamics is not None  # its stage exists only with an ensemble of its own
    own = dynamics.Nets(nets.dynamics)
    return dynamics.loss(params, config, own, state, dataclasses.replace(batch, **rows, noise=coins, weight=weight))


def stages(config: ModelBasedConfig, critic_loss: Loss) -> tuple[Stage, ...]:
    """Train the dynamics unless another job did; then Q functions, policy, temperature (with a fresh sample) and target."""
    every = config.update_actor_interval
    temp = Step("temp", on_mixture(temp_loss), ("temp",), config.temp_optimizer, config.temp_learning_rate, every=every)
    policy = Stage(
        "policy",
        (
            Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
            Step("actor", on_mixture(sac.actor_loss), ("actor",), config.actor_optimizer, config.actor_learning_rate, every),
            *((temp,) if config.temp_learning_rate > 0 else ()),
            Step("target", every=every, polyak={"critic": config.tau}),
        ),
    )
    if config.dynamics is not None:
        return (policy,)
    learn = Step("dynamics", dynamics_loss, ("dynamics",), config.dynamics_optimizer, config.dynamics_learning_rate)
    return (Stage("dynamics", (learn,), config.dynamics_steps, single_steps=True), policy)


def temp_loss(params: Params, config: ModelBasedConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    """Return SAC's temperature loss with the next action's noise, a sample that the policy update did not use."""
    return sac.temp_loss(params, config, nets, state, dataclasses.replace(batch, noise={"actor": batch.noise["next"]}))


# --- Rollouts ---
def between(learner: Learner, k: int, penalty: float, variance: str = "max") -> None:
    """Imagine transitions if rollouts precede update ``k``; lower each reward by ``penalty`` times the ensemble's variance.

    Args:
        variance: ``max``: the summed variances of the member where they are largest; ``data``: the summed variance of the members' samples.
    """
    config = learner.config
    since = k - (0 if config.dynamics is not None else config.dynamics_steps)
    if since < 0 or since % config.rollout_interval:
        return
    with torch.no_grad():
        for position, seed in enumerate(learner.seeds):
            _imagine(learner, position, seed, k, penalty, variance)


def next_between(config: Any, k: int) -> int:
    """Return the first update after ``k`` that rollouts precede."""
    first = 0 if config.dynamics is not None else config.dynamics_steps
    return first if k < first else k + config.rollout_interval - (k - first) % config.rollout_interval


def _imagine(learner: Learner, position: int, seed: int, k: int, penalty: float, kind: str) -> None:
    config, dataset = learner.config, learner.dataset
    state, starts = learner.state.of_seed(position, {}), dataset.starts
    model = _Model(learner, state, kind)
    count, size = config.rollout_batch_size, learner.space_.action_size
    rows = starts[rng.integers(seed, k, rng.stream_id("rollouts"), len(starts), count)]
    observation = dataset.observations(rows)  # [R, D]
    steps = []
    for h in range(config.rollout_horizon):
        numbers = _Numbers(seed, k, h, observation)
        action, _ = learner.nets.actor.sample(state.params, observation, numbers.normal("action", (count, size)))
        following, reward, variance = model.step(observation, action, numbers)
        steps.append((observation, action, reward - penalty * variance, following))
        observation = following
    _remember(learner, position, steps)


@dataclass(frozen=True)
class _Numbers:
    """The random numbers for step ``h`` of the rollouts before update ``k``."""

    seed: int
    k: int
    h: int
    like: Tensor

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        values = rng.normal(self.seed, self.k, rng.stream_id(f"rollouts/{name}/{self.h}"), np.empty(shape, np.float32))
        return torch.from_numpy(values).to(self.like)

    def whole(self, name: str, below: int, count: int) -> Tensor:
        values = rng.integers(self.seed, self.k, rng.stream_id(f"rollouts/{name}/{self.h}"), below, count)
        return torch.from_numpy(values).to(self.like.device)


class _Model:
    """The ensemble, with inputs and outputs in the units of this run, whatever units it was trained in."""

    def __init__(self, learner: Learner, state: State, variance: str) -> None:
        self._variance = variance
        other = learner.inputs.get("dynamics")
        self._mine, self._space = learner.scalers, learner.space_
        if other is None:
            self._net, self._params, self._its = learner.nets.dynamics, state.params, learner.scalers
        else:
            like = next(iter(state.params.values()))
            self._net, self._its = other.nets.dynamics, other.scalers
            self._params = {name: value.to(like) for name, value in other.params.items()}

    def step(self, observation: Tensor, action: Tensor, numbers: _Numbers) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next observation ``[R, D]``, reward ``[R]`` and variance ``[R]``."""
        mine, its = self._mine, self._its
        observed = self._observation(observation, mine, its)
        predicted = self._net(self._params, observed, _converted(action, mine.action, its.action))
        sampled = predicted.sample(numbers.normal("model", tuple(predicted.mean.shape)))  # [N, R, D + 1]
        member = numbers.whole("member", self._net.members, len(observation))  # [R]
        index = member.view(1, -1, 1).expand(1, *sampled.shape[1:])
        chosen = sampled.gather(0, index).squeeze(0)  # [R, D + 1]
        if self._variance == "max":
            variance = torch.exp(2 * predicted.log_std).sum(-1).amax(0)
        else:  # a single sample has no variance
            variance = sampled.var(0).sum(-1) if len(sampled) > 1 else torch.zeros_like(chosen[:, 0])
        following = self._observation(observed + chosen[:, :-1], its, mine)
        return following, _converted(chosen[:, -1], its.reward, mine.reward), variance

    def _observation(self, value: Tensor, source: Scalers, to: Scalers) -> Tensor:
        """Convert the joined vector of all fields from one run's units to another's."""
        if source is to:
            return value
        sizes = [math.prod(shape) for _, shape in self._space.observation.values()]
        parts = zip(self._space.observation, value.split(sizes, dim=-1), strict=True)
        return torch.cat([_converted(part, source.observation[name], to.observation[name]) for name, part in parts], dim=-1)


def _converted(value: Tensor, one: Scaler | None, other: Scaler | None) -> Tensor:
    """Convert from the units of one scaler to those of another."""
    dtype = value.dtype  # scalers of values that float32 cannot represent compute in float64
    value = value if one is None else one.reverse(value)
    return (value if other is None else other(value)).to(dtype)


def _remember(learner: Learner, position: int, steps: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Write the rollouts to the buffer over its oldest transitions, with n-step sums along each rollout."""
    config, carry = learner.config, {name: value[position] for name, value in learner.state.carry.items()}
    size, horizon = config.generated_maxlen, len(steps)
    for t, (observation, action, reward, following) in enumerate(steps):
        used = min(config.n_steps, horizon - t)
        total = sum(config.gamma**i * steps[t + i][2] for i in range(used)) if used > 1 else reward
        following = steps[t + used - 1][3]
        rows = {
            "observation": observation,
            "action": action,
            "reward": total,
            "next_observation": following,
            "discount": torch.full_like(reward, config.gamma**used),
        }
        stored = min(len(reward), size)  # if more arrive than fit, keep the last ones
        start = int(carry["next"].item())
        at = (torch.arange(stored, device=reward.device) + start) % size
        for name, values in rows.items():
            carry[name].index_copy_(0, at, values[-stored:])
        carry["next"].fill_((start + stored) % size)
        carry["count"].fill_(min(int(carry["count"].item()) + stored, size))
