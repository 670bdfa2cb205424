"""CRR: regression onto the data's actions, weighted by the critic's advantage of each over the policy's own actions.

    adv  = Q(s, a) - f_k Q(s, a_k),    a_k ~ pi(s), f the mean or the max over n_action_samples, Q the mean over the members
    w    = 1[adv > 0] (binary)  or  clip(exp(adv / beta), 0, max_weight) (exp)
    L_pi = -mean w log pi(a | s)
    y    = r + gamma^n (1 - d) min_i Qt_i(s', clip(a~, -1, 1)),    a~ ~ pit(s')
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)

The target networks are copied every `target_update_interval` (hard) or move by tau at every update (soft). Acting takes the best, under Q,
of n_action_samples samples whose noise is drawn only once; one of them is the mean. d3rlpy draws one at random by the softmax of Q, even
for the greedy action, and ignores `update_actor_interval`. Metrics: `critic_loss`, `actor_loss`, `weight`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Algorithm, Batch, LossResult, Noise, Space, State, Step, setting
from offrld.losses import bellman, td3
from offrld.nets import Critics, NormalPolicy, Params
from offrld.nets.candidates import Candidates, best_of, for_batch


@dataclass(frozen=True)
class Config(td3.ActorCriticConfig):
    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    tau: float = setting(
        0.005, "rate of soft target updates", unit="share per update", low=0.0, high=1.0, only={"target_update_type": ("soft",)}
    )
    n_critics: int = setting(1, "number of Q functions in the ensemble", low=1, high=1000)
    beta: float = setting(1.0, "temperature of the advantage weights", low=0.0, exclusive_low=True, only={"weight_type": ("exp",)})
    n_action_samples: int = setting(4, "policy samples against which the data's action is compared", unit="actions", low=1, high=1000)
    advantage_type: str = setting("mean", "statistic of the samples' values that is subtracted", choices=("mean", "max"))
    weight_type: str = setting("exp", "form of the weights", choices=("exp", "binary"))
    max_weight: float = setting(20.0, "upper limit of a weight", low=0.0, exclusive_low=True, only={"weight_type": ("exp",)}, probe=0.5)
    target_update_type: str = setting("hard", "how the target networks are updated", choices=("hard", "soft"))
    target_update_interval: int = setting(
        100, "updates between copies to the target networks", unit="updates", low=1, only={"target_update_type": ("hard",)}, probe=2
    )
    update_actor_interval: int = setting(1, "critic updates per update of the policy", unit="updates", low=1)


@dataclass(frozen=True)
class Nets:
    actor: NormalPolicy
    critic: Critics
    candidates: Candidates


def networks(config: Config, space: Space) -> Nets:
    view, size = space.view, space.action_size
    return Nets(
        actor=NormalPolicy("actor", view, size, config.actor_encoder, log_std_range=(-20.0, 2.0), free_std=False),
        critic=Critics("critic", config.n_critics, view, size, config.critic_encoder, config.q_function),
        candidates=Candidates("candidates", config.n_action_samples, size),
    )


def noise(config: Config, space: Space) -> dict[str, Noise]:
    shape = (config.batch_size, space.action_size)
    return {"next": Noise(shape), "samples": Noise((config.n_action_samples, *shape))}


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        action = nets.actor.sample(state.target, batch.next_observation, batch.noise["next"])
        target = bellman(batch, nets.critic.target(state.target, batch.next_observation, action))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return value, {"critic_loss": value}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    policy = nets.actor.distribution(params, batch.observation)
    with torch.no_grad():
        samples = policy.sample(batch.noise["samples"]).clamp(-1.0, 1.0)  # [K, B, A]
        others = nets.critic(state.params, batch.observation, samples).mean(0)  # [K, B]
        baseline = others.mean(0) if config.advantage_type == "mean" else others.amax(0)
        advantage = nets.critic(state.params, batch.observation, batch.action).mean(0) - baseline  # [B]
        if config.weight_type == "binary":
            weight = (advantage > 0).to(advantage.dtype)
        else:
            weight = torch.exp(advantage / config.beta).clamp(max=config.max_weight)
    value = -batch.mean(weight * policy.log_prob(batch.action))
    return value, {"actor_loss": value, "weight": weight.mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    hard = config.target_update_type == "hard"
    rate = 1.0 if hard else config.tau
    return (
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        Step("actor", actor_loss, ("actor",), config.actor_optimizer, config.actor_learning_rate, config.update_actor_interval),
        Step("target", every=config.target_update_interval if hard else 1, polyak={"critic": rate, "actor": rate}),
    )


def candidates(params: Params, config: Config, nets: Nets, observation: Any) -> tuple[Tensor, Tensor]:
    noise = for_batch(nets.candidates(params), observation)
    actions = nets.actor.sample(params, observation, noise)  # [K, B, A]
    return actions, nets.critic(params, observation, actions).mean(0)


ALGORITHM = Algorithm(
    name="crr",
    summary="critic-regularised regression: imitates the data's actions that its critic rates above the policy's",
    paper="Wang et al. 2020, Critic Regularized Regression (arXiv:2006.15134)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=noise,
    schedule=schedule,
    act=best_of(candidates),
    candidates=candidates,
    sample=lambda params, config, nets, observation, noise: nets.actor.sample(params, observation, noise),
    value=td3.value,
    targets=("actor", "critic"),
    presets={"paper": {}, "d3rlpy": {}},
)
