"""IQL: values by expectile regression on the data's own actions, then a policy by advantage-weighted regression.

    u    = min_i Qt_i(s, a) - V(s)
    L_V  = mean |expectile - 1[u < 0]| u^2
    L_Q  = sum_i mean (Q_i(s, a) - (r + gamma^n (1 - d) V(s')))^2            one optimizer over Q and V
    L_pi = -mean w log pi(a | s),    w = min(exp(weight_temp u), max_weight)    with the V just updated

The Q functions always predict the mean. The policy is a plain normal around tanh(mu(s)) with one learned standard deviation per dimension.
Metrics: `critic_loss`, `value_loss`, `actor_loss`, `advantage`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import ActionConfig, Algorithm, Batch, LossResult, Optimizer, Space, State, Step, ValueConfig, setting
from offrld.losses import bellman
from offrld.nets import Critics, Encoder, NormalPolicy, Params, ValueFunction


@dataclass(frozen=True)
class Config(ActionConfig, ValueConfig):
    actor_learning_rate: float = setting(3e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(3e-4, "learning rate of Q and V", low=0.0, exclusive_low=True)
    tau: float = setting(0.005, "update rate of the target networks", unit="share per update", low=0.0, high=1.0)
    n_critics: int = setting(2, "number of Q functions in the ensemble", low=1, high=100)
    expectile: float = setting(0.7, "expectile of V; near 1, V approaches the value of the data's best action", low=0.0, high=1.0)
    weight_temp: float = setting(3.0, "inverse temperature of the advantage weights", low=0.0)
    max_weight: float = setting(100.0, "upper limit of an advantage weight", low=0.0, exclusive_low=True, probe=0.5)
    actor_encoder: Encoder = Encoder()
    critic_encoder: Encoder = Encoder()
    value_encoder: Encoder = Encoder()
    actor_optimizer: Optimizer = Optimizer()
    critic_optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets:
    actor: NormalPolicy
    critic: Critics
    value: ValueFunction


def networks(config: Config, space: Space) -> Nets:
    view, actions = space.view, space.action_size
    return Nets(
        actor=NormalPolicy("actor", view, actions, config.actor_encoder, log_std_range=(-5.0, 2.0), free_std=True),
        critic=Critics("critic", config.n_critics, view, actions, config.critic_encoder),
        value=ValueFunction("value", view, config.value_encoder),
    )


# --- Q functions and V ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        target_q = nets.critic(state.target, batch.observation, batch.action).amin(0)  # [B]
        target = bellman(batch, nets.value(params, batch.next_observation)).unsqueeze(-1)  # [B, 1]
    u = target_q - nets.value(params, batch.observation)  # [B]
    side = (config.expectile - (u < 0).to(u.dtype)).abs()
    value_loss = batch.mean(side * u * u)
    q_loss = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return q_loss + value_loss, {"critic_loss": q_loss, "value_loss": value_loss}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        q = nets.critic(state.target, batch.observation, batch.action).amin(0)
        advantage = q - nets.value(state.params, batch.observation)  # [B]
        weight = torch.exp(config.weight_temp * advantage).clamp(max=config.max_weight)
    log_prob = nets.actor.distribution(params, batch.observation).log_prob(batch.action)  # [B]
    value = -batch.mean(weight * log_prob)
    return value, {"actor_loss": value, "advantage": advantage.mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("critic", critic_loss, ("critic", "value"), config.critic_optimizer, config.critic_learning_rate),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate, polyak={"critic": config.tau}),
    )


ALGORITHM = Algorithm(
    name="iql",
    summary="implicit Q-learning: never evaluates actions outside the data",
    paper="Kostrikov, Nair & Levine 2021, Offline Reinforcement Learning with Implicit Q-Learning (arXiv:2110.06169)",
    actions="continuous",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.actor(params, observation),
    sample=lambda params, config, nets, observation, noise: nets.actor.sample(params, observation, noise),
    value=lambda params, config, nets, observation, action: nets.critic(params, observation, action),
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
