"""What every algorithm of the registry must hold: its settings matter, its policy has the right form, it is documented."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

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


def another(field: settings.Setting) -> Any:
    """A valid value of the setting that is not its default: the declared probe, or one near it."""
    if field.probe is not None:
        return field.probe
    if field.choices is not None:
        return next(choice for choice in field.choices if choice != field.default)
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int):
        return field.default + 1
    return field.default / 2


def trained(algorithm, store, values) -> dict[str, torch.Tensor]:
    """All that some updates left behind, and how the policy then acts."""
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 16, **values}), store, dtype=torch.float64)
    learner.run(UPDATES)
    observation = torch.linspace(-1.0, 1.0, 15).reshape(5, 3)
    return learner.state.tensors() | {"policy": learner.policy(0).scores(observation)}


@pytest.fixture(scope="module")
def baselines():
    return {}


@every_setting
def test_every_setting_changes_the_update_the_networks_or_the_schedule(algorithm, name, store_for, baselines):
    store, field = store_for(algorithm), settings.describe(algorithm.config)[name]
    needed = {other: words[0] for other, words in field.only.items() if settings.as_flat(algorithm.config)[other] not in words}
    key = (algorithm.name, *needed.items())
    if key not in baselines:
        baselines[key] = trained(algorithm, store, needed)
    base = baselines[key]
    changed = trained(algorithm, store, {**needed, name: another(field)})
    same = base.keys() == changed.keys() and all(torch.equal(base[n], changed[n]) for n in base if base[n].shape == changed[n].shape)
    shapes = base.keys() == changed.keys() and all(base[n].shape == changed[n].shape for n in base)
    assert not (same and shapes), f"{algorithm.name}: {name} has no effect within {UPDATES} updates"


@names
def test_the_policy_takes_any_batch_and_gives_actions_of_the_right_form(algorithm, store_for):
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 16}), store_for(algorithm))
    policy = learner.policy(0)
    for size in (1, 5):
        action = policy(torch.randn(size, 3))
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
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 16}), store_for(algorithm))
    learner.run(3)
    module, path = learner.policy(0), tmp_path / "policy.onnx"
    difference = export_policy(
        module, path, observation=("float32", (3,)), discrete=algorithm.actions == "discrete", metadata={"space": learner.space}
    )
    assert difference < 1e-5
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    expected = module(torch.from_numpy(observations)).numpy()
    policy = offrl.Policy(path)
    np.testing.assert_allclose(policy.predict(observations), expected, atol=1e-5)
    np.testing.assert_allclose(policy.act(observations[4]), expected[4], atol=1e-5)


@names
def test_it_is_documented_and_stands_in_the_file_of_its_name(algorithm, store_for):
    module = importlib.import_module(f"offrld.algos.{algorithm.name}")
    assert module.ALGORITHM is algorithm
    assert algorithm.summary
    assert algorithm.paper
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 16}), store_for(algorithm))
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
