"""What every algorithm of the registry must hold: its policy has the right form and a file, one graph captures it, it is documented.

That its settings matter: test_contract_settings.py; that seeds are independent and resuming gives the same bits: tests/engine.
"""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest
import torch
from cheap_settings import FROM_DATA, action_of, cheap_learner

import offrl
from offrl.errors import Unknown
from offrld.algos import get
from offrld.export.onnx import export_policy

ALL = list(FROM_DATA.values())
names = pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.name)
acting = pytest.mark.parametrize("algorithm", [algorithm for algorithm in ALL if algorithm.acts], ids=lambda a: a.name)


@acting
def test_the_policy_takes_any_batch_and_gives_actions_of_the_right_form(algorithm, store_for):
    policy = cheap_learner(algorithm, store_for(algorithm)).policy(0)
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
def test_samples_and_values_have_the_right_form(algorithm, store_for):
    learner = cheap_learner(algorithm, store_for(algorithm))
    params = {name: value[0] for name, value in learner.state.params.items()}
    observation, noise = torch.randn(5, 3), torch.randn(5, 2)
    if algorithm.sample is not None:
        action = algorithm.sample(params, learner.config, learner.nets, observation, noise)
        assert action.shape == (5, 2)
        assert action.abs().max() <= 1.0
        assert not torch.equal(action, algorithm.sample(params, learner.config, learner.nets, observation, -noise))
    if algorithm.value is not None:
        action = torch.randint(0, 3, (5,)) if algorithm.actions == "discrete" else torch.rand(5, 2) * 2 - 1
        values = algorithm.value(params, learner.config, learner.nets, observation, action)
        assert values.dim() == 2
        assert values.shape[1] == 5
        assert torch.isfinite(values).all()


@acting
def test_its_policy_file_acts_as_the_network_does(algorithm, store_for, tmp_path):
    learner = cheap_learner(algorithm, store_for(algorithm))
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


@names
def test_each_loss_is_one_graph_for_all_seeds(algorithm, store_for, monkeypatch):
    # The graph is what matters here, not the kernels made from it: those are compared in tests/engine for a few algorithms.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    states = []
    for runner in ("eager", "compile"):
        learner = cheap_learner(algorithm, store_for(algorithm), seeds=[0, 1], dtype=torch.float64, stacked=True, runner=runner)
        assert learner.runner == runner
        learner.run(2)
        states.append(learner.state.tensors())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["qr", "iqn", "fqf"])
def test_a_policy_that_acts_on_quantiles_can_be_exported(kind, discrete_store, tmp_path):
    algorithm = get("dqn")
    learner = cheap_learner(algorithm, discrete_store, {"q_function": kind, "n_critics": 2})
    learner.run(3)
    module, path = learner.policy(0), tmp_path / "policy.onnx"
    assert export_policy(module, path, observation=("float32", (3,)), discrete=True, metadata={"space": learner.space}) < 1e-5
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(offrl.Policy(path).predict(observations), module(torch.from_numpy(observations)).numpy())


@names
def test_it_is_documented_and_defined_in_the_file_of_its_name(algorithm, store_for):
    module = importlib.import_module(f"offrld.algos.{algorithm.name}")
    assert module.ALGORITHM is algorithm
    assert algorithm.summary
    assert algorithm.paper
    learner = cheap_learner(algorithm, store_for(algorithm))
    learner.run(3)
    for metric in learner.metrics():
        assert f"`{metric}`" in module.__doc__, f"{algorithm.name}: metric {metric} is not in the file's first docstring"
    assert {"paper", "d3rlpy"} <= set(algorithm.presets)
    for preset in algorithm.presets:
        algorithm.configure(preset=preset)


def test_an_unknown_algorithm_suggests_the_nearest():
    with pytest.raises(Unknown) as caught:
        get("td3bc")
    assert caught.value.hint == "did you mean 'td3_bc'?"
