"""AWAC: advantage-weighted regression onto the data's actions, with an ordinary critic; designed for online fine-tuning.

    V    = mean_k min_i Q_i(s, a_k),    a_k ~ pi(s), k = 1 .. n_action_samples
    adv  = min_i Q_i(s, a) - V
    w    = B softmax over the batch (adv / lam)
    L_pi = -sum_B w log pi(a | s)                        a sum, not a mean
    y    = r + gamma^n (1 - d) min_i Qt_i(s', a~),    a~ ~ pi(s'), clipped; no entropy
    L_Q  = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)

The policy is a plain normal around tanh(mu(s)) with one learned standard deviation per dimension, log std within [-6, 0]. By mistake,
d3rlpy's second version subtracts an entropy with weight 1 and samples a squashed normal. Metrics: `critic_loss`, `actor_loss`, `std`.

Preset `d3rlpy-v1` has the first version's weight decay of 1e-4 on the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, Noise, Space, State, Step, setting
from offrld.losses import bellman, td3
from offrld.nets import Critics, NormalPolicy, Params


@dataclass(frozen=True)
class Config(td3.ActorCriticConfig):
    batch_size: int = setting(1024, "transitions per update", unit="transitions", low=1, high=1_000_000)
    lam: float = setting(1.0, "temperature of the advantage weights", low=0.0, exclusive_low=True)
    n_action_samples: int = setting(1, "samples whose mean value estimates the state's value", unit="actions", low=1, high=1000)
    update_actor_interval: int = setting(1, "critic updates per update of the policy and the target", unit="updates", low=1)


@dataclass(frozen=True)
class Nets:
    actor: NormalPolicy
    critic: Critics


def networks(config: Config, space: Space) -> Nets:
    view, size = space.view, space.action_size
    return Nets(
        actor=NormalPolicy("actor", view, size, config.actor_encoder, log_std_range=(-6.0, 0.0), free_std=True),
        critic=Critics("critic", config.n_critics, view, size, config.critic_encoder, config.q_function),
    )


def noise(config: Config, space: Space) -> dict[str, Noise]:
    shape = (config.batch_size, space.action_size)
    return {"next": Noise(shape), "samples": Noise((config.n_action_samples, *shape))}


# --- Q functions ---
def critic_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        action = nets.actor.sample(state.params, batch.next_observation, batch.noise["next"])
        target = bellman(batch, nets.critic.target(state.target, batch.next_observation, action))  # [B, M]
    value = nets.critic.values(params, batch.observation, batch.action).error(target, batch.weight)
    return value, {"critic_loss": value}


# --- Policy ---
def actor_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    policy = nets.actor.distribution(params, batch.observation)
    with torch.no_grad():
        samples = policy.sample(batch.noise["samples"]).clamp(-1.0, 1.0)  # [K, B, A]
        # One evaluation for the data's action and the samples.
        q = nets.critic(state.params, batch.observation, torch.cat([batch.action.unsqueeze(0), samples])).amin(0)  # [1 + K, B]
        advantage = q[0] - q[1:].mean(0)  # [B]
        exponent = advantage / config.lam
        if batch.weight is not None:  # a transition of weight 0 then has weight 0 in the softmax
            exponent = exponent + torch.log(batch.weight)
        weight = len(advantage) * torch.softmax(exponent, dim=0)
    value = -(weight * policy.log_prob(batch.action)).sum()
    return value, {"actor_loss": value, "std": torch.exp(policy.log_std).mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("critic", critic_loss, ("critic",), config.critic_optimizer, config.critic_learning_rate),
        Step(
            "actor",
            actor_loss,
            ("actor",),
            config.actor_optimizer,
            config.actor_learning_rate,
            every=config.update_actor_interval,
            polyak={"critic": config.tau},
        ),
    )


ALGORITHM = Algorithm(
    name="awac",
    summary="advantage-weighted actor-critic: imitation weighted by advantage, suited to online fine-tuning",
    paper="Nair et al. 2020, AWAC: Accelerating Online Reinforcement Learning with Offline Datasets (arXiv:2006.09359)",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=noise,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.actor(params, observation),
    sample=lambda params, config, nets, observation, noise: nets.actor.sample(params, observation, noise),
    value=td3.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}, "d3rlpy-v1": {"actor_optimizer.weight_decay": 1e-4}},
)
