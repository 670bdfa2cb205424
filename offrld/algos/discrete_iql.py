"""DiscreteIQL: IQL over discrete actions, as in the Procgen benchmark.

    u    = min_i Qt_i(s, a) - V(s)
    L_V  = mean |expectile - 1[u < 0]| u^2
    L_Q  = sum_i mean (Q_i(s, a) - (r + gamma^n (1 - d) V(s')))^2            one optimizer over Q and V
    L_pi = -mean w log pi(a | s),    w = min(exp(weight_temp u), max_weight)    with the V just updated

The Q functions always predict the mean. Metrics: `critic_loss`, `value_loss`, `actor_loss`, `advantage`.

Preset `procgen` has the benchmark's settings (Mediratta et al. 2023, The Generalization Gap in Offline Reinforcement Learning).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, Optimizer, Space, State, Step, ValueConfig, setting
from offrld.losses import bellman, procgen, taken
from offrld.nets import CategoricalPolicy, DiscreteCritics, Encoder, Params, ValueFunction


@dataclass(frozen=True)
class Config(ValueConfig):
    actor_learning_rate: float = setting(3e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(3e-4, "learning rate of Q and V", low=0.0, exclusive_low=True)
    tau: float = setting(0.005, "update rate of the target networks; 1 copies", low=0.0, high=1.0)
    target_update_interval: int = setting(1, "training updates between target updates", unit="updates", low=1)
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
    actor: CategoricalPolicy
    critic: DiscreteCritics
    value: ValueFunction


def networks(config: Config, space: Space) -> Nets:
    view, n = space.view, space.action_size
    return Nets(
        actor=CategoricalPolicy("actor", view, n, config.actor_encoder),
        critic=DiscreteCritics("critic", config.n_critics, view, n, config.critic_encoder),
        value=ValueFunction("value", view, config.value_encoder),
    )


# --- Q functions and V ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        target_q = taken(nets.critic(state.target, batch.observation), batch.action).amin(0)  # [B]
        target = bellman(batch, nets.value(params, batch.next_observation))  # [B]
    u = target_q - nets.value(params, batch.observation)  # [B]
    side = (config.expectile - (u < 0).to(u.dtype)).abs()
    value_loss = batch.mean(side * u * u)
    q = taken(nets.critic(params, batch.observation), batch.action)  # [N, B]
    q_loss = batch.weighted((q - target) ** 2, -1).mean(-1).sum()
    return q_loss + value_loss, {"critic_loss": q_loss, "value_loss": value_loss}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        q = taken(nets.critic(state.target, batch.observation), batch.action).amin(0)
        advantage = q - nets.value(state.params, batch.observation)  # [B]
        weight = torch.exp(config.weight_temp * advantage).clamp(max=config.max_weight)
    log_prob = taken(nets.actor.log_prob(params, batch.observation), batch.action)  # [B]
    value = -batch.mean(weight * log_prob)
    return value, {"actor_loss": value, "advantage": advantage.mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("critic", critic_loss, ("critic", "value"), config.critic_optimizer, config.critic_learning_rate),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate),
        Step("target", every=config.target_update_interval, polyak={"critic": config.tau}),
    )


ALGORITHM = Algorithm(
    name="discrete_iql",
    summary="implicit Q-learning over discrete actions: never evaluates actions outside the data",
    paper="Kostrikov, Nair & Levine 2021, Offline Reinforcement Learning with Implicit Q-Learning (arXiv:2110.06169)",
    actions="discrete",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.actor(params, observation),
    draws_scores=True,
    value=lambda params, config, nets, observation, action: taken(nets.critic(params, observation), action),
    targets=("critic",),
    presets={
        "paper": {},
        "d3rlpy": {},
        "procgen": {
            **procgen.images("actor_encoder", "critic_encoder", "value_encoder"),
            "batch_size": procgen.BATCH_SIZE,
            "actor_learning_rate": procgen.LEARNING_RATE,
            "critic_learning_rate": procgen.LEARNING_RATE,
            "tau": 1.0,
            "target_update_interval": procgen.TARGET_UPDATE_INTERVAL,
            "expectile": 0.8,
            "weight_temp": 0.1,
        },
    },
)
