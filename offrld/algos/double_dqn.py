"""DoubleDQN: DQN whose next action is chosen by the online network and valued by the target.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a*),    a* = argmax_a mean_i Q_i(s', a)
    L_Q = sum_i mean Huber(Q_i(s, a) - y)

The target is copied every `target_update_interval` updates. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offrld.algos.dqn import Config, networks
from offrld.engine import Adam, Algorithm, Batch, State, Step
from offrld.losses import bellman, huber_error, taken
from offrld.nets import Params


def double_target(params: Params, nets: Any, state: State, batch: Batch) -> Tensor:
    """The target of double Q-learning, ``[B]``."""
    with torch.no_grad():
        choice = nets.q(params, batch.next_observation).mean(0).argmax(-1)  # [B]
        return bellman(batch, taken(nets.q(state.target, batch.next_observation), choice).amin(0))


def loss(params: Params, config: Config, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    q = taken(nets.q(params, batch.observation), batch.action)  # [N, B]
    value = huber_error(q, double_target(params, nets, state, batch))
    return value, {"loss": value, "q_mean": q.mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("q", loss, optimizes=("q",), optimizer=Adam(config.learning_rate)),
        Step("target", every=config.target_update_interval, polyak={"q": 1.0}),
    )


ALGORITHM = Algorithm(
    name="double_dqn",
    summary="DQN with less overestimation: one network chooses the next action, the other values it",
    paper="van Hasselt, Guez & Silver 2016, Deep Reinforcement Learning with Double Q-learning (arXiv:1509.06461)",
    actions="discrete",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda nets, params, observation: nets.q(params, observation).mean(0),
    targets=("q",),
    presets={"paper": {}, "d3rlpy": {}},
)
