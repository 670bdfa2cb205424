"""DoubleDQN: DQN whose online network chooses the next action and whose target network evaluates it.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a*),    a* = argmax_a mean_i Q_i(s', a)
    L_Q = sum_i mean Huber(Q_i(s, a) - y)                (quantile Huber for the distributional Q functions)

The target network is copied every `target_update_interval` updates. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from offrld.engine import Algorithm, Batch, LossResult, State
from offrld.losses import q_learning
from offrld.nets import Params


def loss(params: Params, config: q_learning.QLearningConfig, nets: q_learning.Nets, state: State, batch: Batch) -> LossResult:
    q = nets.q.values(params, batch.observation).taken(batch.action)
    value = q.error(q_learning.double_q_target(nets, params, state, batch), batch.weight)
    return value, {"loss": value, "q_mean": q.mean.mean()}


ALGORITHM = Algorithm(
    name="double_dqn",
    summary="DQN with less overestimation: one network chooses the next action, another evaluates it",
    paper="van Hasselt, Guez & Silver 2016, Deep Reinforcement Learning with Double Q-learning (arXiv:1509.06461)",
    actions="discrete",
    config=q_learning.QLearningConfig(),
    networks=q_learning.networks,
    schedule=lambda config: q_learning.schedule(config, loss),
    act=q_learning.scores,
    value=q_learning.value,
    targets=("q",),
    presets={"paper": {}, "d3rlpy": {}},
)
