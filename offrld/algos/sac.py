"""SAC: soft actor-critic, which maximises the return and the entropy of a squashed normal policy.

    y       = r + gamma^n (1 - d) (min_i Qt_i(s', a~) - alpha log pi(a~ | s')),    a~ ~ pi(s')
    L_Q     = sum_i mean (Q_i(s, a) - y)^2                  (quantile Huber for the distributional Q functions)
    L_alpha = -mean (alpha (log pi(a^ | s) - A)),                                   alpha = exp(p), the gradient is that of exp(p)
    L_pi    = mean (alpha log pi(a^ | s) - min_i Q_i(s, a^)),                       a^ ~ pi(s), reparametrised

The updates follow this order; the temperature uses the same sample as the policy, and the target network moves last. The greedy action is
tanh(mu).
Metrics: `critic_loss`, `actor_loss`, `temp_loss`, `temp`, `entropy`, `q_mean`.
"""

from __future__ import annotations

from offrld.engine import Algorithm
from offrld.losses import sac

ALGORITHM = Algorithm(
    name="sac",
    summary="soft actor-critic: maximum entropy; for online data, or offline data with much exploration",
    paper="Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications (arXiv:1812.05905)",
    actions="continuous",
    config=sac.SACConfig(),
    networks=sac.networks,
    noise=sac.noise,
    schedule=sac.schedule,
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
