"""SAC-N: soft actor-critic with an ensemble so large that its minimum is pessimistic outside the data.

    L_alpha = -mean (log alpha (log pi(a^ | s) - A))
    L_pi    = mean (alpha log pi(a^ | s) - min_i Q_i(s, a^))
    L_Q     = sum_i mean (Q_i(s, a) - y)^2,    y = r + gamma^n (1 - d) (min_i Qt_i(s', a~) - alpha log pi(a~ | s'))

N is `n_critics`; hard tasks need 100 or more. Metrics: `critic_loss`, `actor_loss`, `temp_loss`, `temp`, `entropy`, `q_mean`,
`q_std` (over the members at the policy's actions).

d3rlpy does not implement SAC-N; the settings are CORL's, and preset `d3rlpy` equals `paper`.
"""

from __future__ import annotations

from offrld.engine import Algorithm
from offrld.losses import sac, sac_n

ALGORITHM = Algorithm(
    name="sac_n",
    summary="SAC with a large ensemble of Q functions, whose minimum is pessimistic",
    paper="An et al. 2021, Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble (arXiv:2110.01548)",
    actions="continuous",
    config=sac_n.SACNConfig(),
    networks=sac_n.networks,
    noise=sac_n.noise,
    schedule=sac_n.schedule,
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
