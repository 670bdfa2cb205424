"""DQN: Q-learning with a target network over discrete actions.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a*),    a* = argmax_a mean_i Qt_i(s', a)
    L_Q = sum_i mean Huber(Q_i(s, a) - y)

The target is copied every `target_update_interval` updates. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Adam, Algorithm, Batch, Space, State, Step, ValueConfig, setting
from offrld.losses import bellman, huber_error, taken
from offrld.nets import DiscreteCritics, Encoder, Params


@dataclass(frozen=True)
class Config(ValueConfig):
    batch_size: int = setting(32, "transitions per update", unit="transitions", low=1, high=1_000_000)
    learning_rate: float = setting(6.25e-5, "Adam's step size", low=0.0, exclusive_low=True)
    n_critics: int = setting(1, "size of the ensemble of Q functions", low=1, high=100)
    target_update_interval: int = setting(8000, "updates between copies to the target", unit="updates", low=1, probe=2)
    encoder: Encoder = Encoder()


def networks(config: Config, space: Space) -> dict[str, Any]:
    return {"q": DiscreteCritics("q", config.n_critics, space.observation_size, space.action_size, config.encoder)}


def loss(params: Params, config: Config, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        next_q = nets.q(state.target, batch.next_observation)  # [N, B, n]
        target = bellman(batch, taken(next_q, next_q.mean(0).argmax(-1)).amin(0))  # [B]
    q = taken(nets.q(params, batch.observation), batch.action)  # [N, B]
    value = huber_error(q, target)
    return value, {"loss": value, "q_mean": q.mean()}


def schedule(config: Config) -> tuple[Step, ...]:
    return (
        Step("q", loss, optimizes=("q",), optimizer=Adam(config.learning_rate)),
        Step("target", every=config.target_update_interval, polyak={"q": 1.0}),
    )


ALGORITHM = Algorithm(
    name="dqn",
    summary="deep Q-learning; without conservatism it needs data with much exploration",
    paper="Mnih et al. 2015, Human-level control through deep reinforcement learning",
    actions="discrete",
    config=Config(),
    networks=networks,
    schedule=schedule,
    act=lambda nets, params, observation: nets.q(params, observation).mean(0),
    targets=("q",),
    presets={"paper": {}, "d3rlpy": {}},
)
