"""Policies in the latent space of the data's actions: what PLAS and PLASWithPerturbation share.

L_VAE = mean (g(s, z) - a)^2 + beta mean KL(N(mu, std) || N(0, 1))      alone, for warmup_steps updates; then the VAE is frozen
a     = g(s, 2 pi(s)),    pi(s) in [-1, 1]^2A
y     = r + gamma^n (1 - d) (lam min_i Qt_i(s', a') + (1 - lam) max_i Qt_i(s', a')),    a' by the target policy
L_pi  = -mean Q_1(s, a)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Batch, LossResult, Noise, Optimizer, Space, State, Step, setting
from offrld.losses import td3
from offrld.losses.td import bellman
from offrld.losses.vae import vae_loss
from offrld.nets import ConditionalVAE, Critics, DeterministicPolicy, Encoder, Params, ResidualPolicy

LATENT_RANGE = 2.0  # the policy's tanh covers latents in [-2, 2], where nearly all of N(0, 1) lies


@dataclass(frozen=True)
class PLASConfig(td3.ActorCriticConfig):
    """Settings of the family; the defaults are d3rlpy's."""

    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    actor_learning_rate: float = setting(1e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    critic_learning_rate: float = setting(1e-3, "learning rate of the Q functions", low=0.0, exclusive_low=True)
    imitator_learning_rate: float = setting(1e-4, "learning rate of the VAE", low=0.0, exclusive_low=True)
    update_actor_interval: int = setting(1, "critic updates per update of the policy and the targets", unit="updates", low=1)
    lam: float = setting(0.75, "weight of the ensemble's minimum in the target; its maximum has weight 1 - lam", low=0.0, high=1.0)
    warmup_steps: int = setting(500_000, "initial updates that train only the VAE", unit="updates", low=0, probe=2)
    beta: float = setting(0.5, "weight of the VAE's KL term", low=0.0)
    imitator_encoder: Encoder = Encoder()
    imitator_optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets:
    """The networks of the family. The policy outputs latents; only PLASWithPerturbation has the perturbation."""

    actor: DeterministicPolicy
    critic: Critics
    vae: ConditionalVAE
    perturbation: ResidualPolicy | None = None


def networks(config: PLASConfig, space: Space) -> Nets:
    """Build a policy over latents, the Q functions and the VAE."""
    view, size, imitator = space.view, space.action_size, config.imitator_encoder
    return Nets(
        actor=DeterministicPolicy("actor", view, 2 * size, config.actor_encoder),
        critic=Critics("critic", config.n_critics, view, size, config.critic_encoder, config.q_function),
        vae=ConditionalVAE("vae", view, size, imitator, imitator),
    )


def noise(config: PLASConfig, space: Space) -> dict[str, Noise]:
    """Declare the noise of the VAE's latents."""
    return {"vae": Noise((config.batch_size, 2 * space.action_size))}


def action(nets: Nets, actor: Params, vae: Params, observation: Any) -> Tensor:
    """Return the decoded action ``[B, A]`` of the policy in ``actor``, corrected by the perturbation if the algorithm has one."""
    decoded = nets.vae.decode(vae, observation, LATENT_RANGE * nets.actor(actor, observation))
    return decoded if nets.perturbation is None else nets.perturbation(actor, observation, decoded)


def critic_loss(params: Params, config: PLASConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        following = action(nets, state.target, state.params, batch.next_observation)
        target = bellman(batch, nets.critic.target(state.target, batch.next_observation, following, "mix", config.lam))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return value, {"critic_loss": value}


def actor_loss(params: Params, config: PLASConfig, nets: Nets, state: State, batch: Batch) -> LossResult:
    chosen = action(nets, params, state.params, batch.observation)
    value = -batch.mean(nets.critic(state.params, batch.observation, chosen, members=1)[0])
    return value, {"actor_loss": value}


def schedule(config: PLASConfig, policy: tuple[str, ...] = ("actor",)) -> tuple[Step, ...]:
    """Train the VAE alone; then the Q functions, the networks ``policy``, and all targets."""
    warm, follow = config.warmup_steps, dict.fromkeys(("critic", *policy), config.tau)
    return (
        Step("vae", vae_loss, ("vae",), config.imitator_optimizer, config.imitator_learning_rate, until=warm),
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate, start=warm),
        Step(
            "actor",
            actor_loss,
            policy,
            config.actor_optimizer,
            config.actor_learning_rate,
            every=config.update_actor_interval,
            polyak=follow,
            start=warm,
        ),
    )


def act(params: Params, config: PLASConfig, nets: Nets, observation: Any) -> Tensor:
    """Return the decoded action ``[B, A]``."""
    return action(nets, params, params, observation)
