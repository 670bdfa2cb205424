"""Policy files from somebody else: nothing outside of the file is read, and whatever is wrong is one line."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from policy_files import linear_policy, with_metadata

from offrl import Policy
from offrl.errors import CheckFailed, InvalidInput

SECRET = np.arange(4, dtype=np.float32)
METADATA = {"format": 1, "space": {"discrete": False, "low": [-9.0], "high": [9.0]}}
X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in ("observation", "action"))


def external(name="leak", location="secret.bin"):
    """A tensor that lies in another file."""
    tensor = TensorProto()
    tensor.name, tensor.data_type, tensor.data_location = name, TensorProto.FLOAT, TensorProto.EXTERNAL
    tensor.dims.append(4)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def file_of(nodes, *, initializers=(), sparse=(), functions=(), domains=("",), metadata=METADATA):
    graph = helper.make_graph(nodes, "policy", [X], [Y], list(initializers), sparse_initializer=list(sparse))
    imports = [helper.make_opsetid(domain, 17 if not domain else 1) for domain in domains]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=list(functions))
    texts = {f"offrl.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    helper.set_model_props(model, texts)
    return model.SerializeToString()


def constant(tensor, output="leak"):
    return helper.make_node("Constant", [], [output], value=tensor)


def add(name="leak"):
    return helper.make_node("Add", ["observation", name], ["action"])


def in_subgraph():
    body = helper.make_graph([constant(external(), "inner")], "then", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])])
    yes = numpy_helper.from_array(np.array(True), "yes")
    return file_of([helper.make_node("If", ["yes"], ["leak"], then_branch=body, else_branch=body), add()], initializers=[yes])


def in_function():
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "mine", "Leak", ["x"], ["y"], [constant(external(), "c"), helper.make_node("Add", ["x", "c"], ["y"])], imports
    )
    node = helper.make_node("Leak", ["observation"], ["action"], domain="mine")
    return file_of([node], functions=[function], domains=("", "mine"))


def in_sparse():
    sparse = onnx.SparseTensorProto()
    sparse.values.CopyFrom(external())
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), "indices"))
    sparse.dims.append(4)
    return file_of([add()], sparse=[sparse])


OUTSIDE = {
    "an initializer": lambda: file_of([add()], initializers=[external()]),
    "an absolute path": lambda: file_of([add()], initializers=[external(location="/etc/passwd")]),
    "a memory address": lambda: file_of([add()], initializers=[external(location="*/_ORT_MEM_ADDR_/*")]),
    "a constant": lambda: file_of([constant(external()), add()]),
    "a subgraph": in_subgraph,
    "a function": in_function,
    "a sparse initializer": in_sparse,
}


@pytest.mark.parametrize("place", OUTSIDE)
def test_a_tensor_in_another_file_is_refused_wherever_it_is_named(place, tmp_path, monkeypatch):
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    monkeypatch.chdir(tmp_path)
    data = OUTSIDE[place]()
    (tmp_path / "policy.onnx").write_bytes(data)
    for source in (data, tmp_path / "policy.onnx"):
        with pytest.raises(InvalidInput, match="has tensors in another file"):
            Policy(source)


def test_the_same_tensors_within_the_file_are_served():
    inside = numpy_helper.from_array(SECRET, "leak")
    for data in (file_of([add()], initializers=[inside]), file_of([constant(inside), add()])):
        assert Policy(data).act(np.zeros(4, np.float32)).tolist() == SECRET.tolist()


@pytest.mark.parametrize(("operator", "domain"), [("EPContext", "com.microsoft"), ("Run", "somebody.else")])
def test_operators_that_load_code_or_files_are_refused(operator, domain):
    node = helper.make_node(operator, ["observation"], ["action"], domain=domain, ep_cache_context="/tmp/library.so", embed_mode=0)
    with pytest.raises(InvalidInput, match=rf"operator {domain}.{operator}, which runs external code or reads a file"):
        Policy(file_of([node], domains=("", domain)))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "NaN", "not JSON"),
        ("space", "[" * 100_000, "not JSON"),
        ("space", '{"low": [Infinity]}', "not JSON"),
        ("space", "[1, 2]", "'space' of .* is not a JSON object"),
        ("space", json.dumps("x" * (17 << 20)), "larger than"),
        ("context", "7", "'context' of .* is not a JSON object"),
        ("fields", '{"observation": 3}', "not a table of names"),
        ("format", "true", "format version .*, expected a whole number"),
        ("format", "-1", "format version .*, expected a whole number"),
        ("format", "99", "reads versions up to"),
        ("space", '{"frame_stack": 0}', "0 stacked frames"),
        ("space", '{"frame_stack": true}', "stacked frames"),
    ],
)
def test_metadata_that_is_wrong_is_one_line(key, value, said):
    data = file_of([helper.make_node("Identity", ["observation"], ["action"])], metadata={**METADATA, key: value})
    if value == '{"frame_stack": true}':  # equal to 1
        assert Policy(data).frame_stack == 1
        return
    with pytest.raises(InvalidInput, match=said) as refused:
        Policy(data)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("bounds", [["a"], {"b": 1}, "text", [1, 2, 3], [10**400]])
def test_bounds_that_are_none_are_left_out(bounds):
    data = file_of([helper.make_node("Identity", ["observation"], ["action"])], metadata={**METADATA, "space": {"low": bounds}})
    policy = Policy(data)
    assert policy.action_low is None
    assert policy.act(SECRET).tolist() == SECRET.tolist()


def test_an_onnx_file_that_is_no_policy_of_ours_is_named_as_such():
    with pytest.raises(InvalidInput, match="not a policy file of offrl"):
        Policy(file_of([helper.make_node("Identity", ["observation"], ["action"])], metadata={}))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="is a pipe or a device"):
        Policy(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match="is a pipe or a device"):
        Policy("/dev/zero")
    with pytest.raises(InvalidInput, match="is a folder"):
        Policy(tmp_path)
    with pytest.raises(InvalidInput, match="no policy file"):
        Policy(tmp_path / "nothing.onnx")
    with pytest.raises(InvalidInput, match="cannot read"):
        Policy(str(tmp_path / ("x" * 300)))


def test_a_file_larger_than_onnx_allows_is_not_read(tmp_path):
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(4 << 30)  # sparse: no block is written
    with pytest.raises(InvalidInput, match="4294967296 bytes; an ONNX file has at most"):
        Policy(tmp_path / "large.onnx")


def test_damaged_bytes_are_one_line():
    whole = linear_policy(np.ones((3, 2)))
    random = np.random.default_rng(0)
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InvalidInput):
            Policy(whole[:length])
    for _ in range(200):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            changed[place] = random.integers(0, 256)
        try:
            Policy(bytes(changed))
        except (InvalidInput, CheckFailed) as refused:
            assert "\n" not in str(refused)
    with pytest.raises(InvalidInput, match="is not an ONNX file"):
        Policy(b"\x18\x00\x00\x00ORTM" + bytes(64))
    with pytest.raises(InvalidInput, match=r"is not an ONNX file|deep"):
        Policy(b"\x3a\x7f" * 5000)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_no_number_is_not_given_to_a_robot(bad):
    inside = numpy_helper.from_array(np.array([0, 0, bad, 0], np.float32), "leak")
    policy = Policy(file_of([add()], initializers=[inside]))
    with pytest.raises(CheckFailed, match=r"action\[2\] is (nan|inf)"):
        policy.act(SECRET)
    with pytest.raises(CheckFailed, match=r"action\[0, 2\] is (nan|inf)"):
        policy.predict(SECRET[None])


def test_a_graph_that_fails_on_an_observation_or_gives_other_rows_is_not_given_to_a_robot(capfd):
    whole = helper.make_tensor_value_info("observation", TensorProto.INT64, ["b"])
    action = helper.make_tensor_value_info("action", TensorProto.INT64, ["c"])
    constants = {"table": [4, 5], "one": [1], "nine": [9]}

    def policy(*nodes: onnx.NodeProto) -> Policy:
        values = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
        return Policy(with_metadata(helper.make_graph(nodes, "g", [whole], [action], values), {"format": 1}))

    gather = policy(helper.make_node("Gather", ["table", "observation"], ["action"]))
    assert (gather.act(1), gather.predict([0, 1]).tolist()) == (5, [4, 5])
    for call in (lambda: gather.act(7), lambda: gather.predict([0, 7])):
        with pytest.raises(CheckFailed, match="graph fails") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert gather.act(0) == 4
    more = policy(
        helper.make_node("Slice", ["observation", "one", "nine"], ["rest"]),
        helper.make_node("Concat", ["observation", "rest"], ["action"], axis=0),
    )
    with pytest.raises(CheckFailed, match=r"shape \(3,\) for 2"):
        more.predict([0, 1])
    assert not capfd.readouterr().err


def test_large_actions_that_are_numbers_are_given():
    inside = numpy_helper.from_array(np.full(4, 3e38, np.float32), "leak")
    assert Policy(file_of([add()], initializers=[inside])).act(np.zeros(4, np.float32)).tolist() == [np.float32(3e38)] * 4


def test_an_output_of_another_form_is_refused():
    output = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["b", 2, 2])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["observation", "shape"], ["action"])],
        "g",
        [X],
        [output],
        [numpy_helper.from_array(np.array([-1, 2, 2]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {f"offrl.{key}": json.dumps(value) for key, value in METADATA.items()})
    with pytest.raises(InvalidInput, match=r"output 'action' of .* has the shape"):
        Policy(model.SerializeToString())
