"""The soft actor-critic family: the settings, networks, targets and losses that SAC, CQL and their relatives share.

    y       = r + gamma^n (1 - d) (min_i Qt_i(s', a~) - alpha log pi(a~ | s')),    a~ ~ pi(s')
    L_pi    = mean (alpha log pi(a^ | s) - min_i Q_i(s, a^)),                      a^ ~ pi(s), reparametrised
    L_alpha = -mean (alpha (log pi(a^ | s) - A))                                   the target entropy is -A, A the action's dimensions

alpha = exp(p); p is the learned parameter, and the gradient of L_alpha goes through exp(p).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import ActionConfig, Batch, Loss, LossResult, Noise, Optimizer, Space, State, Step, ValueConfig, setting
from offrld.losses.td import bellman
from offrld.nets import Critics, Encoder, Params, PositiveScalar, QFunction, SquashedNormalPolicy


@dataclass(frozen=True)
class EntropyConfig(ValueConfig):
    """Settings of the family for any kind of action."""

    actor_learning_rate: float = setting(3e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(3e-4, "learning rate of the Q functions", low=0.0, exclusive_low=True)
    temp_learning_rate: float = setting(3e-4, "learning rate of the temperature; 0 keeps it fixed", low=0.0)
    tau: float = setting(0.005, "update rate of the target networks", unit="share per update", low=0.0, high=1.0)
    n_critics: int = setting(2, "number of Q functions in the ensemble", low=1, high=1000)
    initial_temperature: float = setting(1.0, "initial weight of the entropy", low=0.0, exclusive_low=True)
    actor_encoder: Encoder = Encoder()
    critic_encoder: Encoder = Encoder()
    q_function: QFunction = QFunction()
    actor_optimizer: Optimizer = Optimizer()
    critic_optimizer: Optimizer = Optimizer()
    temp_optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class SACConfig(ActionConfig, EntropyConfig):
    """Settings of the family with continuous actions."""


@dataclass(frozen=True)
class Nets:
    """The networks of the family."""

    actor: SquashedNormalPolicy
    critic: Critics
    temp: PositiveScalar


def networks(config: SACConfig, space: Space) -> Nets:
    """Build a squashed normal policy, ``n_critics`` Q functions and the temperature."""
    return Nets(
        actor=SquashedNormalPolicy("actor", space.view, space.action_size, config.actor_encoder),
        critic=Critics("critic", config.n_critics, space.view, space.action_size, config.critic_encoder, config.q_function),
        temp=PositiveScalar("temp", config.initial_temperature),
    )


def noise(config: SACConfig, space: Space) -> dict[str, Noise]:
    """Declare the noise of the target's next action and of the policy's action."""
    shape = (config.batch_size, space.action_size)
    return {"next": Noise(shape), "actor": Noise(shape)}


# --- Q functions ---
def soft_target(nets: Nets, state: State, batch: Batch) -> Tensor:
    """Return the target ``[B, M]`` with the entropy of the next action."""
    with torch.no_grad():
        action, log_prob = nets.actor.sample(state.params, batch.next_observation, batch.noise["next"])
        value = nets.critic.target(state.target, batch.next_observation, action)  # [B, M]
        return bellman(batch, value - (nets.temp(state.params) * log_prob).unsqueeze(-1))


def critic_loss(params: Params, config: SACConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    value = nets.critic.values(params, batch.observation, batch.action).error(soft_target(nets, state, batch), batch.weight)
    return value, {"critic_loss": value}


# --- Temperature ---
def temp_loss(params: Params, config: SACConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        _, log_prob = nets.actor.sample(state.params, batch.observation, batch.noise["actor"])
        excess = batch.mean(log_prob - batch.action.shape[-1])
    temperature = nets.temp(params)
    value = -temperature * excess
    return value, {"temp_loss": value, "temp": temperature}


# --- Policy ---
def actor_loss(params: Params, config: SACConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    action, log_prob = nets.actor.sample(params, batch.observation, batch.noise["actor"])
    q = nets.critic(state.params, batch.observation, action).amin(0)  # [B]
    value = batch.mean(nets.temp(state.params) * log_prob - q)
    return value, {"actor_loss": value, "q_mean": q.mean(), "entropy": -log_prob.mean()}


def schedule(config: SACConfig, critic_loss: Loss = critic_loss, actor_loss: Loss = actor_loss) -> tuple[Step, ...]:
    """Update the Q functions, the temperature with the policy's sample, the policy with the new temperature, and the target."""
    return (
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        *temp_steps(config),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate, polyak={"critic": config.tau}),
    )


def temp_steps(config: SACConfig) -> tuple[Step, ...]:
    """Return the step that updates the temperature; none if it is fixed."""
    if config.temp_learning_rate == 0.0:
        return ()
    return (Step("temp", temp_loss, ("temp",), config.temp_optimizer, config.temp_learning_rate),)


def act(params: Params, config: SACConfig, nets: Nets, observation: Any) -> Tensor:
    """Return the greedy action ``[B, A]``."""
    return nets.actor(params, observation)


def sample(params: Params, config: SACConfig, nets: Nets, observation: Any, noise: Tensor) -> Tensor:
    """Return a sample of the policy, ``[B, A]``."""
    return nets.actor.sample(params, observation, noise)[0]


def value(params: Params, config: Any, nets: Nets, observation: Any, action: Tensor) -> Tensor:
    """Return every member's values, ``[N, B]``."""
    return nets.critic(params, observation, action)
