"""DiscreteBCQ: Q-learning only among actions that are likely enough under a model of the data.

    a*(s) = argmax_a 1[log G(a | s) - max_b log G(b | s) > log action_flexibility] (Q(s, a) - min_b Q(s, b) + 1e-5),    Q the members' mean
    y     = r + gamma^n (1 - d) min_i Qt_i(s', a*(s'))       a* by the online networks
    L     = sum_i mean Huber(Q_i(s, a) - y) - mean log G(a | s) + beta mean l(s)^2        (l the logits of G)

One optimizer updates the Q functions and the imitator, which shares the first Q function's encoder unless `share_encoder` is false. The
target network is copied every `target_update_interval` updates. (The 1e-5 prevents the choice of a forbidden action if all allowed ones
have the smallest value.) Metrics: `loss`, `td_loss`, `imitator_loss`.

The defaults are d3rlpy's. Its beta of 0.5 flattens G so much that, among few actions, one that never occurs in the data stays allowed; the
authors use 0.01 (preset `paper`). d3rlpy's first version shares only image encoders (preset `d3rlpy-v1`: not shared).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offrld.engine import Algorithm, Batch, LossResult, Space, State, Step, setting
from offrld.losses import bellman, procgen, q_learning, taken
from offrld.nets import CategoricalPolicy, Params


@dataclass(frozen=True)
class Config(q_learning.QLearningConfig):
    action_flexibility: float = setting(
        0.3,
        "lowest allowed probability of an action, relative to the most likely one",
        unit="share",
        low=0.0,
        high=1.0,
        exclusive_low=True,
        probe=0.99,
    )
    beta: float = setting(0.5, "weight of the penalty on the imitator's logits", low=0.0)
    share_encoder: bool = setting(True, "share the first Q function's encoder with the imitator")


@dataclass(frozen=True)
class Nets(q_learning.Nets):
    imitator: CategoricalPolicy


def networks(config: Config, space: Space) -> Nets:
    q = q_learning.networks(config, space).q
    shared = q.encoders[0] if config.share_encoder else None
    return Nets(q=q, imitator=CategoricalPolicy("imitator", space.view, space.action_size, config.encoder, shared=shared))


def allowed_scores(params: Params, config: Config, nets: Nets, observation: Any) -> Tensor:
    """Return a score for every action, ``[B, n]``; a* has the largest."""
    q = nets.q.values(params, observation).average  # [B, n]
    log_prob = nets.imitator.log_prob(params, observation)
    likely = log_prob - log_prob.amax(-1, keepdim=True) > math.log(config.action_flexibility)
    return likely.to(q.dtype) * (q - q.amin(-1, keepdim=True) + 1e-5)


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        choice = allowed_scores(params, config, nets, batch.next_observation).argmax(-1)  # [B]
        target = bellman(batch, nets.q.target(state.target, batch.next_observation, choice))  # [B, M]
    td_loss = nets.q.values(params, batch.observation).taken(batch.action).error(target, batch.weight)
    logits = nets.imitator(params, batch.observation)  # [B, n]
    imitator_loss = config.beta * batch.mean(logits**2) - batch.mean(taken(F.log_softmax(logits, dim=-1), batch.action))
    value = td_loss + imitator_loss
    return value, {"loss": value, "td_loss": td_loss, "imitator_loss": imitator_loss}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("q", loss, ("q", "imitator"), config.optimizer, config.learning_rate),
        Step("target", every=config.target_update_interval, polyak={"q": 1.0}),
    )


ALGORITHM = Algorithm(
    name="discrete_bcq",
    summary="Q-learning among the actions that a model of the data finds likely",
    paper="Fujimoto et al. 2019, Benchmarking Batch Deep Reinforcement Learning Algorithms (arXiv:1910.01708)",
    actions="discrete",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=allowed_scores,
    value=q_learning.value,
    targets=("q",),
    presets={
        "paper": {"beta": 0.01},
        "d3rlpy": {},
        "d3rlpy-v1": {"share_encoder": False},
        "procgen": {
            **procgen.images("encoder"),
            "batch_size": procgen.BATCH_SIZE,
            "learning_rate": procgen.LEARNING_RATE,
            "target_update_interval": procgen.TARGET_UPDATE_INTERVAL,
            "action_flexibility": 0.3,
            "beta": 0.01,
        },
    },
)
