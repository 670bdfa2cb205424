"""The registry of algorithms by name. To add one, add a file to this package and a line to `MODULES`.

Installed packages register theirs in the entry-point group ``offrl.algorithms`` (see docs/extending.md).
"""

from __future__ import annotations

import importlib

from offrl.errors import InvalidInput, Unknown, nearest
from offrld import plugins
from offrld.engine import Algorithm

# The modules of this package, in the order of listings.
MODULES = (
    # continuous actions
    "rebrac",
    "td3_bc",
    "iql",
    "cql",
    "cal_ql",
    "edac",
    "sac_n",
    "awac",
    "bcq",
    "bear",
    "crr",
    "plas",
    "plas_with_perturbation",
    "prdc",
    "mopo",
    "combo",
    "ensemble_dynamics",
    "fqe",
    "random_policy",
    "bc",
    "sac",
    "td3",
    "ddpg",
    "decision_transformer",
    "tacr",
    # discrete actions
    "discrete_cql",
    "double_dqn",
    "dqn",
    "nfq",
    "discrete_bcq",
    "discrete_iql",
    "discrete_fqe",
    "discrete_random_policy",
    "discrete_sac",
    "discrete_bc",
    "discrete_decision_transformer",
    # either kind of action, from its own rollouts
    "ppo",
)
ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for algorithm in (importlib.import_module(f"{__name__}.{module}").ALGORITHM for module in MODULES)
}

GROUP = "offrl.algorithms"  # entry points of installed packages: name -> a module with ALGORITHM, or the Algorithm itself


def names() -> tuple[str, ...]:
    """List every name: the built-in ones, then those of packages. This imports no package, and a package cannot replace a built-in."""
    return (*ALGORITHMS, *plugins.names(GROUP, ALGORITHMS))


def get(name: str) -> Algorithm:
    """Find an algorithm by name.

    Raises:
        Unknown: no algorithm has this name; the hint suggests the nearest one.
        InvalidInput: the package that registers it cannot be imported, or its object is not an algorithm of that name.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name not in names():
        raise Unknown(f"unknown algorithm {name!r}", hint=nearest(name, names()))
    loaded = plugins.load(GROUP, name)
    algorithm = getattr(loaded, "ALGORITHM", loaded)
    if not isinstance(algorithm, Algorithm):
        what = f"{name!r} of {GROUP!r} is {algorithm!r:.80}, not an Algorithm"
        raise InvalidInput(what, hint="the module needs ALGORITHM = Algorithm(...)")
    if algorithm.name != name:
        raise InvalidInput(f"{name!r} of {GROUP!r} calls itself {algorithm.name!r}", hint="register it under its own name")
    return algorithm
