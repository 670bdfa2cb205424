"""An algorithm as an estimator of scikit-learn: for ``cross_validate``, ``GridSearchCV``, ``clone`` and the like (needs scikit-learn).

estimator = Estimator("td3_bc", steps=2000, alpha=2.5)
cross_validate(estimator, store.episodes, cv=3, scoring={"error": lambda estimator, episodes: ...})
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from offrl.errors import InvalidInput
from offrl_store import Schema
from offrld.algos import get
from offrld.inprocess.learner import Learner
from offrld.inprocess.sources import opened

OWN = ("algorithm", "steps", "epochs", "preset", "seed", "device", "schema")


class Estimator(BaseEstimator):
    """Trains one seed on episodes; `fit`, `predict`, `predict_value` and ``learner_``, the trained `Learner`.

    Args:
        algorithm: a name of the registry.
        steps, epochs: number of updates, or of passes over the data; 1000 updates if neither is given.
        preset: a named set of settings.
        seed: of the run.
        device: see `Learner.create`.
        schema: of the episodes' store (``store.schema``), for the bounds and numbers of actions; by default the range in the episodes.
        settings: of the algorithm, by dotted name; they are parameters of the estimator too (``set_params(alpha=1.0)``).

    Raises:
        Unknown, InvalidInput: a name or value that the algorithm does not take; unlike in scikit-learn, already here.
    """

    def __init__(
        self,
        algorithm: str,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        preset: str | None = None,
        seed: int = 0,
        device: str = "auto",
        schema: Schema | None = None,
        **settings: Any,
    ) -> None:
        self.algorithm, self.steps, self.epochs, self.preset = algorithm, steps, epochs, preset
        self.seed, self.device, self.schema, self.settings = seed, device, schema, settings
        get(algorithm).configure(settings, preset)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all parameters, the algorithm's settings included."""
        return {**{name: getattr(self, name) for name in OWN}, **self.settings}

    def set_params(self, **params: Any) -> Estimator:
        """Change parameters; raises `Unknown` for a name that neither the estimator nor the algorithm has."""
        own = {name: params.pop(name) for name in OWN if name in params}
        algorithm, preset = own.get("algorithm", self.algorithm), own.get("preset", self.preset)
        changed = {**self.settings, **params}
        get(algorithm).configure(changed, preset)
        for name, value in own.items():
            setattr(self, name, value)
        self.settings = changed
        return self

    def fit(self, episodes: Any, y: Any = None) -> Estimator:
        """Train on a part of ``store.episodes``, on a list of episodes (copied into a temporary store), or on any other dataset of
        `offrld.train`."""
        store, chosen = opened(episodes, self.schema)
        algorithm = get(self.algorithm)
        config = algorithm.configure(self.settings, self.preset)
        learner = Learner.create(algorithm, config, store, seeds=[self.seed], device=self.device, episodes=chosen)
        steps = 1000 if self.steps is None and self.epochs is None else self.steps
        self.history_ = learner.fit(steps, epochs=self.epochs)
        self.learner_ = learner
        return self

    def predict(self, observations: Any) -> np.ndarray:
        """Greedy actions; as `Learner.predict`."""
        return self._trained().predict(observations)

    def predict_value(self, observations: Any, actions: Any, with_std: bool = False) -> Any:
        """As `Learner.predict_value`."""
        return self._trained().predict_value(observations, actions, with_std)

    def _trained(self) -> Learner:
        if not hasattr(self, "learner_"):
            raise InvalidInput(f"this estimator of {self.algorithm} was not trained", hint="call fit(episodes) first")
        return self.learner_
