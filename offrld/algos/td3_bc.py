"""TD3+BC: TD3 whose policy is held near the data by a behaviour-cloning term.

    y    = r + gamma^n (1 - d) min_i Qt_i(s', clip(pit(s') + eps, -1, 1)),    eps = clip(sigma N(0, 1), -c, c)
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)
    L_pi = -lam mean Q_1(s, pi(s)) + mean (a - pi(s))^2,    lam = alpha / mean |Q_1(s, pi(s))|

The policy and both targets move every `update_actor_interval` updates. Metrics: `critic_loss`, `actor_loss`, `bc_loss`, `q_mean`.

Default differs from d3rlpy's second version: observations are standardised, as in the paper (preset `d3rlpy`: not).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import OBSERVATION_SCALERS, Algorithm, Batch, State, setting
from offrld.losses import bellman, td3
from offrld.nets import Params


@dataclass(frozen=True)
class Config(td3.TD3Config):
    observation_scaler: str = setting("standard", "how observations are scaled before the networks", choices=OBSERVATION_SCALERS)
    alpha: float = setting(2.5, "weight of the Q term against imitation", low=0.0)


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        action = td3.target_action(config, nets, state, batch)  # [B, A]
        target = bellman(batch, nets.critic.target(state.target, batch.next_observation, action))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target)
    return value, {"critic_loss": value}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    action = nets.actor(params, batch.observation)  # [B, A]
    q = nets.critic(state.params, batch.observation, action, members=1)[0]  # [B]
    weight = config.alpha / q.abs().mean().detach()
    imitation = ((batch.action - action) ** 2).mean()
    value = imitation - weight * q.mean()
    return value, {"actor_loss": value, "bc_loss": imitation, "q_mean": q.mean()}


ALGORITHM = Algorithm(
    name="td3_bc",
    summary="TD3 with a behaviour-cloning term: simple and strong on data of mixed quality",
    paper="Fujimoto & Gu 2021, A Minimalist Approach to Offline Reinforcement Learning (arXiv:2106.06860)",
    actions="continuous",
    config=Config(),
    networks=td3.networks,
    noise=td3.noise,
    schedule=lambda config: td3.schedule(config, critic_loss, actor_loss),
    act=lambda params, config, nets, observation: nets.actor(params, observation),
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {"observation_scaler": "none"}},
)
