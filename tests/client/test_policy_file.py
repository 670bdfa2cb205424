"""The policy on the robot: it acts on what an environment gives, says what it is, and refuses what it does not understand in one line."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from policy_files import linear_policy, two_field_policy, with_metadata

from offrl.errors import InvalidInput
from offrl.policy import Policy, session_options

WEIGHT = np.array([[1.0, 0.0], [0.5, -2.0], [0.0, 1.0]])


@pytest.fixture
def policy(tmp_path) -> Policy:
    (tmp_path / "policy.onnx").write_bytes(linear_policy(WEIGHT))
    return Policy(tmp_path / "policy.onnx")


def refused(what) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        what()
    assert "\n" not in str(caught.value) and caught.value.hint and caught.value.exit_status == 2
    return caught.value


# ------------------------------------------------------------------------------------------------------------------ acting
def test_act_gives_a_fresh_float32_array_for_one_observation(policy):
    observation = np.array([0.5, 0.25, 0.1], np.float32)
    first = policy.act(observation)
    assert first.dtype == np.float32 and first.shape == (2,)
    np.testing.assert_allclose(first, np.clip(observation @ WEIGHT, -1, 1), atol=1e-6)
    kept = first.copy()
    first[:] = 9
    np.testing.assert_array_equal(policy.act(observation), kept)
    assert not np.shares_memory(policy.act(observation), policy.act(observation))


def test_predict_gives_the_actions_of_a_batch_of_any_size(policy):
    for batch in (0, 1, 5, 100):
        observations = np.random.default_rng(batch).normal(size=(batch, 3)).astype(np.float32)
        actions = policy.predict(observations)
        assert actions.dtype == np.float32 and actions.shape == (batch, 2)
        np.testing.assert_allclose(actions, np.clip(observations @ WEIGHT, -1, 1), atol=1e-6)


def test_a_discrete_policy_gives_ints():
    policy = Policy(linear_policy(WEIGHT, discrete=True))
    action = policy.act(np.array([0.0, 1.0, 5.0], np.float32))
    assert type(action) is int and action == 1
    actions = policy.predict(np.eye(3, dtype=np.float32))
    assert actions.dtype == np.int64 and actions.tolist() == [0, 0, 1]
    assert policy.predict(np.zeros((0, 3), np.float32)).shape == (0,)
    assert policy.discrete and policy.action_n == 2 and policy.action_low is None


@pytest.mark.parametrize(
    "given",
    [np.array([1, 0, -1], np.float64), np.array([1, 0, -1]), [1, 0, -1], np.array([1, 0, -1], ">f8"), np.array([1, 0, -1], np.float16)],
    ids=["float64", "int64", "list", "big endian", "float16"],
)
def test_what_loses_only_precision_is_cast(policy, given):
    np.testing.assert_allclose(policy.act(given), [1, -1])
    np.testing.assert_allclose(policy.predict([given, given]), [[1, -1], [1, -1]])


def test_memory_order_does_not_matter(policy):
    observations = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32).T
    np.testing.assert_array_equal(policy.predict(observations), policy.predict(observations.copy()))
    np.testing.assert_array_equal(policy.act(observations[2]), policy.act(observations[2].copy()))


def test_whole_numbers_must_fit_a_whole_number_policy():
    policy = Policy(linear_policy(WEIGHT, dtype="uint8", low=-1000, high=1000))
    np.testing.assert_allclose(policy.act(np.array([255, 0, 1])), [255, 1])
    assert "256" in str(refused(lambda: policy.act(np.array([256, 0, 1]))))
    assert "uint8" in str(refused(lambda: policy.act(np.array([0.5, 0, 1]))))


def test_several_fields_are_a_dict_whose_other_keys_are_ignored():
    policy = Policy(two_field_policy())
    observation = {"right": np.array([1, 2, 3]), "left": np.array([0.5, 0, 0]), "clock": "12:00"}
    np.testing.assert_allclose(policy.act(observation), [1.5, 2, 3])
    np.testing.assert_allclose(policy.predict({k: np.array([v, v]) for k, v in observation.items()}), [[1.5, 2, 3]] * 2)
    assert policy.observation_shape == {"left": (3,), "right": (3,)}
    assert "'right'" in str(refused(lambda: policy.act({"left": [0, 0, 0]})))
    assert "left, right" in str(refused(lambda: policy.act(np.zeros(3))))
    assert "left, right" in str(refused(lambda: policy.predict(np.zeros((1, 3)))))
    assert "differ in length" in str(refused(lambda: policy.predict({"left": np.zeros((2, 3)), "right": np.zeros((1, 3), int)})))


def test_threads_may_share_a_policy(policy):
    observations = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    expected = [policy.act(row) for row in observations]
    found: list[list] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda out=out: out.extend(policy.act(row) for row in observations)) for out in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for actions in found:
        np.testing.assert_array_equal(actions, expected)


def test_session_uses_one_thread_that_does_not_spin():
    options = session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"


# ------------------------------------------------------------------------------------------------------------- description
def test_a_policy_says_what_it_is(policy):
    assert policy.metadata["algorithm"] == "bc" and policy.metadata["format"] == 1
    assert not policy.discrete and policy.observation_shape == (3,) and policy.observation_dtype == np.float32
    np.testing.assert_array_equal(policy.action_low, np.float32([-1, -1]))
    np.testing.assert_array_equal(policy.action_high, np.float32([1, 1]))
    for part in ("policy.onnx", "observation float32[3]", "action float32[2] in [-1, 1]", "algorithm bc", "job j1", "step 5"):
        assert part in repr(policy)
    policy.reset()


@pytest.mark.parametrize(
    ("metadata", "env_id"),
    [
        ({}, None),
        ({"dataset": {"name": "hopper", "env_id": "Hopper-v5"}}, "Hopper-v5"),
        ({"space": {"source": "env:Pendulum-v1"}, "dataset": {"env_id": "Hopper-v5"}}, "Pendulum-v1"),
        ({"evaluation": {"env": "CartPole-v1"}, "space": {"source": "inferred"}}, "CartPole-v1"),
    ],
)
def test_the_environment_is_the_evaluated_one_then_that_of_the_bounds_then_that_of_the_data(metadata, env_id):
    assert Policy(linear_policy(WEIGHT, metadata=metadata)).env_id == env_id


# -------------------------------------------------------------------------------------------------------- bad observations
@pytest.mark.parametrize(
    ("observation", "message", "hint"),
    [
        (np.zeros(4), "shape (4,), the policy expects (3,)", "environment"),
        (np.zeros((2, 3)), "shape (2, 3), the policy expects (3,)", "predict()"),
        (np.float32(1), "shape (), the policy expects (3,)", ""),
        (np.array([0, np.nan, 0]), "observation[1] is nan", "finite"),
        (np.array([0, 0, -np.inf], np.float32), "observation[2] is -inf", "finite"),
        (np.array([0, 1e300, 0]), "observation[1] is 1e+300, which does not fit float32", ""),
        (["a", "b", "c"], "<U1", "float32"),
        (np.zeros(3, complex), "complex128, the policy expects float32", "float32"),
        ([[1], [2, 3], []], "ragged", "float32"),
        (None, "object", "float32"),
        ({"camera": np.zeros(3)}, "no field 'observation', only camera", "observation"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_wrong_observation_is_named_in_one_line(policy, observation, message, hint):
    error = refused(lambda: policy.act(observation))
    assert message in str(error) and hint in error.hint


def test_a_wrong_batch_is_named_in_one_line(policy):
    error = refused(lambda: policy.predict(np.zeros(3)))
    assert "shape (3,), the policy expects (batch, 3)" in str(error) and "act()" in error.hint
    assert "(batch, 3)" in str(refused(lambda: policy.predict(np.zeros((5, 4)))))
    bad = np.zeros((4, 3), np.float32)
    bad[2, 1] = np.nan
    assert "observation[2, 1] is nan" in str(refused(lambda: policy.predict(bad)))


@pytest.mark.filterwarnings("error")
def test_large_finite_values_are_no_error(policy):
    for value in (1e30, np.float32(3e38), np.float64(3e38)):
        assert np.isfinite(policy.act(np.full(3, value, getattr(value, "dtype", float)))).all()


# ---------------------------------------------------------------------------------------------------------------- bad files
def test_a_missing_file_and_a_folder_are_named(tmp_path):
    error = refused(lambda: Policy(tmp_path / "none.onnx"))
    assert str(tmp_path / "none.onnx") in str(error) and "offrl fetch" in error.hint
    assert "folder" in str(refused(lambda: Policy(tmp_path)))


def test_what_is_no_onnx_file_is_refused_wherever_it_is_cut(tmp_path):
    whole = linear_policy(WEIGHT)
    for data in (b"", b"hello world", b"\x89HDF\r\n\x1a\n" * 20, *(whole[:cut] for cut in range(1, len(whole), 37))):
        (tmp_path / "policy.onnx").write_bytes(data)
        assert "policy.onnx" in str(refused(lambda: Policy(tmp_path / "policy.onnx")))


def test_an_onnx_file_that_is_not_ours_is_refused():
    model = onnx.load_from_string(linear_policy(WEIGHT))
    del model.metadata_props[:]
    assert "not a policy file of offrl" in str(refused(lambda: Policy(model.SerializeToString())))


def test_a_policy_file_of_a_newer_version_asks_for_an_update():
    error = refused(lambda: Policy(linear_policy(WEIGHT, metadata={"format": 3})))
    assert "version 3" in str(error) and "pip install" in error.hint


def test_a_graph_that_breaks_the_contract_is_refused():
    model = onnx.load_from_string(linear_policy(WEIGHT))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "torque"
    assert "'action'" in str(refused(lambda: Policy(with_metadata(model.graph, {"format": 1}))))
    model = onnx.load_from_string(linear_policy(WEIGHT))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "size"
    assert "'observation'" in str(refused(lambda: Policy(with_metadata(model.graph, {"format": 1}))))


def test_metadata_that_is_no_json_is_refused():
    model = onnx.load_from_string(linear_policy(WEIGHT))
    for entry in model.metadata_props:
        if entry.key == "offrl.format":
            entry.value = "{"
    assert "JSON" in str(refused(lambda: Policy(model.SerializeToString())))
