"""Which product linear layers use: chosen once per learner, logged, and kept by a resumed run."""

from __future__ import annotations

import pytest
import torch

from offrl.errors import InvalidInput
from offrld.algos import ALGORITHMS
from offrld.engine import Learner
from offrld.engine.updates.runner import LINEAR_VARIABLE
from offrld.nets import onednn

needs_onednn = pytest.mark.skipif(not onednn.present(), reason="this torch has no product of oneDNN")
NAMES = ("td3_bc", "iql", "cql", "discrete_cql")


@pytest.fixture(autouse=True)
def _unasked(monkeypatch):
    monkeypatch.delenv(LINEAR_VARIABLE, raising=False)


def learner_of(name, store_for, lines=None, **options):
    algorithm = ALGORITHMS[name]
    log = (lambda text: None) if lines is None else lines.append
    return Learner.create(algorithm, algorithm.configure({"batch_size": 256}), store_for(algorithm), log=log, **options)


def ends(learner):
    return {name: value.clone() for name, value in learner.state.tensors().items()}


@needs_onednn
@pytest.mark.parametrize("name", NAMES)
def test_both_products_train_the_same_but_for_rounding(name, store_for):
    found = {}
    for linear in ("torch", "onednn"):
        learner = learner_of(name, store_for, linear=linear)
        learner.run(3)
        assert learner.describe_run()["linear"] == linear
        found[linear] = ends(learner), learner.metrics()
    (one, metrics), (other, others) = found.values()
    assert any(not torch.equal(one[key], other[key]) for key in one)  # two different products were used
    # Adam turns the sign of a rounding error into a whole step, so metrics are compared and not parameters.
    for key, values in metrics.items():
        assert others[key][0] == pytest.approx(values[0], rel=1e-4, abs=1e-5), key


@needs_onednn
@pytest.mark.parametrize(("before", "after"), [("onednn", "torch"), ("torch", "onednn")])
def test_a_resumed_run_uses_the_product_of_its_checkpoint_and_gives_the_same_bits(before, after, store_for, tmp_path, monkeypatch):
    through = learner_of("td3_bc", store_for, linear=before)
    through.run(8)
    first = learner_of("td3_bc", store_for, linear=before)
    first.run(4)
    first.save(tmp_path / "half.safetensors")
    monkeypatch.setattr(onednn, "faster", lambda threads, folder: (after == "onednn", "another day"))
    lines = []
    second = learner_of("td3_bc", store_for, lines)
    assert second.linear == after
    second.restore(tmp_path / "half.safetensors")
    assert second.linear == before
    assert f"linear layers: by {before}, as in the checkpoint" in lines
    second.run(4)
    one, other = ends(second), ends(through)
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_checkpoint_whose_product_is_unavailable_continues_with_torch_and_logs_it(store_for, tmp_path, monkeypatch):
    first = learner_of("bc", store_for, linear="torch")
    first.trainer.linear = "onednn"
    first.save(tmp_path / "half.safetensors")
    monkeypatch.setattr(onednn, "present", lambda: False)
    lines = []
    second = learner_of("bc", store_for, lines, linear="auto")
    second.trainer.linear = "torch"
    second.restore(tmp_path / "half.safetensors")
    assert second.linear == "torch"
    assert any("is not available" in line for line in lines)


@pytest.mark.parametrize("found", [True, False])
def test_the_probe_decides_and_its_result_is_logged(found, store_for, monkeypatch):
    monkeypatch.setattr(onednn, "faster", lambda threads, folder: (found, "7 us with oneDNN, 9 us with torch"))
    lines, expected = [], "onednn" if found else "torch"
    assert learner_of("bc", store_for, lines).linear == expected
    assert f"linear layers: by {expected}, because of 7 us with oneDNN, 9 us with torch" in lines


def test_the_environment_variable_overrides_auto_but_not_the_option(store_for, monkeypatch):
    monkeypatch.setenv(LINEAR_VARIABLE, "torch")
    assert learner_of("bc", store_for).linear == "torch"
    monkeypatch.setenv(LINEAR_VARIABLE, "mkl")
    with pytest.raises(InvalidInput, match="'mkl' is unknown"):
        learner_of("bc", store_for)
    assert learner_of("bc", store_for, linear="torch").linear == "torch"


@pytest.mark.parametrize("options", [{"dtype": torch.float64}, {"seeds": [0, 1], "stacked": True}])
def test_runs_that_cannot_use_onednn_do_not_probe(options, store_for, monkeypatch):
    monkeypatch.setattr(onednn, "faster", lambda threads, folder: pytest.fail("probed"))
    assert learner_of("bc", store_for, **options).linear == "torch"
