"""PPO: proximal policy optimisation with a clipped ratio, on fresh rollouts of the policy itself.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t),   A_t = delta_t + gamma lambda A_{t+1},   R_t = A_t + V(s_t)
    L_pi    = -mean min(rho A, clip(rho, 1 - c, 1 + c) A)                     rho = pi(a | s) / pi_old(a | s)
    L_V     = mean 1/2 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)           (without clip_value, mean 1/2 (V - R)^2)
    L       = L_pi + value_coef L_V - entropy_coef H(pi)

The sum for an advantage stops at the end of the episode; a truncated episode adds the value of its last state. Advantages are normalised
over the rollout. A rollout is `rollout_steps` steps of every environment; a round of updates passes over it `epochs` times, each time in a
new order. Metrics: `actor_loss`, `value_loss`, `entropy`, `approx_kl`, `clip_share`.

The defaults are the paper's for continuous control, with the implementation details that matter (Engstrom et al. 2020, Implementation
Matters in Deep Policy Gradients): orthogonal initialisation, Adam's eps 1e-5, gradient norms clipped at 0.5. Preset `procgen`: the residual
network and the settings of gen_dgrl (Mediratta et al. 2023), for 64 environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offrld.engine import ActionConfig, Algorithm, LossResult, Optimizer, Rollout, Space, State, Step, setting
from offrld.engine import Config as BaseConfig
from offrld.nets import ActorCritic, Encoder, Observation, Params


@dataclass(frozen=True)
class Config(ActionConfig, BaseConfig):
    batch_size: int = setting(64, "steps per update", unit="steps", low=1, high=1_000_000)
    rollout_steps: int = setting(2048, "steps per environment between rounds of updates", unit="steps", low=1, high=10_000_000)
    epochs: int = setting(10, "passes over each rollout", low=1, high=1000)
    gamma: float = setting(0.99, "discount per step", low=0.0, high=1.0)
    gae_lambda: float = setting(0.95, "weight of longer returns in the advantages", low=0.0, high=1.0)
    clip: float = setting(0.2, "clipping range of the probability ratio around 1", low=0.0, exclusive_low=True, probe=1e-4)
    clip_value: bool = setting(False, "also clip the change of the value, by the same number", probe={"": True, "clip": 1e-4})
    value_coef: float = setting(0.5, "weight of the value loss", low=0.0)
    entropy_coef: float = setting(0.0, "weight of the entropy", low=0.0, probe=0.1)
    normalize_advantage: bool = setting(True, "normalise advantages to mean 0 and standard deviation 1 over each rollout")
    normalize_reward: bool = setting(
        False, "divide rewards by the running standard deviation of the discounted return, then clip them to [-10, 10]"
    )
    learning_rate: float = setting(3e-4, "learning rate", low=0.0, exclusive_low=True)
    shared_encoder: bool = setting(False, "share one encoder between policy and value function")
    log_std: float = setting(0.0, "initial log standard deviation of continuous actions", probe=-1.0)
    encoder: Encoder = Encoder(units=(64, 64), activation="tanh")
    optimizer: Optimizer = Optimizer(eps=1e-5, clip_grad_norm=0.5)


@dataclass(frozen=True)
class Nets:
    policy: ActorCritic


def networks(config: Config, space: Space) -> Nets:
    return Nets(
        policy=ActorCritic(
            "policy",
            space.view,
            space.action_size,
            config.encoder,
            discrete=space.discrete,
            shared=config.shared_encoder,
            log_std=config.log_std,
        )
    )


def play(params: Params, nets: Nets, observation: Observation, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw actions at ``observation [B, ...]`` with ``noise`` (see `ActorCritic.draw`); return them, log probabilities, values ``[B]``."""
    out, value = nets.policy(params, observation)
    action = nets.policy.draw(params, out, noise)
    return action, nets.policy.log_prob(params, out, action), value


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Rollout) -> LossResult:
    out, value = nets.policy(params, batch.observation)
    log_ratio = nets.policy.log_prob(params, out, batch.action) - batch.log_prob  # [B]
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    actor_loss = -torch.minimum(ratio * batch.advantage, clipped * batch.advantage).mean()
    errors = (value - batch.returns) ** 2
    if config.clip_value:
        near = batch.value + (value - batch.value).clamp(-config.clip, config.clip)
        errors = torch.maximum(errors, (near - batch.returns) ** 2)
    value_loss = 0.5 * errors.mean()
    entropy = nets.policy.entropy(params, out).mean()
    metrics = {
        "actor_loss": actor_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clip_share": (ratio != clipped).to(ratio.dtype).mean(),
    }
    return actor_loss + config.value_coef * value_loss - config.entropy_coef * entropy, metrics


def schedule(config: Config) -> tuple[Step, ...]:
    return (Step("policy", loss, ("policy",), config.optimizer, config.learning_rate),)


ALGORITHM = Algorithm(
    name="ppo",
    summary="proximal policy optimisation: learns from its own rollouts (`offrl train-online`), not from a dataset",
    paper="Schulman et al. 2017, Proximal Policy Optimization Algorithms (arXiv:1707.06347)",
    actions="both",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.policy.act(params, observation),
    sample=lambda params, config, nets, observation, noise: nets.policy.draw(params, nets.policy(params, observation)[0], noise),
    draws_scores=True,
    play=play,
    batch_kind="rollouts",
    carry=lambda config, space: {"return_count": (), "return_mean": (), "return_square": ()} if config.normalize_reward else {},
    presets={
        "paper": {},
        "procgen": {
            "batch_size": 2048,
            "rollout_steps": 256,
            "epochs": 3,
            "gamma": 0.999,
            "entropy_coef": 0.01,
            "learning_rate": 5e-4,
            "clip_value": True,
            "normalize_reward": True,
            "shared_encoder": True,
            "encoder.type": "impala",
            "encoder.activation": "relu",
            "observation_scaler": "pixel",
        },
    },
)
