"""BEAR: soft actor-critic whose policy stays within the support of the data, measured by the maximum mean discrepancy.

    MMD(s)  = sqrt(mean k(p, p') + mean k(b, b') - 2 mean k(p, b) + 1e-6)    m samples each, p of the policy, b of the VAE, before the tanh
    k       = exp(-|x - y|_1 / (2 sigma)) laplacian, exp(-|x - y|^2 / (2 sigma)) gaussian; sigma is not squared
    L_mmd   = mean alpha (MMD - alpha_threshold)
    L_pi    = SAC's + L_mmd;  L_mmd alone in the first warmup_steps
    L_alpha = -L_mmd as a function of alpha, whose logarithm is clipped to [-5, 10]
    y       = r + gamma^n (1 - d) (T - temp log pi(a*)),    T the best of n_target_samples actions by lam min_i Qt_i + (1 - lam) max_i Qt_i

Order of updates: VAE, temperature, alpha, Q functions, policy, targets. This is d3rlpy's first version; in the second, the step of alpha
cancels the policy's constraint by mistake. Acting takes the best, under Q_1, of n_action_samples policy samples whose noise is drawn only
once; one of them is the mean. Metrics: `vae_loss`, `temp_loss`, `temp`, `alpha_loss`, `alpha`, `critic_loss`, `actor_loss`, `mmd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Algorithm, Batch, LossResult, Noise, Optimizer, Space, State, Step, setting
from offrld.losses import bellman, sac
from offrld.nets import ConditionalVAE, Encoder, Params, PositiveScalar
from offrld.nets.candidates import Candidates, best_of, for_batch

LOG_ALPHA_RANGE = (-5.0, 10.0)


@dataclass(frozen=True)
class Config(sac.SACConfig):
    actor_learning_rate: float = setting(1e-4, "learning rate of the policy", low=0.0, exclusive_low=True)
    imitator_learning_rate: float = setting(3e-4, "learning rate of the VAE", low=0.0, exclusive_low=True)
    temp_learning_rate: float = setting(1e-4, "learning rate of the temperature; 0 keeps it fixed", low=0.0)
    alpha_learning_rate: float = setting(1e-3, "learning rate of the dual variable; 0 keeps it fixed", low=0.0)
    initial_alpha: float = setting(1.0, "initial value of the dual variable, the weight of the constraint", low=0.0, exclusive_low=True)
    alpha_threshold: float = setting(0.05, "discrepancy at which the dual variable stays constant")
    lam: float = setting(0.75, "weight of the ensemble's minimum in the target; its maximum has weight 1 - lam", low=0.0, high=1.0)
    n_action_samples: int = setting(100, "policy samples among which acting takes the best", unit="actions", low=1, high=10_000)
    n_target_samples: int = setting(10, "policy samples among which the target takes the best", unit="actions", low=1, high=1000)
    n_mmd_action_samples: int = setting(
        4, "samples each of the policy and of the data in the discrepancy", unit="actions", low=2, high=1000
    )
    mmd_kernel: str = setting("laplacian", "kernel of the discrepancy", choices=("laplacian", "gaussian"))
    mmd_sigma: float = setting(20.0, "width of the kernel", low=0.0, exclusive_low=True)
    vae_kl_weight: float = setting(0.5, "weight of the VAE's KL term", low=0.0)
    warmup_steps: int = setting(40_000, "initial updates that move the policy only towards the data", unit="updates", low=0, probe=2)
    imitator_encoder: Encoder = Encoder()
    imitator_optimizer: Optimizer = Optimizer()
    alpha_optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets(sac.Nets):
    vae: ConditionalVAE
    alpha: PositiveScalar
    candidates: Candidates


def networks(config: Config, space: Space) -> Nets:
    imitator = config.imitator_encoder
    return Nets(
        **vars(sac.networks(config, space)),
        vae=ConditionalVAE("vae", space.view, space.action_size, imitator, imitator),
        alpha=PositiveScalar("alpha", config.initial_alpha, LOG_ALPHA_RANGE),
        candidates=Candidates("candidates", config.n_action_samples, space.action_size),
    )


def noise(config: Config, space: Space) -> dict[str, Noise]:
    batch, size, m = config.batch_size, space.action_size, config.n_mmd_action_samples
    return {
        "vae": Noise((batch, 2 * size)),
        "actor": Noise((batch, size)),
        "next": Noise((config.n_target_samples, batch, size)),
        "mmd_policy": Noise((m, batch, size)),
        "mmd_data": Noise((m, batch, 2 * size)),
    }


def vae_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    value = nets.vae.loss(params, batch.observation, batch.action, batch.noise["vae"], config.vae_kl_weight, batch.mean)
    return value, {"vae_loss": value}


# --- Discrepancy ---
def discrepancy(actor: Params, config: Config, nets: Nets, state: State, batch: Batch) -> Tensor:
    """Return the MMD ``[B]`` at each observation between the policy's and the VAE's actions before the tanh."""
    with torch.no_grad():
        latent = batch.noise["mmd_data"].clamp(-0.5, 0.5)
        data = nets.vae.decode(state.params, batch.observation, latent, squash=False)  # [m, B, A]
    policy = nets.actor.unsquashed(actor, batch.observation, batch.noise["mmd_policy"])  # [m, B, A]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        gap = x.unsqueeze(0) - y.unsqueeze(1)  # [m, m, B, A]
        distance = gap.abs().sum(-1) if config.mmd_kernel == "laplacian" else (gap**2).sum(-1)
        return torch.exp(-distance / (2 * config.mmd_sigma)).mean((0, 1))  # [B]

    return torch.sqrt(kernel(policy, policy) + kernel(data, data) - 2 * kernel(policy, data) + 1e-6)


def alpha_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        gap = batch.mean(discrepancy(state.params, config, nets, state, batch) - config.alpha_threshold)
    value = -nets.alpha(params) * gap
    return value, {"alpha_loss": value, "alpha": nets.alpha(params)}


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        actions, log_prob = nets.actor.sample(state.params, batch.next_observation, batch.noise["next"])  # [K, B, A], [K, B]
        value, choice = nets.critic.values(state.target, batch.next_observation, actions).best(config.lam)  # [B, M], [B]
        entropy = nets.temp(state.params) * torch.gather(log_prob, 0, choice.unsqueeze(0)).squeeze(0)  # [B]
        target = bellman(batch, value - entropy.unsqueeze(-1))
    loss = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return loss, {"critic_loss": loss}


# --- Policy ---
def constraint(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the weighted constraint and the mean discrepancy; clip the dual variable to its range."""
    alpha = nets.alpha.project(params)
    mmd = discrepancy(params, config, nets, state, batch)
    return alpha * batch.mean(mmd - config.alpha_threshold), mmd.mean()


