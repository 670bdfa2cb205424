"""DiscreteCQL: double Q-learning that lowers the values of actions outside the data.

    L = L_Q(DoubleDQN) + alpha mean(logsumexp_a Q(s, a) - Q(s, a_data)),    Q the mean over the ensemble

Metrics: `loss`, `td_loss`, `conservative_loss`, `q_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offrld.engine import Algorithm, Batch, LossResult, State, setting
from offrld.losses import procgen, q_learning, taken
from offrld.nets import Params


@dataclass(frozen=True)
class Config(q_learning.QLearningConfig):
    alpha: float = setting(1.0, "weight of the conservative term", low=0.0)


def loss(params: Params, config: Config, nets: q_learning.Nets, state: State, batch: Batch) -> LossResult:
    q = nets.q.values(params, batch.observation)
    td_loss = q.taken(batch.action).error(q_learning.double_q_target(nets, params, state, batch), batch.weight)
    mean = q.average  # [B, n]
    conservative = batch.mean(torch.logsumexp(mean, dim=-1) - taken(mean, batch.action))
    value = td_loss + config.alpha * conservative
    return value, {"loss": value, "td_loss": td_loss, "conservative_loss": conservative, "q_mean": mean.mean()}


ALGORITHM = Algorithm(
    name="discrete_cql",
    summary="conservative Q-learning: the recommended default for discrete actions",
    paper="Kumar et al. 2020, Conservative Q-Learning for Offline Reinforcement Learning (arXiv:2006.04779)",
    actions="discrete",
    config=Config(),
    networks=q_learning.networks,
    schedule=lambda config: q_learning.schedule(config, loss),
    act=q_learning.scores,
    value=q_learning.value,
    targets=("q",),
    presets={
        "paper": {},
        "d3rlpy": {},
        "procgen": {
            **procgen.images("encoder"),
            "batch_size": procgen.BATCH_SIZE,
            "learning_rate": procgen.LEARNING_RATE,
            "target_update_interval": procgen.TARGET_UPDATE_INTERVAL,
            "alpha": 1.0,
        },
    },
)
