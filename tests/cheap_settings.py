"""How the tests that run over the whole registry train each algorithm: small, on the store that fits it, with what it needs beside.

An algorithm whose defaults are wide (layers of 256, ensembles of ten, a hundred sampled actions) is cut down by rules that need no
mention of it. What an algorithm's own defaults hide for the first updates stands in `PATIENT`, with the reason; what it needs
beside a store (another job's policy or model), in `BESIDE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from offrl_store import EpisodeStore
from offrld import settings
from offrld.engine import Algorithm, Learner

# Sizes whose defaults are too large for a test, by the last part of their names; smaller defaults stay.
LARGEST = {
    "batch_size": 16, "context_size": 4, "n_critics": 2, "n_action_samples": 4, "n_target_samples": 3, "n_mmd_action_samples": 3,
    "layers": 1, "max_timestep": 40, "n_quantiles": 8, "hidden_size": 16,
}  # fmt: skip

# Settings that hide, in the first updates, what others do.
PATIENT: dict[str, dict[str, Any]] = {
    "bear": {"warmup_steps": 1},  # 40,000 updates in which the policy only nears the data: no Q function moves it
}

# name -> what `Learner.create` is given beside the config and the store.
BESIDE: dict[str, Callable[[Algorithm, EpisodeStore], dict[str, Any]]] = {}


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
    beside = BESIDE[algorithm.name](algorithm, store) if algorithm.name in BESIDE else {}
    return Learner.create(algorithm, algorithm.configure(cheap_settings(algorithm, values)), store, **{**beside, **options})


def action_of(policy: Any, observations: torch.Tensor) -> torch.Tensor:
    """A policy module's actions; of one that remembers, at the first step of as many episodes."""
    if not hasattr(policy, "start"):
        return policy(observations)
    return policy(observation=observations, **policy.start(len(observations)))[0]
