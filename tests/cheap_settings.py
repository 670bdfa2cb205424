"""How the tests that run over the whole registry train each algorithm: small, on the store that fits it, with what it needs beside.

An algorithm whose defaults are wide (layers of 256, ensembles of ten, a hundred sampled actions) is cut down by rules that need no
mention of it. What an algorithm's own defaults hide for the first updates stands in `PATIENT`, with the reason; one that needs another
run's policy gets it from `other_run`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from offrl_store import EpisodeStore
from offrld import build, settings
from offrld.algos import ALGORITHMS
from offrld.engine import Algorithm, Learner

# Those that learn from a dataset; the others are tested where they play (test_ppo.py).
FROM_DATA = {name: algorithm for name, algorithm in ALGORITHMS.items() if not algorithm.plays}

# Sizes whose defaults are too large for a test, by the last part of their names; smaller defaults stay.
LARGEST = {
    "batch_size": 16, "context_size": 4, "n_critics": 2, "n_action_samples": 4, "n_target_samples": 3, "n_mmd_action_samples": 3,
    "layers": 1, "max_timestep": 40, "hidden_size": 16, "n_ensembles": 2, "dynamics_batch_size": 8, "rollout_batch_size": 8,
    "rollout_horizon": 2, "generated_maxlen": 32,
}  # fmt: skip

# Settings that hide, in the first updates, what others do.
PATIENT: dict[str, dict[str, Any]] = {
    "bear": {"warmup_steps": 1},  # 40,000 updates in which the policy only nears the data: no Q function moves it
    "plas": {"warmup_steps": 1},  # 500,000 updates of the VAE alone
    "plas_with_perturbation": {"warmup_steps": 1},
    "mopo": {"dynamics_steps": 1, "rollout_interval": 1},  # 50,000 updates of the dynamics before anything else is trained
    "combo": {"dynamics_steps": 1, "rollout_interval": 1},
    "decision_transformer": {"encoder.units": [16, 16]},  # one layer without an activation after it: no activation at all
    "discrete_decision_transformer": {"encoder.units": [16, 16]},
}


def cheap_settings(algorithm: Algorithm, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``values`` over settings under which an update of the algorithm takes milliseconds; those that ``values`` leave unread are out."""
    known = settings.describe(algorithm.config)
    chosen: dict[str, Any] = {}
    for name, field in known.items():
        last = name.rpartition(".")[2]
        if last == "units":
            chosen[name] = [16] * min(len(field.default), 2)
        elif last in LARGEST and isinstance(field.default, int) and field.default > LARGEST[last]:
            chosen[name] = LARGEST[last]
    given = settings.resolve(values or {}, known)
    chosen = {**chosen, **settings.resolve(PATIENT.get(algorithm.name, {}), known), **given}

    def read(name: str) -> bool:
        return all(chosen.get(other, known[other].default) in words for other, words in known[name].only.items())

    return {name: value for name, value in chosen.items() if name in given or read(name)}


def cheap_learner(algorithm: Algorithm, store: EpisodeStore, values: Mapping[str, Any] | None = None, **options: Any) -> Learner:
    """A learner with `cheap_settings`; ``options`` as `Learner.create` takes them."""
    needed = [name for name, kind in algorithm.inputs.items() if kind == "policy" and name not in (values or {})]
    inputs = {name: other_run("policy", store) for name in needed}
    return build(algorithm, store, config=cheap_settings(algorithm, values), inputs=inputs, **options)


@functools.cache
def other_run(kind: str, store: EpisodeStore, seed: int = 0) -> Learner:
    """A trained learner as `Algorithm.inputs` want it: of an algorithm by name, or of any whose policy acts (``policy``)."""
    clone = "discrete_bc" if np.issubdtype(store.schema.action.dtype, np.integer) else "bc"
    learner = cheap_learner(ALGORITHMS[clone if kind == "policy" else kind], store, seeds=[seed])
    learner.run(2)
    return learner


def action_of(policy: Any, observations: torch.Tensor) -> torch.Tensor:
    """A policy module's actions; of one that remembers, at the first step of as many episodes."""
    if not hasattr(policy, "start"):
        return policy(observations)
    return policy(observation=observations, **policy.start(len(observations)))[0]
