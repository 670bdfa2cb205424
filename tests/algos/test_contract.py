"""What every algorithm of the registry must hold: its settings matter, its policy has the right form, it is documented."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from cheap_settings import cheap_settings

import offrl
from offrl.errors import Unknown
from offrld import settings
from offrld.algos import ALGORITHMS, get
from offrld.engine import Learner
from offrld.export.onnx import export_policy

ALL = list(ALGORITHMS.values())
UPDATES = 5
names = pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.name)
every_setting = pytest.mark.parametrize(
    ("algorithm", "name"),
    [(algorithm, name) for algorithm in ALL for name in settings.describe(algorithm.config)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)


def trained(algorithm, store, values) -> dict[str, torch.Tensor]:
    learner = Learner.create(algorithm, algorithm.configure(values), store, dtype=torch.float64)
    learner.run(UPDATES)
    return learner.state.tensors()


def cheaply(algorithm, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the cheap settings beside them; those of a component whose type is another one are left out."""
    cheap = cheap_settings(algorithm)
    return {name: value for name, value in cheap.items() if f"{name.rpartition('.')[0]}.type" not in values} | values


def action_of(policy, observations: torch.Tensor) -> torch.Tensor:
    """The module's actions; of one that remembers, at the first step of as many episodes."""
    if not hasattr(policy, "start"):
        return policy(observations)
    return policy(observation=observations, **policy.start(len(observations)))[0]


@pytest.fixture(scope="module")
def baselines():
    return {}


@every_setting
def test_every_setting_changes_the_update_the_networks_or_the_schedule(algorithm, name, store_for, baselines):
    store, sides = store_for(algorithm), settings.contrast(settings.describe(algorithm.config), name)
    if sides is None:
        pytest.skip("no installed package gives a type that reads it")
    key = (algorithm.name, str(sides[0]))
    if key not in baselines:
        baselines[key] = trained(algorithm, store, cheaply(algorithm, sides[0]))
    base, changed = baselines[key], trained(algorithm, store, cheaply(algorithm, sides[1]))
    same = base.keys() == changed.keys() and all(torch.equal(base[n], changed[n]) for n in base if base[n].shape == changed[n].shape)
    shapes = base.keys() == changed.keys() and all(base[n].shape == changed[n].shape for n in base)
    assert not (same and shapes), f"{algorithm.name}: {name} has no effect within {UPDATES} updates"


@names
def test_the_policy_takes_any_batch_and_gives_actions_of_the_right_form(algorithm, store_for):
    learner = Learner.create(algorithm, algorithm.configure(cheap_settings(algorithm)), store_for(algorithm))
    policy = learner.policy(0)
    for size in (1, 5):
        action = action_of(policy, torch.randn(size, 3))
        if algorithm.actions == "discrete":
            assert action.dtype == torch.int64
            assert action.shape == (size,)
            assert set(action.tolist()) <= {0, 1, 2}
        else:
            assert action.dtype == torch.float32
            assert action.shape == (size, 2)
            assert action.abs().max() <= 2.0


@names
def test_its_policy_file_acts_as_the_network_does(algorithm, store_for, tmp_path):
    learner = Learner.create(algorithm, algorithm.configure(cheap_settings(algorithm)), store_for(algorithm))
    learner.run(3)
    module, path = learner.policy(0), tmp_path / "policy.onnx"
    difference = export_policy(
        module, path, observation=("float32", (3,)), discrete=algorithm.actions == "discrete", metadata={"space": learner.space}
    )
    assert difference < 1e-5
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    expected = action_of(module, torch.from_numpy(observations)).numpy()
    policy = offrl.Policy(path)
    np.testing.assert_allclose(policy.predict(observations), expected, atol=1e-5)
    policy.reset()
    np.testing.assert_allclose(policy.act(observations[4]), expected[4], atol=1e-5)


@pytest.mark.parametrize("kind", ["qr", "iqn", "fqf"])
def test_a_policy_that_acts_by_quantiles_has_its_file_too(kind, discrete_store, tmp_path):
    algorithm = get("dqn")
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 16, "q_function": kind, "n_critics": 2}), discrete_store)
    learner.run(3)
    module, path = learner.policy(0), tmp_path / "policy.onnx"
    assert export_policy(module, path, observation=("float32", (3,)), discrete=True, metadata={"space": learner.space}) < 1e-5
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(offrl.Policy(path).predict(observations), module(torch.from_numpy(observations)).numpy())


@names
def test_it_is_documented_and_stands_in_the_file_of_its_name(algorithm, store_for):
    module = importlib.import_module(f"offrld.algos.{algorithm.name}")
    assert module.ALGORITHM is algorithm
    assert algorithm.summary
    assert algorithm.paper
    learner = Learner.create(algorithm, algorithm.configure(cheap_settings(algorithm)), store_for(algorithm))
    learner.run(1)
    for metric in learner.metrics():
        assert f"`{metric}`" in module.__doc__, f"{algorithm.name}: metric {metric} is not in the file's first docstring"
    assert {"paper", "d3rlpy"} <= set(algorithm.presets)
    for preset in algorithm.presets:
        algorithm.configure(preset=preset)


def test_an_unknown_algorithm_is_answered_with_the_nearest():
    with pytest.raises(Unknown) as caught:
        get("td3bc")
    assert caught.value.hint == "did you mean 'td3_bc'?"
