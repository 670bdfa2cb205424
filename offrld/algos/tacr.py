"""TACR, transformer actor-critic with regularisation: TD3+BC whose policy is a decision transformer.

    a^_t  = the transformer's action at step t of a window
    y_t   = r_t + gamma (1 - d_t) min_i Qt_i(s_(t+1), clip(a^_(t+1) + eps, -1, 1)),    eps = clip(sigma N(0, 1), -c, c)
    L_Q   = mean over transitions of sum_i (Q_i(s_t, a_t) - y_t)^2
    L_pi  = mean over real steps of (|a^_t - a_t|^2 - lam min_i Q_i(s_t, a^_t)),    lam = alpha / mean |min_i Q_i(s_t, a^_t)|

An update moves the policy, then the Q functions, then their targets; the policy has no target network. A window's transitions are its real
steps; its last step counts only if it ends the episode, since the window does not hold its next step. Metrics: `actor_loss`, `critic_loss`,
`bc_loss`, `q_mean`.

Differences from d3rlpy's code: there, the target pairs s_(t+1) with the action of step t, and the only positions that can be terminal are
dropped, so the Q functions never see an episode end. Here, means count only real steps, and the target's actions are computed without
dropout. The tokens are returns-to-go, as in Decision Transformer; d3rlpy uses each step's own reward, which the policy does not know when
it acts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import ActionConfig, Algorithm, LossResult, Noise, Optimizer, Space, State, Step, Windows, setting
from offrld.losses import sequence
from offrld.losses.td3 import RANGE
from offrld.nets import Critics, Encoder, Params, QFunction, SequenceModel
from offrld.nets.transformer import flattened


@dataclass(frozen=True)
class Config(ActionConfig, sequence.SequenceConfig):
    gamma: float = setting(0.99, "discount per step", low=0.0, high=1.0)
    actor_learning_rate: float = setting(1e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(1e-4, "learning rate of the Q functions", low=0.0, exclusive_low=True)
    alpha: float = setting(2.5, "weight of the Q term relative to the imitation term", low=0.0)
    tau: float = setting(0.005, "update rate of the target networks", unit="share per update", low=0.0, high=1.0)
    n_critics: int = setting(2, "number of Q functions in the ensemble", low=1, high=100)
    target_smoothing_sigma: float = setting(0.2, "standard deviation of the noise on the target action", unit=RANGE, low=0.0)
    target_smoothing_clip: float = setting(0.5, "clipping limit of the noise on the target action", unit=RANGE, low=0.0, probe=0.05)
    actor_encoder: Encoder = Encoder()
    critic_encoder: Encoder = Encoder()
    actor_optimizer: Optimizer = Optimizer()
    critic_optimizer: Optimizer = Optimizer()
    q_function: QFunction = QFunction()


@dataclass(frozen=True)
class Nets:
    actor: SequenceModel
    critic: Critics


def networks(config: Config, space: Space) -> Nets:
    return Nets(
        actor=sequence.model("actor", config, space, config.actor_encoder),
        critic=Critics("critic", config.n_critics, space.view, space.action_size, config.critic_encoder, config.q_function),
    )


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Windows) -> LossResult:
    action = nets.actor(params, batch)  # [B, L, A]
    values = nets.critic.values(state.params, flattened(batch.observation), action.flatten(0, 1))
    q = values.mean.amin(0).reshape(batch.mask.shape)  # [B, L]
    weight = config.alpha / sequence.mean_of_steps(q.abs(), batch.mask).detach()
    q_mean = sequence.mean_of_steps(q, batch.mask)
    imitation = sequence.mean_of_steps(((action - batch.action) ** 2).sum(-1), batch.mask)
    value = imitation - weight * q_mean
    return value, {"actor_loss": value, "bc_loss": imitation, "q_mean": q_mean}


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Windows) -> LossResult:
    with torch.no_grad():
        clip = config.target_smoothing_clip
        smoothing = (batch.noise["target"] * config.target_smoothing_sigma).clamp(-clip, clip)
        action = (nets.actor(state.params, batch) + smoothing).clamp(-1.0, 1.0)  # [B, L, A]
        target_q = nets.critic.target(state.target, flattened(batch.observation), action.flatten(0, 1))  # [B L, M]
        following = sequence.shifted(target_q.unflatten(0, batch.mask.shape))  # [B, L, M], of the next step; zeros at the last
        alive = config.gamma * (1.0 - batch.terminal)
        target = batch.reward.unsqueeze(-1) + alive.unsqueeze(-1) * following  # [B, L, M]
        weight = batch.mask.clone()  # [B, L], 1 at transitions
        weight[:, -1] *= batch.terminal[:, -1]
    values = nets.critic.values(params, flattened(batch.observation), batch.action.flatten(0, 1))
    errors = values.errors(target.flatten(0, 1)).sum(0).reshape(weight.shape)  # [B, L]
    # At least 1: a batch of windows with one non-terminal step each holds no transition.
    value = (errors * weight).sum() / weight.sum().clamp(min=1.0)
    return value, {"critic_loss": value}


ALGORITHM = Algorithm(
    name="tacr",
    summary="TACR: TD3+BC with a decision transformer as the policy",
    paper="Lee & Moon 2023, Transformer Actor-Critic with Regularization: Automated Stock Trading using Reinforcement Learning (AAMAS)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=lambda config, space: {"target": Noise((config.batch_size, config.context_size, space.action_size))},
    schedule=lambda config: (
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate),
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate, polyak={"critic": config.tau}),
    ),
    act=sequence.act("actor"),
    targets=("critic",),
    batch_kind="windows",
    presets={"paper": {}, "d3rlpy": {}},
)
