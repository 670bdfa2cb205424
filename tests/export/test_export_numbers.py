"""Numbers that float32 does not hold, and fields of any name, from the store to the actions of onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import offrld
from offrl import Policy
from offrl.errors import CheckFailed, InvalidInput
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.engine.learner.policy_networks import input_names

ACTION = Field("float32", (2,), low=-1, high=1)
SMALL = {"batch_size": 8, "encoder.units": [16]}


def filled(path, observation, values, action=ACTION, reward="float32", acted=None, rewarded=None):
    """Six episodes of ten steps; ``values(random, rows)`` gives the observations."""
    random = np.random.default_rng(0)
    store = EpisodeStore.create(path, Schema(observation, action, Field(reward)))
    with store.writer() as writer:
        for number in range(6):
            actions = random.uniform(-1, 1, (10, 2)) if acted is None else acted(random)
            rewards = np.ones(10) if rewarded is None else rewarded(random)
            writer.append(Episode(values(random, 11), actions.astype(action.dtype), rewards.astype(reward), number % 2 == 0))
    return EpisodeStore.open(path)


# --- Numbers ---
WIDE = {
    "seconds since 1970": ("float64", lambda random, n: 1.7e9 + random.uniform(-1, 1, (n, 2))),
    "nanoseconds since 1970": ("int64", lambda random, n: 17 * 10**17 + random.integers(-(10**9), 10**9, (n, 2))),
    "counters near the end of uint64": ("uint64", lambda random, n: np.uint64(2**64 - 1) - random.integers(0, 10**9, (n, 2), np.uint64)),
    "whole numbers of int32": ("int32", lambda random, n: 2**30 + random.integers(-5, 5, (n, 2))),
    "whole numbers of uint32": ("uint32", lambda random, n: 4 * 10**9 + random.integers(0, 100, (n, 2))),
}
EXTREME = {
    "float16 near its end": ("float16", lambda random, n: random.uniform(-1, 1, (n, 2)) * 60000),
    "all of uint64": ("uint64", lambda random, n: random.integers(0, 2**64 - 1, (n, 2), np.uint64)),
    "all of int64": ("int64", lambda random, n: random.integers(-(2**63), 2**63 - 1, (n, 2))),
    "float64 near its end": ("float64", lambda random, n: random.uniform(-1, 1, (n, 2)) * 1e308),
    "a constant": ("float64", lambda random, n: np.full((n, 2), 1.7e9)),
}


@pytest.mark.parametrize("scaler", ["standard", "min_max"])
@pytest.mark.parametrize("kind", WIDE)
def test_numbers_that_float32_does_not_hold_are_centred_before_they_are_narrowed(kind, scaler, tmp_path):
    dtype, values = WIDE[kind]
    store = filled(tmp_path / "store", Field(dtype, (2,)), lambda random, n: values(random, n).astype(dtype))
    learner = offrld.train("bc", store, steps=3, config={**SMALL, "observation_scaler.type": scaler}, threads=1)
    seen = store.episodes[0].observation
    shift = int(seen.min()) if dtype != "float64" else seen.min()
    centred = np.array([[float(int(x) - shift) if dtype != "float64" else x - shift for x in row] for row in seen])
    # The same run on numbers without the offset gives the same actions: only the mean differs, which the scaler subtracts.
    plain = filled(tmp_path / "plain", Field("float64", (2,)), lambda random, n: _less(values(random, n).astype(dtype), shift))
    other = offrld.train("bc", plain, steps=3, config={**SMALL, "observation_scaler.type": scaler}, threads=1)
    expected = other.predict(centred)
    assert len(np.unique(expected, axis=0)) > 3
    np.testing.assert_allclose(learner.predict(seen), expected, atol=2e-5)
    policy = Policy(learner.export(tmp_path / "policy.onnx"))
    assert policy.observation_dtype == dtype
    np.testing.assert_allclose(policy.predict(seen), expected, atol=2e-5)
    np.testing.assert_allclose([policy.act(row) for row in seen], expected, atol=2e-5)
    script = torch.jit.load(learner.export(tmp_path / "policy.pt"))
    np.testing.assert_allclose(script(torch.from_numpy(np.array(seen))).numpy(), expected, atol=2e-5)
    learner.save(tmp_path / "run.safetensors")
    assert np.array_equal(offrld.load(tmp_path / "run.safetensors").predict(seen), learner.predict(seen))
    feed = learner.trainer.feeds.several_steps[0].batch(0).observation
    again = offrld.build("bc", store, config={**SMALL, "observation_scaler.type": scaler}, feed="resident")
    assert torch.equal(feed, again.trainer.feeds.several_steps[0].batch(0).observation)
    assert feed.std() > 0.1


def _less(values, shift):
    if values.dtype.kind == "f":
        return values - shift
    return np.array([[float(int(x) - shift) for x in row] for row in values])


@pytest.mark.parametrize("kind", WIDE)
def test_without_a_scaler_numbers_that_would_lose_their_variation_are_refused(kind, tmp_path):
    dtype, values = WIDE[kind]
    store = filled(tmp_path / "store", Field(dtype, (2,)), lambda random, n: values(random, n).astype(dtype))
    with pytest.raises(InvalidInput, match=r"observation\[\d\] lies between .* what varies is lost.*observation_scaler=standard"):
        offrld.train("bc", store, steps=1, config=SMALL)


def test_a_warning_names_digits_that_are_partly_lost(tmp_path):
    store = filled(tmp_path / "store", Field("float64", (2,)), lambda random, n: 3e5 + random.uniform(-2, 2, (n, 2)))
    lines = []
    offrld.train("bc", store, steps=1, config=SMALL, log=lines.append)
    assert any("digits are lost; --set observation_scaler=standard" in line for line in lines)
    usual, lines = filled(tmp_path / "usual", Field("float64", (2,)), lambda random, n: random.uniform(-2, 2, (n, 2))), []
    offrld.train("bc", usual, steps=1, config=SMALL, log=lines.append)
    assert not any("digits" in line for line in lines)


def test_rewards_that_float32_does_not_hold_are_scaled_first(tmp_path):
    observe = lambda random, n: random.uniform(-1, 1, (n, 2)).astype("float32")  # noqa: E731
    store = filled(
        tmp_path / "store", Field("float32", (2,)), observe, reward="float64", rewarded=lambda random: 1.7e9 + random.uniform(-1, 1, 10)
    )
    with pytest.raises(InvalidInput, match=r"reward lies between .* what varies is lost.*reward_scaler=standard"):
        offrld.build("td3_bc", store, config={"batch_size": 8})
    learner = offrld.build("td3_bc", store, config={"batch_size": 64, "reward_scaler": "standard"})
    batch, raw = learner.trainer.feeds.several_steps[0].batch(0), learner.trainer.feeds.several_steps[0].source.samples(0).batch
    column = store.column("reward")
    mean, std = _moments(store)
    expected = (column[raw.index.numpy()] - mean) / (std + 1e-3)
    np.testing.assert_allclose(batch.reward.numpy(), expected, atol=1e-5)


def _moments(store):
    rewards = np.concatenate([episode.reward for episode in store.episodes])
    return rewards.mean(), rewards.std()


@pytest.mark.parametrize("kind", EXTREME)
def test_the_check_of_an_export_stays_within_the_dtype(kind, tmp_path):
    dtype, values = EXTREME[kind]
    store = filled(tmp_path / "store", Field(dtype, (2,)), lambda random, n: values(random, n).astype(dtype))
    learner = offrld.train("bc", store, steps=2, config={**SMALL, "observation_scaler.type": "min_max"}, threads=1)
    policy = Policy(learner.export(tmp_path / "policy.onnx"))
    seen = store.episodes[0].observation
    np.testing.assert_allclose(policy.predict(seen), learner.predict(seen), atol=1e-5)


def test_a_network_that_overflows_on_its_data_is_not_reported_as_diverged(tmp_path):
    store = filled(tmp_path / "store", Field("float32", (2,)), lambda random, n: (random.uniform(2, 3, (n, 2)) * 1e38).astype("float32"))
    learner = offrld.build("bc", store, config={**SMALL, "encoder.units": [64, 64]})
    for value in learner.state.params.values():
        value.mul_(100)
    with pytest.raises(CheckFailed) as failed:
        learner.export(tmp_path / "policy.onnx")
    assert "diverged" not in str(failed.value)
    assert "observation float32 from 2" in str(failed.value) and "observation_scaler=standard" in failed.value.hint
    assert not (tmp_path / "policy.onnx").exists()


def test_a_network_with_nan_parameters_is_reported_as_diverged(tmp_path):
    store = filled(tmp_path / "store", Field("float32", (2,)), lambda random, n: random.uniform(-1, 1, (n, 2)).astype("float32"))
    learner = offrld.build("bc", store, config=SMALL)
    next(iter(learner.state.params.values())).fill_(float("nan"))
    with pytest.raises(CheckFailed, match="diverged"):
        learner.check_export()


def test_whole_actions_stay_whole(tmp_path):
    action = Field("int64", (2,), low=[0, -5], high=[10, 5])
    store = filled(
        tmp_path / "store",
        Field("float32", (2,)),
        lambda random, n: random.uniform(-1, 1, (n, 2)).astype("float32"),
        action,
        acted=lambda random: random.integers([0, -5], [11, 6], (10, 2)),
    )
    learner = offrld.train("bc", store, steps=20, config=SMALL, threads=1)
    seen = store.episodes[0].observation
    policy = Policy(learner.export(tmp_path / "policy.onnx"))
    for actions in (learner.predict(seen), policy.predict(seen), np.array([policy.act(row) for row in seen])):
        assert np.array_equal(actions, np.rint(actions))
        assert (actions >= [0, -5]).all() and (actions <= [10, 5]).all()
    learner.save(tmp_path / "run.safetensors")
    assert np.array_equal(offrld.load(tmp_path / "run.safetensors", store).predict(seen), learner.predict(seen))


@pytest.mark.parametrize("value", [300, -1, 1.5])
def test_an_observation_that_does_not_fit_the_dtype_is_refused_not_wrapped(value, tmp_path):
    store = filled(tmp_path / "store", Field("uint8", (2,)), lambda random, n: random.integers(0, 255, (n, 2)).astype("uint8"))
    learner = offrld.build("bc", store, config=SMALL)
    with pytest.raises(InvalidInput, match=rf"observation has the value {value}\S*, which does not fit uint8"):
        learner.predict(np.array([[value, 3]]))


# --- Names ---
def _floats(random, n):
    return random.normal(size=(n, 2)).astype("float32")


NAMES = [
    "observation", "observation.state", "observation_state", "action", "scores", "reward", "training", "forward", "weight", "self",
    "inputs", "val_0", "low", "0", "state", "state.goal", "state.shift", "context.action", "target_return", "policy.low", "next_state",
    "observation.action", "T_destination", "a-b",
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["td3_bc", "dqn", "decision_transformer"])
def test_fields_of_any_name_are_trained_exported_and_served(algorithm, tmp_path):
    fields = {name: Field("float64" if i % 3 == 0 else "float32", (2,)) for i, name in enumerate(NAMES)}
    draw = lambda random, n: {name: random.normal(size=(n, 2)).astype(field.dtype) for name, field in fields.items()}  # noqa: E731
    discrete = algorithm == "dqn"
    store = filled(
        tmp_path / "store",
        fields,
        draw,
        Field("int64", low=0, high=2) if discrete else ACTION,
        acted=(lambda random: random.integers(0, 3, 10)) if discrete else None,
    )
    config = {"batch_size": 8, "observation_scaler.type": "standard"}
    learner = offrld.train(algorithm, store, steps=2, config=config, threads=1)
    path = learner.export(tmp_path / "policy.onnx")
    learner.export(tmp_path / "policy.pt")
    policy, seen = Policy(path), draw(np.random.default_rng(1), 4)
    assert list(policy.observation_shapes) == NAMES
    assert policy.metadata["space"]["observation"].keys() == fields.keys()
    assert policy.metadata["fields"]["observation.observation.action"] == "action"
    learner.save(tmp_path / "run.safetensors")
    if algorithm == "decision_transformer":
        module = offrld.load(tmp_path / "run.safetensors", store).policy()
        rows = {module.input_names[name]: torch.from_numpy(value[:1]) for name, value in seen.items()}
        expected = module({**rows, **module.start(1)})[0][0].detach().numpy()
        np.testing.assert_allclose(policy.act({name: value[0] for name, value in seen.items()}), expected, atol=1e-5)
        return
    np.testing.assert_allclose(policy.predict(seen), learner.predict(seen), atol=1e-5)
    np.testing.assert_allclose(
        [policy.act({name: value[i] for name, value in seen.items()}) for i in range(4)], learner.predict(seen), atol=1e-5
    )
    assert np.array_equal(offrld.load(tmp_path / "run.safetensors").predict(seen), learner.predict(seen))


def test_a_camera_with_a_dotted_name_is_exported(tmp_path):
    fields = {"observation.images.front": Field("uint8", (3, 12, 16)), "observation.state": Field("float32", (4,))}
    draw = lambda random, n: {  # noqa: E731
        "observation.images.front": random.integers(0, 256, (n, 3, 12, 16)).astype("uint8"),
        "observation.state": random.normal(size=(n, 4)).astype("float32"),
    }
    store = filled(tmp_path / "store", fields, draw)
    learner = offrld.train("bc", store, steps=2, config={"batch_size": 8, "encoder.filters": [8, 3, 2]}, threads=1)
    policy, seen = Policy(learner.export(tmp_path / "policy.onnx")), draw(np.random.default_rng(1), 3)
    np.testing.assert_allclose(policy.predict(seen), learner.predict(seen), atol=1e-5)


def test_a_single_field_with_the_name_of_the_output_is_exported(tmp_path):
    store = filled(tmp_path / "store", {"action": Field("float32", (2,))}, lambda random, n: {"action": _floats(random, n)})
    learner = offrld.train("bc", store, steps=2, config=SMALL, threads=1)
    policy = Policy(learner.export(tmp_path / "policy.onnx"))
    row = np.array([0.5, -0.5], np.float32)
    np.testing.assert_allclose(policy.act(row), learner.predict({"action": row[None]})[0], atol=1e-6)
    np.testing.assert_allclose(policy.act({"action": row}), policy.act(row))


def test_names_of_inputs_map_back_to_fields():
    names = input_names([*NAMES, "observation.observation.action"])
    assert len(set(names.values())) == len(names)
    assert names["observation"] == "observation"
    assert not {"action", "reward", "self"} & set(names.values())


def test_a_field_keeps_its_name_if_the_trace_generates_the_same_name(tmp_path):
    fields = {"a": Field("float32", (2,)), "b": Field("float32", (2,))}
    store = filled(tmp_path / "store", fields, lambda random, n: {name: _floats(random, n) for name in fields})
    learner = offrld.train("bc", store, steps=1, config=SMALL, threads=1)
    made_up = next(node.output[0] for node in onnx.load(learner.export(tmp_path / "policy.onnx")).graph.node if "." not in node.output[0])
    fields = {made_up: Field("float32", (2,)), "b": Field("float32", (2,))}
    store = filled(tmp_path / "other", fields, lambda random, n: {name: _floats(random, n) for name in fields})
    learner = offrld.train("bc", store, steps=1, config=SMALL, threads=1)
    policy, seen = Policy(learner.export(tmp_path / "other.onnx")), {name: np.ones((3, 2), np.float32) for name in fields}
    np.testing.assert_allclose(policy.predict(seen), learner.predict(seen), atol=1e-6)
