"""Distributional Q functions with every algorithm that has Q functions."""

from __future__ import annotations

import pytest
import torch
from cheap_settings import cheap_settings

from offrld import settings
from offrld.algos import ALGORITHMS, get
from offrld.engine import Learner

WITH_Q = [name for name, algorithm in ALGORITHMS.items() if "q_function.type" in settings.describe(algorithm.config)]
UPDATES = 3


@pytest.fixture(scope="module")
def inputs_of(store_for):
    """What algorithms take from other runs: an untrained policy, where they evaluate one."""

    def inputs(algorithm):
        if "policy" not in algorithm.inputs:
            return {}
        other = get("discrete_bc" if algorithm.actions == "discrete" else "bc")
        return {"policy": Learner.create(other, other.configure(), store_for(algorithm))}

    return inputs


def soon(algorithm):
    """Settings by which the Q functions learn from the second update on."""
    return {name: 1 for name in ("warmup_steps", "dynamics_steps") if hasattr(algorithm.config, name)}


@pytest.mark.parametrize("name", WITH_Q)
def test_every_kind_of_q_function_trains_and_learns_differently(name, store_for, inputs_of):
    algorithm = get(name)
    store, found = store_for(algorithm), {}
    for kind in ("mean", "qr", "iqn", "fqf"):
        sizes = {} if kind == "mean" else {"q_function.n_quantiles": 4}
        config = algorithm.configure({**cheap_settings(algorithm), **soon(algorithm), "q_function.type": kind, **sizes})
        learner = Learner.create(algorithm, config, store, dtype=torch.float64, inputs=inputs_of(algorithm))
        learner.run(UPDATES)
        for part, tensors in (("parameter", learner.state.params), ("target", learner.state.target)):
            for key, value in tensors.items():
                assert torch.isfinite(value).all(), f"{name} with {kind}: {part} {key}"
        assert all(torch.isfinite(torch.tensor(list(by_seed.values()))).all() for by_seed in learner.metrics().values())
        found[kind] = learner.state.params
    for kind in ("qr", "iqn", "fqf"):
        q = [key for key in found[kind] if key.split(".")[0] in ("critic", "q") and key.endswith("encoder.0.weight")]
        assert q
        others = [found[other] for other in found if other != kind]
        assert all(not torch.equal(found[kind][key], other[key]) for key in q for other in others), f"{name}: {kind} learns as another"


def test_only_iql_has_q_functions_that_are_always_the_mean():
    valued = {name for name, algorithm in ALGORITHMS.items() if algorithm.value is not None}
    assert valued - set(WITH_Q) == {"iql", "discrete_iql"}
