"""DiscreteSAC: soft actor-critic over discrete actions, where all expectations over actions are sums.

    y       = r + gamma^n (1 - d) sum_a p(a | s') (min_i Qt_i(s', a) - alpha log p(a | s'))
    L_Q     = sum_i mean Huber(Q_i(s, a) - y)            (quantile Huber for the distributional Q functions)
    L_alpha = -mean (alpha (sum_a p log p + 0.98 log n))        alpha = exp(p); n actions
    L_pi    = mean sum_a p(a | s) (alpha log p(a | s) - min_i Q_i(s, a))

The target network is copied every `target_update_interval` updates. With `initial_temperature=0` the entropy has no weight, and the policy
becomes greedy. Metrics: `critic_loss`, `actor_loss`, `temp_loss`, `temp`, `entropy`.

Preset `d3rlpy-v1` has the Adam eps of d3rlpy's first version, 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, Space, State, Step, setting
from offrld.losses import bellman, sac
from offrld.nets import CategoricalPolicy, DiscreteCritics, Params, PositiveScalar, Zero

TARGET_ENTROPY = 0.98  # as a fraction of the entropy of a uniform choice


@dataclass(frozen=True)
class Config(sac.EntropyConfig):
    batch_size: int = setting(64, "transitions per update", unit="transitions", low=1, high=1_000_000)
    tau: float = setting(1.0, "update rate of the target network; 1 copies", low=0.0, high=1.0)
    initial_temperature: float = setting(1.0, "initial weight of the entropy; 0 disables the entropy term permanently", low=0.0)
    target_update_interval: int = setting(8000, "training updates between target updates", unit="updates", low=1, probe=2)


@dataclass(frozen=True)
class Nets:
    actor: CategoricalPolicy
    critic: DiscreteCritics
    temp: PositiveScalar | Zero


def networks(config: Config, space: Space) -> Nets:
    view, n = space.view, space.action_size
    return Nets(
        actor=CategoricalPolicy("actor", view, n, config.actor_encoder),
        critic=DiscreteCritics("critic", config.n_critics, view, n, config.critic_encoder, config.q_function),
        temp=PositiveScalar("temp", config.initial_temperature) if config.initial_temperature > 0 else Zero(),
    )


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        log_prob = nets.actor.log_prob(state.params, batch.next_observation)  # [B, n]
        value = nets.critic.target(state.target, batch.next_observation, None)  # [B, n, M]
        soft = value - (nets.temp(state.params) * log_prob).unsqueeze(-1)
        target = bellman(batch, (log_prob.exp().unsqueeze(-1) * soft).sum(1))  # [B, M]
    loss = nets.critic.values(params, batch.observation).taken(batch.action).error(target, batch.weight)
    return loss, {"critic_loss": loss}


# --- Temperature ---
def temp_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    assert isinstance(nets.temp, PositiveScalar)  # this step exists only with a temperature
    with torch.no_grad():
        log_prob = nets.actor.log_prob(state.params, batch.observation)  # [B, n]
        excess = batch.mean((log_prob.exp() * log_prob).sum(-1) + TARGET_ENTROPY * math.log(log_prob.shape[-1]))
    temperature = nets.temp(params)
    value = -temperature * excess
    return value, {"temp_loss": value, "temp": temperature}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        q = nets.critic(state.params, batch.observation).amin(0)  # [B, n]
    log_prob = nets.actor.log_prob(params, batch.observation)  # [B, n]
    prob = log_prob.exp()
    value = batch.mean((prob * (nets.temp(state.params) * log_prob - q)).sum(-1))
    return value, {"actor_loss": value, "entropy": -(prob * log_prob).sum(-1).mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    temp = Step("temp", temp_loss, ("temp",), config.temp_optimizer, config.temp_learning_rate)
    return (
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        *((temp,) if config.temp_learning_rate > 0 and config.initial_temperature > 0 else ()),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate),
        Step("target", every=config.target_update_interval, polyak={"critic": config.tau}),
    )


ALGORITHM = Algorithm(
    name="discrete_sac",
    summary="soft actor-critic over discrete actions",
    paper="Christodoulou 2019, Soft Actor-Critic for Discrete Action Settings (arXiv:1910.07207)",
    actions="discrete",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.actor(params, observation),
    draws_scores=True,
    value=lambda params, config, nets, observation, action: nets.critic.values(params, observation).taken(action).mean,
    targets=("critic",),
    presets={
        "paper": {},
        "d3rlpy": {},
        "d3rlpy-v1": {f"{name}_optimizer.eps": 1e-4 for name in ("actor", "critic", "temp")},
    },
)
