"""CQL: soft actor-critic that lowers the Q functions at actions outside the data.

    C_i     = mean (logsumexp_k cat_i - Q_i(s, a)),    cat_i = Q_i - log density over actions of pi(s), of pi(s') and uniform ones
    L_Q     = sum_i mean (Q_i(s, a) - y)^2 + clip(alpha, 0, 1e6) sum_i w (C_i - tau)
    L_alpha = -clip(alpha, 0, 1e6) mean_i w (C_i - tau)
    y       = r + gamma^n (1 - d) min_i Qt_i(s', tanh(mu(s')))        (soft_q_backup: SAC's; max_q_backup: the best of K next actions)

w is `conservative_weight`, tau `alpha_threshold`, K `n_action_samples`; policy and temperature are SAC's. As in d3rlpy's second version,
the weight also multiplies the threshold, and the loss sums over the members; in the first version the same numbers give another threshold
and half the strength. The dual variable moves after the Q functions, with the penalty of their update (in d3rlpy: before them, with the
same penalty). Metrics: `critic_loss`, `conservative_loss`, `conservative_gap` (the mean C), `alpha`, `alpha_loss`, `actor_loss`,
`temp_loss`, `temp`, `entropy`, `q_mean`.
"""

from __future__ import annotations

from offrld.engine import Algorithm
from offrld.losses import cql, sac

ALGORITHM = Algorithm(
    name="cql",
    summary="conservative Q-learning: lowers the values of unseen actions",
    paper="Kumar et al. 2020, Conservative Q-Learning for Offline Reinforcement Learning (arXiv:2006.04779)",
    actions="continuous",
    config=cql.CQLConfig(),
    networks=cql.networks,
    noise=cql.noise,
    carry=cql.carry,
    schedule=cql.schedule,
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
