"""BCQ: Q-learning among actions that a model of the data proposes and a small learned perturbation corrects.

    L_VAE = mean (g(s, z) - a)^2 + beta mean KL(N(mu, std) || N(0, 1)),    z ~ N(mu, std) = e(s, a)
    pi(s, a) = clip(a + action_flexibility tanh(xi(s, a)), -1, 1)
    L_pi  = -mean Q_1(s, pi(s, g(s, z))),    z ~ clip(N(0, 1), -0.5, 0.5); only pi receives the gradient
    y     = r + gamma^n (1 - d) T,    T the best, by lam min_i Qt_i + (1 - lam) max_i Qt_i, of n_action_samples actions pit(s', g(s', z_k))
    L_Q   = sum_i mean (Q_i(s, a) - y)^2                 (quantile Huber for the distributional Q functions)

The VAE trains at every update; from `rl_start_step` on, so do the Q functions, and the policy and both targets every
`update_actor_interval` updates. Acting takes the best, under Q_1, of n_action_samples actions whose latents are drawn only once, so the
same observation gives the same action. (By mistake, the decoder of d3rlpy's second version lacks the tanh, and that version ignores the
interval.) Metrics: `vae_loss`, `critic_loss`, `actor_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Algorithm, Batch, LossResult, Noise, Optimizer, Space, State, Step, setting
from offrld.losses import bellman, td3
from offrld.losses.vae import LATENT_LIMIT, vae_loss
from offrld.nets import ConditionalVAE, Critics, Encoder, Params, ResidualPolicy
from offrld.nets.candidates import Candidates, best_of, for_batch


@dataclass(frozen=True)
class Config(td3.ActorCriticConfig):
    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    actor_learning_rate: float = setting(1e-3, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(1e-3, "learning rate of the Q functions", low=0.0, exclusive_low=True)
    imitator_learning_rate: float = setting(1e-3, "learning rate of the VAE", low=0.0, exclusive_low=True)
    update_actor_interval: int = setting(1, "critic updates per update of the policy and the targets", unit="updates", low=1)
    lam: float = setting(0.75, "weight of the ensemble's minimum in the target; its maximum has weight 1 - lam", low=0.0, high=1.0)
    n_action_samples: int = setting(100, "actions to choose among", unit="actions", low=1, high=10_000, probe=3)
    action_flexibility: float = setting(0.05, "limit of the perturbation", unit=td3.RANGE, low=0.0)
    rl_start_step: int = setting(0, "initial updates that train only the VAE", unit="updates", low=0, probe=2)
    beta: float = setting(0.5, "weight of the KL term", low=0.0)
    imitator_encoder: Encoder = Encoder()
    imitator_optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets:
    actor: ResidualPolicy
    critic: Critics
    vae: ConditionalVAE
    candidates: Candidates


def networks(config: Config, space: Space) -> Nets:
    view, size, imitator = space.view, space.action_size, config.imitator_encoder
    return Nets(
        actor=ResidualPolicy("actor", view, size, config.actor_encoder, scale=config.action_flexibility),
        critic=Critics("critic", config.n_critics, view, size, config.critic_encoder, config.q_function),
        vae=ConditionalVAE("vae", view, size, imitator, imitator),
        candidates=Candidates("candidates", config.n_action_samples, 2 * size, limit=LATENT_LIMIT),
    )


def noise(config: Config, space: Space) -> dict[str, Noise]:
    shape = (config.batch_size, 2 * space.action_size)
    return {"vae": Noise(shape), "actor": Noise(shape), "next": Noise((config.n_action_samples, *shape))}


def proposed(nets: Nets, vae: Params, actor: Params, observation: Any, latent: Tensor) -> Tensor:
    """Decode latents ``[..., B, 2A]`` to actions ``[..., B, A]`` and perturb them."""
    return nets.actor(actor, observation, nets.vae.decode(vae, observation, latent))


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        latent = batch.noise["next"].clamp(-LATENT_LIMIT, LATENT_LIMIT)  # [K, B, 2A]
        actions = proposed(nets, state.params, state.target, batch.next_observation, latent)  # [K, B, A]
        value, _ = nets.critic.values(state.target, batch.next_observation, actions).best(config.lam)  # [B, M]
        target = bellman(batch, value)
    loss = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return loss, {"critic_loss": loss}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    latent = batch.noise["actor"].clamp(-LATENT_LIMIT, LATENT_LIMIT)  # [B, 2A]
    action = proposed(nets, state.params, params, batch.observation, latent)
    loss = -batch.mean(nets.critic(state.params, batch.observation, action, members=1)[0])
    return loss, {"actor_loss": loss}


def schedule(config: Config) -> tuple[Step, ...]:
    start, follow = config.rl_start_step, {"critic": config.tau, "actor": config.tau}
    return (
        Step("vae", vae_loss, ("vae",), config.imitator_optimizer, config.imitator_learning_rate),
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate, start=start),
        Step(
            "actor",
            actor_loss,
            ("actor",),
            config.actor_optimizer,
            config.actor_learning_rate,
            every=config.update_actor_interval,
            polyak=follow,
            start=start,
        ),
    )


def candidates(params: Params, config: Config, nets: Nets, observation: Any) -> tuple[Tensor, Tensor]:
    actions = proposed(nets, params, params, observation, for_batch(nets.candidates(params), observation))  # [K, B, A]
    return actions, nets.critic(params, observation, actions, members=1)[0]


ALGORITHM = Algorithm(
    name="bcq",
    summary="batch-constrained Q-learning: chooses among actions proposed by a model of the data",
    paper="Fujimoto, Meger & Precup 2019, Off-Policy Deep Reinforcement Learning without Exploration (arXiv:1812.02900)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=noise,
    schedule=schedule,
    act=best_of(candidates),
    candidates=candidates,
    value=td3.value,
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {}},
)
