"""PRDC: TD3 whose policy is kept near the action that the data took in the most similar state.

    L_pi = -lam mean Q_1(s, pi(s)) + mean (pi(s) - a_nn)^2,    lam = alpha / mean |Q_1(s, pi(s))|

a_nn is the action of the transition in the dataset whose vector [beta s, a] is nearest to [beta s, pi(s)]. The search is exact, by
Euclidean distance over scaled observations and actions, and carries no gradient. Q functions and schedule are TD3's (see `td3`). Metrics:
`critic_loss`, `actor_loss`, `dc_loss`, `q_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from offrld.engine import Algorithm, Batch, Dataset, LossResult, State, setting
from offrld.losses import td3
from offrld.nets import Params

CHUNK = 65_536  # transitions compared at a time: bounds the memory of the distances


@dataclass(frozen=True)
class Config(td3.TD3Config):
    alpha: float = setting(2.5, "weight of the Q term relative to the distance from the nearest action", low=0.0)
    beta: float = setting(2.0, "weight of the observation relative to the action in the search", low=0.0, probe=50.0)


def prepare(dataset: Dataset, config: Config) -> dict[str, Tensor]:
    """Compute the vectors of all transitions, ``keys [n, D + A]``, and half their squared lengths, ``lengths [n]``."""
    rows = dataset.starts
    keys = torch.cat([config.beta * dataset.observations(rows), dataset.actions(rows)], dim=-1)
    return {"keys": keys, "lengths": 0.5 * (keys**2).sum(-1)}


def nearest_action(config: Config, state: State, observation: Tensor, action: Tensor) -> Tensor:
    """Return the data's action ``[B, A]`` whose vector is nearest.

    |k - q|^2 / 2 = |k|^2 / 2 - <k, q> + |q|^2 / 2, whose last term is the same for all k.
    """
    query = torch.cat([config.beta * observation, action], dim=-1)  # [B, D + A]
    keys, lengths = state.data["keys"], state.data["lengths"]
    distances, rows = [], []
    for start in range(0, len(keys), CHUNK):
        nearest = (lengths[start : start + CHUNK] - query @ keys[start : start + CHUNK].T).min(-1)  # [B]
        distances.append(nearest.values)
        rows.append(nearest.indices + start)
    chunk = torch.stack(distances).argmin(0, keepdim=True)  # [1, B]
    return keys[torch.stack(rows).gather(0, chunk).squeeze(0)][:, -action.shape[-1] :]


def actor_loss(params: Params, config: Config, nets: td3.Nets, state: State, batch: Batch) -> LossResult:
    action, q = td3.policy_values(params, nets, state, batch)
    weight = config.alpha / q.abs().mean().detach()
    with torch.no_grad():
        nearest = nearest_action(config, state, cast(Tensor, batch.observation), action)
    distance = batch.mean((action - nearest) ** 2)
    value = distance - weight * batch.mean(q)
    return value, {"actor_loss": value, "dc_loss": distance, "q_mean": q.mean()}


ALGORITHM = Algorithm(
    name="prdc",
    summary="TD3 kept near the action that the data took in the most similar state; vector observations",
    paper="Ran et al. 2023, Policy Regularization with Dataset Constraint for Offline Reinforcement Learning (arXiv:2306.06569)",
    actions="continuous",
    config=Config(),
    networks=td3.networks,
    noise=td3.noise,
    schedule=lambda config: td3.schedule(config, actor_loss),
    act=td3.act,
    value=td3.value,
    targets=("actor", "critic"),
    prepare=prepare,
    presets={"paper": {}, "d3rlpy": {}},
)
