"""Q functions of installed packages: what a package computes is what trains, listed by name without an import, refused when wrong."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from cheap_settings import cheap_learner

from offrl.errors import InvalidInput, Unknown
from offrld import settings
from offrld.algos import get
from offrld.nets import Critics, DiscreteCritics, Encoder, QFunction, q_plugins

# Quantile regression as a package's Q function: it must equal the built-in one to the last bit.
REGRESSION = """
import torch
from torch.nn.functional import huber_loss


def size(options):
    return options.get("quantiles", 32)


def mean(numbers, options):
    return numbers.mean(-1)


def errors(numbers, target, options):
    count = numbers.shape[-1]
    fractions = (torch.arange(count, dtype=numbers.dtype, device=numbers.device) + 0.5) / count
    difference = target.unsqueeze(-2) - numbers.unsqueeze(-1)
    weight = (fractions.unsqueeze(-1) - (difference < 0).to(difference.dtype)).abs()
    return (weight * huber_loss(difference, torch.zeros_like(difference), reduction="none")).mean(-1).sum(-1)
"""
POINTS = {"regression": REGRESSION, "sizeless": "def size(options):\n    return 0\nmean = errors = size\n", "bare": "", "qr": ""}
Q = QFunction(type="regression", options={"quantiles": 5})
BUILT_IN = QFunction(type="qr", n_quantiles=5)


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Install a package with entry points in a folder of ``sys.path``."""
    for name, text in POINTS.items():
        (tmp_path / f"offrl_test_q_{name}.py").write_text(text)
    info = tmp_path / "offrl_test_q-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offrl-test-q\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[offrl.q_functions]\n" + "".join(f"{name} = offrl_test_q_{name}\n" for name in POINTS))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in POINTS:
        sys.modules.pop(f"offrl_test_q_{name}", None)


def test_types_are_listed_without_an_import_and_none_replaces_a_built_in_one():
    assert q_plugins.types() == ("mean", "qr", "iqn", "fqf", "bare", "regression", "sizeless")
    assert "offrl_test_q_regression" not in sys.modules


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_values_targets_and_errors_are_the_packages(discrete):
    made = []
    for q in (Q, BUILT_IN):
        net = DiscreteCritics("q", 3, (4,), 2, Encoder(units=(7,)), q) if discrete else Critics("q", 3, (4,), 2, Encoder(units=(7,)), q)
        params = net.init(torch.Generator().manual_seed(0), torch.float64)
        random = torch.Generator().manual_seed(1)
        observation = torch.randn(6, 4, generator=random, dtype=torch.float64)
        action = torch.randint(0, 2, (6,), generator=random) if discrete else torch.randn(6, 2, generator=random, dtype=torch.float64)
        target = net.target(params, observation, action, "mix")
        values = net.values(params, observation).taken(action) if discrete else net.values(params, observation, action)
        made.append((values.average, target, values.errors(target), values.error(target)))
    assert made[0][2].shape == (3, 6)
    for own, built_in in zip(*made, strict=True):
        torch.testing.assert_close(own, built_in, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["td3_bc", "double_dqn", "bcq"])
def test_it_trains_to_the_same_bits_as_the_built_in_type_and_survives_a_checkpoint(name, store_for, tmp_path):
    algorithm = get(name)
    store = store_for(algorithm)
    values = {
        "regression": {"q_function": "regression", "q_function.options.quantiles": 5},
        "qr": {"q_function": "qr", "q_function.n_quantiles": 5},
    }
    learners = {kind: cheap_learner(algorithm, store, settings_, seeds=[0, 1]) for kind, settings_ in values.items()}
    for learner in learners.values():
        learner.run(4)
    own, built_in = (learner.state.tensors() for learner in learners.values())
    assert all(torch.equal(own[key], built_in[key]) for key in built_in)
    learners["regression"].save(tmp_path / "state.safetensors")
    learners["regression"].run(2)
    again = cheap_learner(algorithm, store, values["regression"], seeds=[0, 1])
    again.restore(tmp_path / "state.safetensors")
    again.run(2)
    assert all(torch.equal(value, again.state.tensors()[key]) for key, value in learners["regression"].state.tensors().items())


def test_invalid_q_functions_are_reported():
    with pytest.raises(Unknown, match="unknown Q function type 'regresion'"):
        q_plugins.load("regresion")
    with pytest.raises(InvalidInput, match=r"'bare' of 'offrl.q_functions' \(offrl_test_q_bare\) has no function size, mean, errors"):
        Critics("q", 1, (4,), 2, Encoder(), QFunction(type="bare"))
    with pytest.raises(InvalidInput, match="Q function 'sizeless' returns the size 0"):
        Critics("q", 1, (4,), 2, Encoder(), QFunction(type="sizeless"))
    with pytest.raises(InvalidInput, match="has no options"):
        QFunction(options={"quantiles": 3})
    with pytest.raises(InvalidInput, match=r"'q_function.n_quantiles' has no effect with q_function.type 'regression'"):
        settings.build(get("dqn").config, {"q_function": "regression", "q_function.n_quantiles": 7})
