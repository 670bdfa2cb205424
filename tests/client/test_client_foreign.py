"""Policies that other programs have exported: their tensors are named by options; what does not fit is said in one line."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from offrl.errors import CheckFailed, InvalidInput
from offrl.foreign import ForeignPolicy, opened
from offrl.rollout import evaluate
from offrl_store import EpisodeStore
from offrld.collect import collect

BALANCE = np.array([[0, 0.1], [0, 0.5], [0, 3.0], [0, 1.0]], np.float32)
PUSH = np.array([[9.0], [-9.0], [9.0]], np.float32)


def exported(weights: np.ndarray, *, batch: object = 1, argmax: bool = False, more: bool = True) -> bytes:
    """A linear policy as `torch.onnx.export` writes one: obs to actions (and values), for batches of one unless told."""
    size, count = weights.shape
    nodes = [helper.make_node("MatMul", ["obs", "weights"], ["scores"])]
    nodes += [helper.make_node("ArgMax", ["scores"], ["actions"], axis=1, keepdims=0)] if argmax else []
    nodes += [helper.make_node("ReduceSum", ["obs"], ["values"])] if more else []
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, count])
    outputs = [scores, *([helper.make_tensor_value_info("actions", TensorProto.INT64, [batch])] if argmax else [])]
    outputs += [helper.make_tensor_value_info("values", TensorProto.FLOAT, [1, 1])] if more else []
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [batch, size])],
        outputs,
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("batch", [1, "batch"])
def test_actions_and_scores_of_discrete_policies_act_alike(tmp_path, batch):
    data = exported(BALANCE, batch=batch, argmax=True)
    scores = evaluate(ForeignPolicy(data, input="obs", output="scores", argmax=True), "CartPole-v1", 2)
    assert evaluate(ForeignPolicy(data, output="actions"), "CartPole-v1", 2).returns == scores.returns
    assert min(scores.returns) > 100
    store = collect("CartPole-v1", ForeignPolicy(data, output="actions"), steps=300, into=tmp_path / "store", envs=3)
    observed = store.episodes[0]
    np.testing.assert_array_equal(observed.action, (observed.observation[:-1] @ BALANCE).argmax(1))


def test_continuous_actions_are_clipped_to_the_bounds(tmp_path):
    store = collect("Pendulum-v1", ForeignPolicy(exported(PUSH, more=False)), steps=50, into=tmp_path / "store")
    episode = EpisodeStore.open(store.path).episodes[0]
    np.testing.assert_allclose(episode.action, np.clip(episode.observation[:-1] @ PUSH, -2, 2), rtol=1e-6)
    assert abs(episode.action).max() == 2


def test_what_does_not_fit_is_one_line():
    data = exported(BALANCE, argmax=True)
    for make, words in (
        (lambda: opened(data), "no offrl.format"),
        (lambda: opened(data, "observation"), "has no input 'observation', only obs float[1, 4]"),
        (lambda: opened(data, "obs", "action"), "has no output 'action', only scores float[1, 2], actions int64[1]"),
        (lambda: opened(data, "obs"), "has several outputs: scores"),
        (lambda: opened(data, None, "actions", True), "not scores"),
        (lambda: opened(b"nothing", "obs"), "ONNX file"),
        (lambda: evaluate(opened(data, "obs", "actions"), "Pendulum-v1"), "does not fit the policy"),
        (lambda: evaluate(opened(exported(BALANCE), "obs", "scores"), "CartPole-v1"), "--policy-argmax"),
    ):
        with pytest.raises(InvalidInput) as caught:
            make()
        assert words in str(caught.value) and caught.value.hint and "\n" not in str(caught.value)


def made(nodes: list, size: int, output: tuple, **constants: np.ndarray) -> ForeignPolicy:
    """A graph from obs ``[b, size]`` to act; ``output``: its type, and its shape without the batch axis."""
    kind, *shape = output
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["b", size])],
        [helper.make_tensor_value_info("act", kind, ["c", *shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ForeignPolicy(model.SerializeToString(), argmax=output == (TensorProto.FLOAT, 2))


FLOAT, WHOLE = TensorProto.FLOAT, TensorProto.INT64
WIDE = [
    helper.make_node("Cast", ["obs"], ["wide"], to=TensorProto.DOUBLE),
    helper.make_node("ReduceSum", ["wide", "axis"], ["sum"], keepdims=1),
    helper.make_node("Add", ["sum", "large"], ["act"]),
]
SAME = [  # the constant for each row
    helper.make_node("Cast", ["obs"], ["whole"], to=WHOLE),
    helper.make_node("ReduceSum", ["whole", "axis"], ["sum"], keepdims=0),
    helper.make_node("Mul", ["sum", "zero"], ["none"]),
]
AXIS, ZERO = np.array([1]), np.array([0])


@pytest.mark.parametrize(
    ("env", "policy", "words"),
    [
        (
            "CartPole-v1",
            made([helper.make_node("MatMul", ["obs", "nan"], ["act"])], 4, (FLOAT, 2), nan=np.full((4, 2), np.nan, np.float32)),
            "'act' is not finite",
        ),
        (
            "CartPole-v1",
            made([*SAME, helper.make_node("Add", ["none", "seven"], ["act"])], 4, (WHOLE,), axis=AXIS, zero=ZERO, seven=np.array([7])),
            "gives the action 7, the environment has 0 to 1",
        ),
        (
            "CartPole-v1",
            made([*SAME, helper.make_node("Sub", ["none", "one"], ["act"])], 4, (WHOLE,), axis=AXIS, zero=ZERO, one=np.array([1])),
            "gives the action -1, the environment has 0 to 1",
        ),
        (
            "CartPole-v1",
            made(
                [*SAME, helper.make_node("Add", ["none", "far"], ["at"]), helper.make_node("Gather", ["table", "at"], ["act"])],
                4,
                (WHOLE,),
                axis=AXIS,
                zero=ZERO,
                far=np.array([9]),
                table=np.array([0, 1]),
            ),
            "the policy's graph fails",
        ),
        (
            "Pendulum-v1",
            made(
                [helper.make_node("ReduceMean", ["obs"], ["m"], keepdims=0), helper.make_node("Expand", ["m", "shape"], ["act"])],
                3,
                (FLOAT, 1),
                shape=np.array([3, 1]),
            ),
            "has the shape [3, 1] for 1 observations",
        ),
        ("Pendulum-v1", made(WIDE, 3, (TensorProto.DOUBLE, 1), axis=AXIS, large=np.array([1e300])), "float32 does not hold"),
    ],
)
def test_what_a_policy_does_wrong_is_said_of_the_policy_and_not_of_the_environment(tmp_path, capfd, env, policy, words):
    for act in (lambda: evaluate(policy, env, 1), lambda: collect(env, policy, steps=5, into=tmp_path / "store")):
        with pytest.raises(CheckFailed) as caught:
            act()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not capfd.readouterr().err  # onnxruntime's own lines hold the names in the file as they are


def test_a_graph_without_input_or_output_and_a_ragged_observation_are_one_line():
    value = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    obs = helper.make_tensor_value_info("obs", FLOAT, ["b", 3])
    out = helper.make_tensor_value_info("act", FLOAT, ["b", 3])
    for inputs, outputs, name in (([], [out], "one"), ([obs], [], "obs")):
        graph = helper.make_graph([helper.make_node("Identity", [name], ["act"])], "policy", inputs, outputs, [value])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        with pytest.raises(InvalidInput, match=r"has no (in|out)put;"):
            ForeignPolicy(model.SerializeToString())
    policy = made([helper.make_node("Identity", ["obs"], ["act"])], 3, (FLOAT, 3))
    for call, given in ((policy.act, [[1], [1, 2]]), (policy.predict, [[1], [1, 2]]), (policy.predict, 1.0), (policy.act, [1e39, 0, 0])):
        with pytest.raises(InvalidInput):
            call(given)
    assert policy.predict(np.zeros((0, 3))).shape == (0, 3)
    assert policy.act({"obs": [1, 2, 3], "others": [[1], [1, 2]]}).tolist() == [1, 2, 3]


def test_the_command_line_collects_and_evaluates_with_named_tensors(offrl_cli, client, tmp_path):
    (tmp_path / "sb3.onnx").write_bytes(exported(BALANCE, argmax=True))
    names = ("--policy-input", "obs", "--policy-output", "actions")
    ran = offrl_cli("evaluate", tmp_path / "sb3.onnx", "--env", "CartPole-v1", "--episodes", 2, *names, "--json")
    assert ran.status == 0 and json.loads(ran.out)["return_mean"] > 100
    collecting = ("collect", "--env", "CartPole-v1", "--policy", tmp_path / "sb3.onnx", "--into", "foreign", "--steps", 100)
    ran = offrl_cli(*collecting, *names, "--wait")
    assert ran.status == 0, ran.err
    assert client.datasets.show("foreign").transitions == 100
    ran = offrl_cli(*collecting, "--policy-input", "observation")
    assert ran.status == 2 and "has no input 'observation', only obs" in ran.err
    ran = offrl_cli("collect", "--env", "Pendulum-v1", *collecting[3:5], "--into", "other", "--steps", 10, *names)
    assert ran.status == 2 and "does not fit the policy" in ran.err
