"""ReBRAC: TD3 with behaviour penalties on both policy and critic, and the network choices that make it work.

    y    = r + gamma^n (1 - d) (min_i Qt_i(s', a^) - critic_beta |a^ - a'|^2),    a^ = smoothed target action, a' the data's next action
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)
    L_pi = mean(-lam min_i Q_i(s, pi(s)) + actor_beta |a - pi(s)|^2),    lam = 1 / mean |min_i Q_i(s, pi(s))|

Squared norms are sums over action dimensions. The last transition of a truncated episode has no next action and is not sampled.
Metrics: `critic_loss`, `actor_loss`, `bc_loss`, `q_mean`.

Where d3rlpy differs, the defaults follow the paper: three hidden layers, and layer norm in the critic (preset `d3rlpy`: two layers, no
norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, State, setting
from offrld.losses import bellman, td3
from offrld.nets import Encoder, Params


@dataclass(frozen=True)
class Config(td3.TD3Config):
    batch_size: int = setting(1024, "transitions per update", unit="transitions", low=1, high=1_000_000)
    actor_learning_rate: float = setting(1e-3, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(1e-3, "learning rate of the Q functions", low=0.0, exclusive_low=True)
    actor_beta: float = setting(1e-3, "weight of the policy's distance from the data", low=0.0, probe=1.0)
    critic_beta: float = setting(0.01, "weight of the next action's distance from the data in the target", low=0.0, probe=1.0)
    actor_encoder: Encoder = Encoder(units=(256, 256, 256))
    critic_encoder: Encoder = Encoder(units=(256, 256, 256), layer_norm=True)


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        action = td3.target_action(config, nets, state, batch)  # [B, A]
        assert batch.next_action is not None  # `Algorithm.next_action` requests it
        distance = ((action - batch.next_action) ** 2).sum(-1)  # [B]
        target_q = nets.critic.target(state.target, batch.next_observation, action)  # [B, M]
        target = bellman(batch, target_q - config.critic_beta * distance.unsqueeze(-1))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return value, {"critic_loss": value}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    action = nets.actor(params, batch.observation)  # [B, A]
    q = nets.critic(state.params, batch.observation, action).amin(0)  # [B]
    weight = 1.0 / q.abs().mean().detach()
    imitation = batch.mean(((batch.action - action) ** 2).sum(-1))
    value = config.actor_beta * imitation - weight * batch.mean(q)
    return value, {"actor_loss": value, "bc_loss": imitation, "q_mean": q.mean()}


ALGORITHM = Algorithm(
    name="rebrac",
    summary="TD3 with behaviour penalties on policy and critic: the recommended default for continuous actions",
    paper="Tarasov et al. 2023, Revisiting the Minimalist Approach to Offline Reinforcement Learning (arXiv:2305.09836)",
    actions="continuous",
    config=Config(),
    networks=td3.networks,
    noise=td3.noise,
    schedule=lambda config: td3.schedule(config, actor_loss, critic_loss),
    act=td3.act,
    value=td3.value,
    targets=("actor", "critic"),
    next_action=True,
    presets={
        "paper": {},
        "d3rlpy": {"actor_encoder.units": [256, 256], "critic_encoder.units": [256, 256], "critic_encoder.layer_norm": False},
    },
)
