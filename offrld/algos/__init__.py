"""The registry: every algorithm that offrld knows, by name. To add one: one file beside these, and one line below.

Installed packages add theirs through the entry-point group ``offrl.algorithms``: see docs/extending.md.
"""

from __future__ import annotations

from offrl.errors import InvalidInput, Unknown, nearest
from offrld import plugins
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
    discrete_iql,
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
    ppo,
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
        discrete_iql,
        discrete_fqe,
        discrete_random_policy,
        discrete_sac,
        discrete_bc,
        discrete_decision_transformer,
        # either, from its own play
        ppo,
    )
}

GROUP = "offrl.algorithms"  # entry points of installed packages: name -> a module with ALGORITHM, or the Algorithm itself


def names() -> tuple[str, ...]:
    """Every name: the built-in ones, then those of installed packages, which are not imported for it and cannot replace a built-in one."""
    return (*ALGORITHMS, *plugins.names(GROUP, ALGORITHMS))


def get(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        Unknown: there is none; the hint is the nearest name.
        InvalidInput: the package that registers it cannot be imported, or gives no algorithm of that name.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name not in names():
        raise Unknown(f"unknown algorithm {name!r}", hint=nearest(name, names()))
    found = plugins.load(GROUP, name)
    algorithm = getattr(found, "ALGORITHM", found)
    if not isinstance(algorithm, Algorithm):
        raise InvalidInput(f"{name!r} of {GROUP!r} is {algorithm!r:.80}, no Algorithm", hint="the module needs ALGORITHM = Algorithm(...)")
    if algorithm.name != name:
        raise InvalidInput(f"{name!r} of {GROUP!r} calls itself {algorithm.name!r}", hint="register it under its own name")
    return algorithm
