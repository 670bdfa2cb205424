"""TD3+BC: TD3 whose policy is held near the data by a behaviour-cloning term.

    y    = r + gamma^n (1 - d) min_i Qt_i(s', clip(pit(s') + eps, -1, 1)),    eps = clip(sigma N(0, 1), -c, c)
    L_Q  = sum_i mean (Q_i(s, a) - y)^2
    L_pi = -lam mean Q_1(s, pi(s)) + mean (a - pi(s))^2,    lam = alpha / mean |Q_1(s, pi(s))|

The policy and both targets move every `update_actor_interval` updates. Metrics: `critic_loss`, `actor_loss`, `bc_loss`, `q_mean`.

Default differs from d3rlpy's second version: observations are standardised, as in the paper (preset `d3rlpy`: not).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import OBSERVATION_SCALERS, Adam, Algorithm, Batch, Noise, Space, State, Step, ValueConfig, setting
from offrld.losses import bellman, smoothed, squared_error
from offrld.nets import Critics, DeterministicPolicy, Encoder, Params


@dataclass(frozen=True)
class Config(ValueConfig):
    observation_scaler: str = setting("standard", "how observations are scaled before the networks", choices=OBSERVATION_SCALERS)
    actor_learning_rate: float = setting(3e-4, "Adam's step size of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(3e-4, "Adam's step size of the Q functions", low=0.0, exclusive_low=True)
    alpha: float = setting(2.5, "weight of the Q term against imitation", low=0.0)
    tau: float = setting(0.005, "rate at which targets follow", unit="share per target update", low=0.0, high=1.0)
    n_critics: int = setting(2, "size of the ensemble of Q functions", low=1, high=100)
    target_smoothing_sigma: float = setting(0.2, "deviation of the target action's noise", unit="of the range [-1, 1]", low=0.0)
    target_smoothing_clip: float = setting(0.5, "limit of the target action's noise", unit="of the range [-1, 1]", low=0.0, probe=0.05)
    update_actor_interval: int = setting(2, "updates of the critic per update of the policy and the targets", unit="updates", low=1)
    actor_encoder: Encoder = Encoder()
    critic_encoder: Encoder = Encoder()


def networks(config: Config, space: Space) -> dict[str, Any]:
    return {
        "actor": DeterministicPolicy("actor", space.observation_size, space.action_size, config.actor_encoder),
        "critic": Critics("critic", config.n_critics, space.observation_size, space.action_size, config.critic_encoder),
    }


def noise(config: Config, space: Space) -> dict[str, Noise]:
    return {"target": Noise((config.batch_size, space.action_size))}


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        action = nets.actor(state.target, batch.next_observation)
        action = smoothed(action, batch.noise["target"], config.target_smoothing_sigma, config.target_smoothing_clip)  # [B, A]
        target = bellman(batch, nets.critic(state.target, batch.next_observation, action).amin(0))  # [B]
    value = squared_error(nets.critic(params, batch.observation, batch.action), target)
    return value, {"critic_loss": value}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    action = nets.actor(params, batch.observation)  # [B, A]
    q = nets.critic(state.params, batch.observation, action, members=1)[0]  # [B]
    weight = config.alpha / q.abs().mean().detach()
    imitation = ((batch.action - action) ** 2).mean()
    value = imitation - weight * q.mean()
    return value, {"actor_loss": value, "bc_loss": imitation, "q_mean": q.mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("critic", critic_loss, optimizes=("critic",), optimizer=Adam(config.critic_learning_rate)),
        Step(
            "actor", actor_loss, optimizes=("actor",), optimizer=Adam(config.actor_learning_rate),
            every=config.update_actor_interval, polyak={"critic": config.tau, "actor": config.tau},
        ),
    )  # fmt: skip


ALGORITHM = Algorithm(
    name="td3_bc",
    summary="TD3 with a behaviour-cloning term: simple and strong on data of mixed quality",
    paper="Fujimoto & Gu 2021, A Minimalist Approach to Offline Reinforcement Learning (arXiv:2106.06860)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=noise,
    schedule=schedule,
    act=lambda nets, params, observation: nets.actor(params, observation),
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {"observation_scaler": "none"}},
)
