"""The estimator within scikit-learn's own tools."""

from __future__ import annotations

import numpy as np
import pytest

from offrl.errors import InvalidInput, Unknown

pytest.importorskip("sklearn", reason="scikit-learn is an extra")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate

from offrld.sklearn import Estimator


def error(estimator, episodes, y=None):
    """Mean squared distance to the actions of episodes that were not trained on."""
    found = [np.mean((estimator.predict(np.array(e.observation[: e.steps])) - e.action) ** 2) for e in episodes]
    return float(np.mean(found))


def test_cross_validation_trains_on_the_folds_and_scores_the_rest(continuous_store):
    estimator = Estimator("bc", steps=3, batch_size=16, schema=continuous_store.schema)
    found = cross_validate(estimator, continuous_store.episodes, cv=3, scoring={"error": error}, return_estimator=True)
    assert found["test_error"].shape == (3,)
    assert len(set(found["test_error"].tolist())) == 3
    assert [len(each.learner_.store) for each in found["estimator"]] == [8, 8, 8]
    assert found["estimator"][0].learner_.space["low"] == [-2.0, -2.0]
    one = Estimator("bc", steps=3, batch_size=16).fit(continuous_store.episodes[4:])
    assert len(one.learner_.data.training) == 8


def test_parameters_are_searched_cloned_and_checked(continuous_store):
    estimator = Estimator("td3_bc", steps=2, batch_size=16, schema=continuous_store.schema)
    search = GridSearchCV(estimator, {"alpha": [1.0, 4.0], "steps": [1]}, scoring=lambda *given: -error(*given), cv=2, refit=False)
    search.fit(continuous_store.episodes)
    assert [params["alpha"] for params in search.cv_results_["params"]] == [1.0, 4.0]
    copy = clone(estimator.set_params(alpha=3.0, seed=4))
    assert copy.get_params() == estimator.get_params()
    assert copy.get_params()["alpha"] == 3.0
    with pytest.raises(Unknown, match="alhpa"):
        estimator.set_params(alhpa=1.0)
    with pytest.raises(Unknown, match="alhpa"):
        Estimator("td3_bc", alhpa=1.0)
    with pytest.raises(InvalidInput, match="was not trained"):
        copy.predict(np.zeros((1, 3)))
