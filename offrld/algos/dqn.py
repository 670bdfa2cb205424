"""DQN: Q-learning with a target network over discrete actions.

    y   = r + gamma^n (1 - d) min_i Qt_i(s', a*),    a* = argmax_a mean_i Qt_i(s', a)
    L_Q = sum_i mean Huber(Q_i(s, a) - y)                (quantile Huber for the distributional Q functions)

The target network is copied every `target_update_interval` updates. Metrics: `loss`, `q_mean`.
"""

from __future__ import annotations

from offrld.engine import Algorithm
from offrld.losses import q_learning

ALGORITHM = Algorithm(
    name="dqn",
    summary="deep Q-learning; without conservatism it needs data with much exploration",
    paper="Mnih et al. 2015, Human-level control through deep reinforcement learning",
    actions="discrete",
    config=q_learning.QLearningConfig(),
    networks=q_learning.networks,
    schedule=lambda config: q_learning.schedule(config, q_learning.dqn_loss),
    act=q_learning.scores,
    value=q_learning.value,
    targets=("q",),
    presets={"paper": {}, "d3rlpy": {}},
)
