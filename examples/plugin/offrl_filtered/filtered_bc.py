"""Filtered BC: imitates only the actions that were better than usual.

    L_V  = mean (V(s) - G)^2,    G the discounted rewards from s to the episode's end
    L_pi = sum_i w_i |pi(s_i) - a_i|^2 / sum_i w_i,    w = exp(clip((G - V(s)) / temperature, -4, 4))

Metrics: `value_loss`, `policy_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, Optimizer, Space, State, Step, ValueConfig, setting
from offrld.nets import DeterministicPolicy, Encoder, Params, ValueFunction

LIMIT = 4.0  # of the exponent: weights between 1/55 and 55


@dataclass(frozen=True)
class Config(ValueConfig):
    learning_rate: float = setting(3e-4, "learning rate of both networks", low=0.0, exclusive_low=True)
    temperature: float = setting(1.0, "advantage that counts e times as much", unit="rewards", low=0.0, exclusive_low=True)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets:
    policy: DeterministicPolicy
    value: ValueFunction


def networks(config: Config, space: Space) -> Nets:
    return Nets(
        policy=DeterministicPolicy("policy", space.view, space.action_size, config.encoder),
        value=ValueFunction("value", space.view, config.encoder),
    )


def value_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    loss = ((nets.value(params, batch.observation) - batch.returns) ** 2).mean()
    return loss, {"value_loss": loss}


def policy_loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        advantage = batch.returns - nets.value(state.params, batch.observation)  # [B]
        weight = torch.exp((advantage / config.temperature).clamp(-LIMIT, LIMIT))
    error = ((nets.policy(params, batch.observation) - batch.action) ** 2).sum(-1)  # [B]
    loss = (weight * error).sum() / weight.sum()
    return loss, {"policy_loss": loss}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("value", value_loss, ("value",), config.optimizer, config.learning_rate),
        Step("policy", policy_loss, ("policy",), config.optimizer, config.learning_rate),
    )


ALGORITHM = Algorithm(
    name="filtered_bc",
    summary="behaviour cloning of the actions that were better than usual",
    paper="the worked example of docs/extending.md, after Wang et al. 2018 (MARWIL)",
    actions="continuous",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.policy(params, observation),
    returns=True,
    presets={"paper": {}, "sharp": {"temperature": 0.1}},
)
