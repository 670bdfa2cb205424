"""Learned models of the environment: settings, networks and loss of the ensemble (see `nets.dynamics`).

    loss_m = mean_B m_b (0.5 sum_j (mu_j - x_j)^2 exp(-2 l_j) + sum_j l_j + 0.01 sum_j (most_j - least_j)),    x = (s' - s, r)

l_j are the log standard deviations; m_b is an independent fair coin per member and transition (a bootstrap). The loss is the sum over
members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from offrld.engine import ActionConfig, Batch, Config, LossResult, Noise, Optimizer, RewardScaler, Space, State, setting
from offrld.nets import Encoder, Params
from offrld.nets.dynamics import EnsembleDynamics

BOUND_WEIGHT = 0.01


@dataclass(frozen=True)
class DynamicsConfig(ActionConfig, Config):
    """Settings of a job that trains only the ensemble."""

    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "learning rate", low=0.0, exclusive_low=True)
    n_ensembles: int = setting(5, "number of models in the ensemble", low=1, high=100)
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer(weight_decay=1e-4)
    reward_scaler: RewardScaler = RewardScaler()


@dataclass(frozen=True)
class Nets:
    """The ensemble of models."""

    dynamics: EnsembleDynamics


def networks(config: Any, space: Space, encoder: Encoder) -> Nets:
    """Build the ensemble; raise `InvalidInput` for images."""
    sizes = (space.observation_size, space.action_size)
    return Nets(dynamics=EnsembleDynamics("dynamics", config.n_ensembles, *sizes, encoder, discrete=space.discrete))


def noise(config: Any, space: Space) -> dict[str, Noise]:
    """Declare the bootstrap's coins."""
    return {"bootstrap": Noise((config.n_ensembles, config.batch_size), "uniform")}


def loss(params: Params, config: Any, nets: Nets, state: State, batch: Batch) -> LossResult:
    """Return the negative log likelihood; metrics: the loss and the squared error of the means."""
    observation, following = cast(Tensor, batch.observation), cast(Tensor, batch.next_observation)  # [B, D]: vectors only
    predicted = nets.dynamics(params, observation, batch.action)
    x = torch.cat([following - observation, batch.reward.unsqueeze(-1)], dim=-1)  # [B, D + 1]
    error = (predicted.mean - x) ** 2  # [N, B, D + 1]
    likelihood = 0.5 * (error * torch.exp(-2 * predicted.log_std)).sum(-1) + predicted.log_std.sum(-1)  # [N, B]
    bounds = BOUND_WEIGHT * (predicted.most - predicted.least).sum(-1, keepdim=True)  # [N, 1]
    chosen = (batch.noise["bootstrap"] < 0.5).to(error.dtype)
    value = batch.weighted(chosen * (likelihood + bounds), -1).mean(-1).sum()
    return value, {"dynamics_loss": value, "dynamics_error": error.mean()}
