"""FQE: learns the values of a fixed policy, to evaluate it without running it.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a'),    a' the evaluated policy's greedy action at s'
    L_Q = sum_i mean (Q_i(s, a) - y)^2                (quantile Huber for the distributional Q functions)

`policy` names the job whose policy is evaluated; that policy sees raw observations through its own scalers. The target network is copied
every `target_update_interval` updates. The job's policy is the evaluated policy. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import ActionConfig, Algorithm, Batch, LossResult, Space, State
from offrld.losses import bellman, fqe
from offrld.nets import Critics, Params


@dataclass(frozen=True)
class Config(ActionConfig, fqe.FQEConfig):
    """Settings; the defaults are d3rlpy's."""


@dataclass(frozen=True)
class Nets:
    q: Critics


def networks(config: Config, space: Space) -> Nets:
    return Nets(q=Critics("q", config.n_critics, space.view, space.action_size, config.encoder, config.q_function))


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    with torch.no_grad():
        assert batch.next_action is not None  # `Algorithm.next_action` requests it
        target = bellman(batch, nets.q.target(state.target, batch.next_observation, batch.next_action))  # [B, M]
    q = nets.q.values(params, batch.observation, batch.action)
    value = q.error(target, batch.weight)
    return value, {"loss": value, "q_mean": q.mean.mean()}


ALGORITHM = Algorithm(
    name="fqe",
    summary="fitted Q evaluation of another job's policy",
    paper="Le, Voloshin & Yue 2019, Batch Policy Learning under Constraints (arXiv:1903.08738)",
    actions="continuous",
    config=Config(),
    networks=networks,
    schedule=lambda config: fqe.schedule(config, loss),
    act=fqe.act,
    acts=False,
    value=lambda params, config, nets, observation, action: nets.q(params, observation, action),
    targets=("q",),
    inputs={"policy": "policy"},
    next_action="policy",
    presets={"paper": {}, "d3rlpy": {}},
)
