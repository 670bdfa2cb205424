"""CalQL: CQL that lowers the values of the policy's actions no further than the return in the data.

    Q_i(s, a_k) <- max(Q_i(s, a_k), G(s))    for the actions a_k of pi(s) and pi(s') in CQL's penalty, not for the uniform ones

G(s) is the discounted return of scaled rewards from s to the end of the stored episode. It counts no rewards after that end, so it
underestimates the return if the episode was truncated. All else is CQL (see `cql`). Metrics: `critic_loss`, `conservative_loss`,
`conservative_gap`, `alpha`, `alpha_loss`, `actor_loss`, `temp_loss`, `temp`, `entropy`, `q_mean`.
"""

from __future__ import annotations

from offrld.engine import Algorithm, Batch, LossResult, State
from offrld.losses import cql, sac
from offrld.nets import Params


def critic_loss(params: Params, config: cql.CQLConfig, nets: cql.Nets, state: State, batch: Batch) -> LossResult:
    return cql.critic_loss(params, config, nets, state, batch, floor=batch.returns)


ALGORITHM = Algorithm(
    name="cal_ql",
    summary="calibrated CQL: values stay above the data's returns, so that online fine-tuning starts without a drop",
    paper="Nakamoto et al. 2023, Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning (arXiv:2303.05479)",
    actions="continuous",
    config=cql.CQLConfig(),
    networks=cql.networks,
    noise=cql.noise,
    carry=cql.carry,
    schedule=lambda config: cql.schedule(config, critic_loss),
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    returns=True,
    presets={"paper": {}, "d3rlpy": {}},
)
