"""DDPG: a deterministic policy that ascends the gradient of its Q function.

    y    = r + gamma^n (1 - d) min_i Qt_i(s', pit(s'))
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)
    L_pi = -mean Q_1(s, pi(s))

Critic, policy and both targets move at every update. Metrics: `critic_loss`, `actor_loss`.

The batch size differs between d3rlpy's versions: 256 in the second, the default here; 100 in the first (preset `d3rlpy-v1`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, State, Step, setting
from offrld.losses import bellman, td3
from offrld.nets import Params


@dataclass(frozen=True)
class Config(td3.ActorCriticConfig):
    n_critics: int = setting(1, "number of Q functions in the ensemble", low=1, high=1000)


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        action = nets.actor(state.target, batch.next_observation)  # [B, A]
        target = bellman(batch, nets.critic.target(state.target, batch.next_observation, action))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return value, {"critic_loss": value}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    _, q = td3.policy_values(params, nets, state, batch)
    value = -batch.mean(q)
    return value, {"actor_loss": value}


def schedule(config: Config) -> tuple[Step, ...]:
    follow = {"critic": config.tau, "actor": config.tau}
    return (
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate, polyak=follow),
    )


ALGORITHM = Algorithm(
    name="ddpg",
    summary="deep deterministic policy gradient: for online data, or offline data with much exploration",
    paper="Lillicrap et al. 2016, Continuous control with deep reinforcement learning (arXiv:1509.02971)",
    actions="continuous",
    config=Config(),
    networks=td3.networks,
    schedule=schedule,
    act=td3.act,
    value=td3.value,
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {}, "d3rlpy-v1": {"batch_size": 100}},
)
