"""The registry: every algorithm that offrld knows, by name. To add one: one file beside these, and one line below."""

from __future__ import annotations

from offrl.errors import Unknown, nearest
from offrld.algos import (
    awac,
    bc,
    bcq,
    bear,
    cal_ql,
    combo,
    cql,
    crr,
    ddpg,
    decision_transformer,
    discrete_bc,
    discrete_bcq,
    discrete_cql,
    discrete_decision_transformer,
    discrete_fqe,
    discrete_random_policy,
    discrete_sac,
    double_dqn,
    dqn,
    edac,
    ensemble_dynamics,
    fqe,
    iql,
    mopo,
    nfq,
    plas,
    plas_with_perturbation,
    prdc,
    random_policy,
    rebrac,
    sac,
    sac_n,
    tacr,
    td3,
    td3_bc,
)
from offrld.engine import Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    module.ALGORITHM.name: module.ALGORITHM
    for module in (
        # continuous actions
        rebrac,
        td3_bc,
        iql,
        cql,
        cal_ql,
        edac,
        sac_n,
        awac,
        bcq,
        bear,
        crr,
        plas,
        plas_with_perturbation,
        prdc,
        mopo,
        combo,
        ensemble_dynamics,
        fqe,
        random_policy,
        bc,
        sac,
        td3,
        ddpg,
        decision_transformer,
        tacr,
        # discrete actions
        discrete_cql,
        double_dqn,
        dqn,
        nfq,
        discrete_bcq,
        discrete_fqe,
        discrete_random_policy,
        discrete_sac,
        discrete_bc,
        discrete_decision_transformer,
    )
}


def get(name: str) -> Algorithm:
    """The algorithm of that name; `Unknown` with the nearest one otherwise."""
    if name not in ALGORITHMS:
        raise Unknown(f"unknown algorithm {name!r}", hint=nearest(name, list(ALGORITHMS)))
    return ALGORITHMS[name]
