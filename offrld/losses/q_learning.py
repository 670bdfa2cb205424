"""Q-learning over discrete actions: the settings, networks, targets and schedule that DQN, DoubleDQN and DiscreteCQL share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrld.engine import Batch, Loss, LossResult, Optimizer, Space, State, Step, ValueConfig, setting
from offrld.losses.td import bellman, taken
from offrld.nets import DiscreteCritics, Encoder, Params, QFunction


@dataclass(frozen=True)
class QLearningConfig(ValueConfig):
    """Settings of the family; the defaults are d3rlpy's."""

    batch_size: int = setting(32, "transitions per update", unit="transitions", low=1, high=1_000_000)
    learning_rate: float = setting(6.25e-5, "learning rate", low=0.0, exclusive_low=True)
    n_critics: int = setting(1, "number of Q functions in the ensemble", low=1, high=100)
    target_update_interval: int = setting(8000, "updates between copies to the target network", unit="updates", low=1, probe=2)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    q_function: QFunction = QFunction()


@dataclass(frozen=True)
class Nets:
    """The networks of every algorithm that learns only Q functions over discrete actions."""

    q: DiscreteCritics


def networks(config: QLearningConfig, space: Space) -> Nets:
    """Build ``n_critics`` Q functions over the actions."""
    return Nets(q=DiscreteCritics("q", config.n_critics, space.view, space.action_size, config.encoder, config.q_function))


def q_target(nets: Nets, state: State, batch: Batch) -> Tensor:
    """Return the target of Q-learning ``[B, M]``: the target network both chooses the next action and evaluates it."""
    with torch.no_grad():
        values = nets.q.values(state.target, batch.next_observation)
        return bellman(batch, values.taken(values.average.argmax(-1)).reduce("min"))


def double_q_target(nets: Nets, params: Params, state: State, batch: Batch) -> Tensor:
    """Return the target of double Q-learning ``[B, M]``: the online network chooses the next action, the target network evaluates it."""
    with torch.no_grad():
        choice = nets.q.values(params, batch.next_observation).average.argmax(-1)  # [B]
        return bellman(batch, nets.q.target(state.target, batch.next_observation, choice))


def dqn_loss(params: Params, config: Any, nets: Nets, state: State, batch: Batch) -> LossResult:
    """Return the error against the target of Q-learning."""
    q = nets.q.values(params, batch.observation).taken(batch.action)  # [N, B]
    value = q.error(q_target(nets, state, batch), batch.weight)
    return value, {"loss": value, "q_mean": q.mean.mean()}


def schedule(config: QLearningConfig, loss: Loss) -> tuple[Step, ...]:
    """Update the Q functions at every update; copy them to the target network every ``target_update_interval``."""
    return (
        Step("q", loss, ("q",), config.optimizer, config.learning_rate),
        Step("target", every=config.target_update_interval, polyak={"q": 1.0}),
    )


def scores(params: Params, config: QLearningConfig, nets: Nets, observation: Any) -> Tensor:
    """Return the scores that rank the actions, ``[B, n]``: the mean value over the ensemble."""
    return nets.q.values(params, observation).average


def value(params: Params, config: Any, nets: Nets, observation: Any, action: Tensor) -> Tensor:
    """Return every member's values ``[N, B]`` of the actions ``[B]``."""
    return taken(nets.q(params, observation), action)
