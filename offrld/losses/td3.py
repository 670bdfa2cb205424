"""The TD3 family: what DDPG, TD3, TD3+BC, PRDC and ReBRAC share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from offrld.engine import ActionConfig, Batch, Loss, LossResult, Noise, Optimizer, Space, State, Step, ValueConfig, setting
from offrld.losses.td import bellman
from offrld.nets import Critics, DeterministicPolicy, Encoder, Params, QFunction

RANGE = "in action units, [-1, 1]"


@dataclass(frozen=True)
class ActorCriticConfig(ActionConfig, ValueConfig):
    """Settings of a policy and Q functions, both with target networks."""

    actor_learning_rate: float = setting(3e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(3e-4, "learning rate of the Q functions", low=0.0, exclusive_low=True)
    tau: float = setting(0.005, "update rate of the target networks", unit="share per target update", low=0.0, high=1.0)
    n_critics: int = setting(2, "number of Q functions in the ensemble", low=1, high=1000)
    actor_encoder: Encoder = Encoder()
    critic_encoder: Encoder = Encoder()
    q_function: QFunction = QFunction()
    actor_optimizer: Optimizer = Optimizer()
    critic_optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class TD3Config(ActorCriticConfig):
    """Settings of the family."""

    target_smoothing_sigma: float = setting(0.2, "standard deviation of the noise on the target action", unit=RANGE, low=0.0)
    target_smoothing_clip: float = setting(0.5, "clipping limit of the noise on the target action", unit=RANGE, low=0.0, probe=0.05)
    update_actor_interval: int = setting(2, "critic updates per update of the policy and the targets", unit="updates", low=1)


@dataclass(frozen=True)
class Nets:
    """The networks of the family."""

    actor: DeterministicPolicy
    critic: Critics


class HasCritics(Protocol):
    """The networks of any algorithm with Q functions over continuous actions."""

    @property
    def critic(self) -> Critics: ...


def networks(config: ActorCriticConfig, space: Space) -> Nets:
    """Build a deterministic policy and ``n_critics`` Q functions."""
    return Nets(
        actor=DeterministicPolicy("actor", space.view, space.action_size, config.actor_encoder),
        critic=Critics("critic", config.n_critics, space.view, space.action_size, config.critic_encoder, config.q_function),
    )


def noise(config: TD3Config, space: Space) -> dict[str, Noise]:
    """Declare the noise of the target action."""
    return {"target": Noise((config.batch_size, space.action_size))}


def target_action(config: TD3Config, nets: Nets, state: State, batch: Batch) -> Tensor:
    """Return the target policy's next action plus clipped normal noise (target policy smoothing), within [-1, 1]: ``[B, A]``."""
    clip = config.target_smoothing_clip
    smoothing = (batch.noise["target"] * config.target_smoothing_sigma).clamp(-clip, clip)
    return (nets.actor(state.target, batch.next_observation) + smoothing).clamp(-1.0, 1.0)


def critic_loss(params: Params, config: TD3Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    """Return ``sum_i mean (Q_i(s, a) - r - gamma^n (1 - d) min_i Qt_i(s', a^))^2`` with the smoothed target action a^."""
    with torch.no_grad():
        action = target_action(config, nets, state, batch)  # [B, A]
        target = bellman(batch, nets.critic.target(state.target, batch.next_observation, action))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return value, {"critic_loss": value}


def policy_values(params: Params, nets: Nets, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the policy's actions ``[B, A]`` and their values ``[B]`` under the first Q function."""
    action = nets.actor(params, batch.observation)
    return action, nets.critic(state.params, batch.observation, action, members=1)[0]


def act(params: Params, config: Any, nets: Nets, observation: Any) -> Tensor:
    """Return the policy's action ``[B, A]``."""
    return nets.actor(params, observation)


def value(params: Params, config: Any, nets: HasCritics, observation: Any, action: Tensor) -> Tensor:
    """Return every member's values, ``[N, B]``."""
    return nets.critic(params, observation, action)


def schedule(config: TD3Config, actor_loss: Loss, critic_loss: Loss = critic_loss) -> tuple[Step, ...]:
    """Update the critics at every update; the policy, then both targets, every ``update_actor_interval``."""
    follow = {"critic": config.tau, "actor": config.tau}
    return (
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate, config.update_actor_interval, follow),
    )
