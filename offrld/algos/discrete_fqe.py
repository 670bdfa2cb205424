"""DiscreteFQE: learns the values of a fixed policy over discrete actions, to judge it without running it.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a'),    a' the evaluated policy's greedy action at s'
    L_Q = sum_i mean Huber(Q_i(s, a) - y)               (quantile Huber for the distributional Q functions)

`policy` names the job whose policy is evaluated; it sees raw observations through its own scalers. The target is copied every
`target_update_interval` updates. A policy that is asked for is the evaluated one. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offrld.engine import Algorithm, Batch, Space, State
from offrld.losses import bellman, fqe, q_learning
from offrld.nets import DiscreteCritics, Params


def networks(config: fqe.FQEConfig, space: Space) -> dict[str, Any]:
    return {"q": DiscreteCritics("q", config.n_critics, space.view, space.action_size, config.encoder, config.q_function)}


def loss(params: Params, config: fqe.FQEConfig, nets: Any, state: State, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        target = bellman(batch, nets.q.target(state.target, batch.next_observation, batch.next_action))  # [B, M]
    q = nets.q.values(params, batch.observation).taken(batch.action)
    value = q.error(target, batch.weight)
    return value, {"loss": value, "q_mean": q.mean.mean()}


ALGORITHM = Algorithm(
    name="discrete_fqe",
    summary="fitted Q evaluation of another job's policy over discrete actions",
    paper="Le, Voloshin & Yue 2019, Batch Policy Learning under Constraints (arXiv:1903.08738)",
    actions="discrete",
    config=fqe.FQEConfig(),
    networks=networks,
    schedule=lambda config: fqe.schedule(config, loss),
    act=fqe.act,
    acts=False,
    value=q_learning.value,
    targets=("q",),
    inputs={"policy": "policy"},
    next_action="policy",
    presets={"paper": {}, "d3rlpy": {}},
)
