"""Small policy files made with onnx alone, for tests of what reads and runs them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def linear_policy(
    weight: Any,
    *,
    discrete: bool = False,
    low: float = -1.0,
    high: float = 1.0,
    dtype: str = "float32",
    name: str = "observation",
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """``clip(observation @ weight)`` or its argmax: ``weight`` is ``[D, A]``."""
    weight = np.asarray(weight, np.float32)
    nodes = [
        helper.make_node("Cast", [name], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "weight"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["action"], axis=1, keepdims=0)
        if discrete
        else helper.make_node("Clip", ["scores", "low", "high"], ["action"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    output = (TensorProto.INT64, ["batch"]) if discrete else (TensorProto.FLOAT, ["batch", weight.shape[1]])
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(name, kind, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("action", *output)],
        [numpy_helper.from_array(weight, "weight")]
        + ([] if discrete else [numpy_helper.from_array(np.float32(bound), which) for bound, which in ((low, "low"), (high, "high"))]),
    )
    space = {"discrete": True, "n": weight.shape[1]} if discrete else {"discrete": False, "low": [low] * weight.shape[1], "high": [high]}
    return with_metadata(graph, {"format": 1, "algorithm": "bc", "space": space, "job": "j1", "step": 5} | (metadata or {}))


def two_field_policy() -> bytes:
    """``left [3] + right [3]``, float32 and uint8."""
    nodes = [helper.make_node("Cast", ["right"], ["x"], to=TensorProto.FLOAT), helper.make_node("Add", ["left", "x"], ["action"])]
    graph = helper.make_graph(
        nodes,
        "policy",
        [
            helper.make_tensor_value_info("left", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("right", TensorProto.UINT8, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 3])],
    )
    return with_metadata(graph, {"format": 1, "space": {"discrete": False}})


def with_metadata(graph: onnx.GraphProto, metadata: dict[str, Any]) -> bytes:
    """A model of the graph with the metadata under our prefix."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {f"offrl.{key}": json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def frames_policy(frames: int, size: int, field: tuple[int, ...] | None = None) -> bytes:
    """The stacked frames themselves are the action: what the graph is given can be read off. ``field``: shape of one frame."""
    width = frames * size
    graph = helper.make_graph(
        [helper.make_node("Identity", ["observation"], ["action"])],
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", width])],
    )
    shape = [size] if field is None else list(field)
    space = {"discrete": False, "frame_stack": frames, "observation": {"observation": {"dtype": "float32", "shape": shape}}}
    return with_metadata(graph, {"format": 2, "algorithm": "bc", "space": space})