def warmup_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    value, mmd = constraint(params, config, nets, state, batch)
    return value, {"actor_loss": value, "mmd": mmd}


def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    action, log_prob = nets.actor.sample(params, batch.observation, batch.noise["actor"])
    q = nets.critic(state.params, batch.observation, action).amin(0)  # [B]
    penalty, mmd = constraint(params, config, nets, state, batch)
    value = batch.mean(nets.temp(state.params) * log_prob - q) + penalty
    return value, {"actor_loss": value, "mmd": mmd}


def schedule(config: Config) -> tuple[Step, ...]:
    warm = config.warmup_steps
    alpha = Step("alpha", alpha_loss, ("alpha",), config.alpha_optimizer, config.alpha_learning_rate)
    actor = partial(Step, optimizes=("actor",), optimizer=config.actor_optimizer, learning_rate=config.actor_learning_rate)
    return (
        Step("vae", vae_loss, ("vae",), config.imitator_optimizer, config.imitator_learning_rate),
        *sac.temp_steps(config),
        *((alpha,) if config.alpha_learning_rate > 0 else ()),
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        actor("warmup", warmup_loss, until=warm, moments="actor"),
        actor("actor", actor_loss, start=warm),
        Step("target", polyak={"critic": config.tau}),
    )


def candidates(params: Params, config: Config, nets: Nets, observation: Any) -> tuple[Tensor, Tensor]:
    actions, _ = nets.actor.sample(params, observation, for_batch(nets.candidates(params), observation))  # [K, B, A]
    return actions, nets.critic(params, observation, actions, members=1)[0]


ALGORITHM = Algorithm(
    name="bear",
    summary="SAC within the support of the data, measured by the maximum mean discrepancy",
    paper="Kumar et al. 2019, Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction (arXiv:1906.00949)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=noise,
    schedule=schedule,
    act=best_of(candidates),
    candidates=candidates,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
