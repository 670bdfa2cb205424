"""DiscreteFQE: learns the values of a fixed policy over discrete actions, to evaluate it without running it.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a'),    a' the evaluated policy's greedy action at s'
    L_Q = sum_i mean Huber(Q_i(s, a) - y)               (quantile Huber for the distributional Q functions)

`policy` names the job whose policy is evaluated; that policy sees raw observations through its own scalers. The target network is copied
every `target_update_interval` updates. The job's policy is the evaluated policy. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

import torch

from offrld.engine import Algorithm, Batch, LossResult, State
from offrld.losses import bellman, fqe, q_learning
from offrld.nets import Params


def loss(params: Params, config: fqe.FQEConfig, nets: q_learning.Nets, state: State, batch: Batch) -> LossResult:
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
    networks=q_learning.networks,
    schedule=lambda config: fqe.schedule(config, loss),
    act=fqe.act,
    acts=False,
    value=q_learning.value,
    targets=("q",),
    inputs={"policy": "policy"},
    next_action="policy",
    presets={"paper": {}, "d3rlpy": {}},
)
