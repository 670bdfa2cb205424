"""Reading a policy file: its session, its metadata, its inputs and output, all checked before a policy acts with them.

The contract of the file is described in ``docs/policy-file.md``. A file may come from anywhere, so nothing in it is trusted.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from offrl.errors import InvalidInput
from offrl.memory import CONTEXT, LENGTH, NEXT, REWARD, TARGET_RETURN, Context
from offrl.onnx_file import FETCH_AGAIN, read_bytes
from offrl.onnx_session import load_session

FORMAT = 2  # newest version of the policy file, `offrl.format`; 1: policies without memory
PREFIX = "offrl."  # of the metadata keys
ACTION = "action"  # name of the graph's output
LARGEST = float(np.finfo(np.float32).max)

DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}  # fmt: skip


def read_metadata(session: onnxruntime.InferenceSession, name: str) -> dict[str, Any]:
    """Return the file's metadata without the ``offrl.`` prefix; raise `InvalidInput` if it is not a policy file."""
    texts = {key[len(PREFIX) :]: value for key, value in session.get_modelmeta().custom_metadata_map.items() if key.startswith(PREFIX)}
    if "format" not in texts:
        raise InvalidInput(
            f"{name} is an ONNX file, but not a policy file of offrl: its metadata has no offrl.format",
            hint="a policy file comes from: offrl fetch JOB --out policy.onnx",
        )
    if large := [key for key, value in texts.items() if len(value) > _MOST_METADATA]:
        raise InvalidInput(f"the metadata {large[0]!r} of {name} is larger than {_MOST_METADATA} bytes", hint=FETCH_AGAIN)
    try:
        metadata = {key: json.loads(value, parse_constant=_no_constant) for key, value in texts.items()}
    except (ValueError, RecursionError):  # also thousands of nested lists, or a number with thousands of digits
        raise InvalidInput(f"the metadata of {name} is not JSON", hint=FETCH_AGAIN) from None
    for key in ("space", "context", "fields"):
        if not isinstance(metadata.get(key), dict | None):
            raise InvalidInput(f"the metadata {key!r} of {name} is not a JSON object", hint=FETCH_AGAIN)
    return metadata


_MOST_METADATA = 16 << 20  # bytes of one value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def check_graph(session: onnxruntime.InferenceSession, metadata: dict[str, Any], name: str) -> None:
    """Raise `InvalidInput` unless this version reads the file's format and its tensors are those of a policy."""
    version = metadata["format"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidInput(f"{name} has the format version {str(version)[:40]!r}, expected a whole number", hint=FETCH_AGAIN)
    if version > FORMAT:
        message = f"{name} has the format version {version}; this offrl reads versions up to {FORMAT}"
        raise InvalidInput(message, hint="update: pip install -U offrl")
    outputs = session.get_outputs()
    if not outputs or outputs[0].name != ACTION or outputs[0].type not in ("tensor(float)", "tensor(int64)"):
        raise InvalidInput(f"{name} has no output 'action' of float32 or int64", hint=FETCH_AGAIN)
    shape, discrete = outputs[0].shape, outputs[0].type == "tensor(int64)"
    if len(shape) != (1 if discrete else 2) or not all(isinstance(size, int) for size in shape[1:]):
        raise InvalidInput(
            f"the output 'action' of {name} has the shape {shape}", hint=f"expected [batch{'' if discrete else ', dimensions'}]"
        )
    if not session.get_inputs():
        raise InvalidInput(f"{name} takes no observation: its graph has no input", hint=FETCH_AGAIN)
    for tensor in session.get_inputs():
        if tensor.type not in DTYPES or not tensor.shape or not all(isinstance(size, int) for size in tensor.shape[1:]):
            message = f"{name}: input {tensor.name!r} has the type {tensor.type} and shape {tensor.shape}"
            raise InvalidInput(message, hint="only the batch axis may be open")
        if math.prod(tensor.shape[1:]) > _MOST_ELEMENTS:
            raise InvalidInput(
                f"{name}: input {tensor.name!r} has the shape {tensor.shape}", hint=f"an observation has at most {_MOST_ELEMENTS} numbers"
            )


def input_names(metadata: dict[str, Any], inputs: list[str], name: str) -> dict[str, str]:
    """Map each observation field to its input of the graph. The names agree unless the metadata `fields` renames one (``action``)."""
    field_of = metadata.get("fields") or {}
    if not all(isinstance(field, str) for field in field_of.values()):
        raise InvalidInput(f"{name} has a metadata entry 'fields' that is not a table of names", hint=FETCH_AGAIN)
    input_of = {field_of.get(tensor, tensor): tensor for tensor in inputs}
    if len(input_of) < len(inputs):
        raise InvalidInput(f"{name} has two inputs for one observation field", hint=FETCH_AGAIN)
    return input_of


_MOST_ELEMENTS = 1 << 28  # numbers of one observation


def is_context(name: str) -> bool:
    """Whether an input of a transformer's graph carries context, reward or target return instead of an observation."""
    return name in (REWARD, TARGET_RETURN) or name.startswith(CONTEXT)


def context_of(
    session: onnxruntime.InferenceSession, metadata: dict[str, Any], inputs: dict[str, tuple[np.dtype, tuple[int, ...]]], name: str
) -> Context | None:
    """Return the context of a transformer's file; None for other policies."""
    declared = metadata.get("context")
    if declared is None:
        return None
    tensors = {n: spec for n, spec in inputs.items() if n.startswith(CONTEXT)}
    outputs = {o.name for o in session.get_outputs()}
    missing = [n for n in (REWARD, TARGET_RETURN, LENGTH) if n not in inputs] + [NEXT + n for n in tensors if NEXT + n not in outputs]
    target = declared.get("target_return") if isinstance(declared, dict) else None
    if missing or not isinstance(target, (int, float)) or not abs(target) <= LARGEST:
        raise InvalidInput(f"{name} has a context, but no {missing[0] if missing else 'target return'}", hint=FETCH_AGAIN)
    return Context(tensors, float(target), ACTION)


def frame_stack(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], name: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Return how many frames the graph takes at once, and the shape of one frame of each field."""
    space = metadata.get("space") or {}
    count = space.get("frame_stack", 1)
    if count == 1:
        return 1, shapes
    try:
        if type(count) is not int or count < 1:
            raise TypeError
        frames = {field: tuple(space["observation"][field]["shape"]) for field in shapes}
        fits = all(shape == (count * (frames[field] or (1,))[0], *frames[field][1:]) for field, shape in shapes.items())
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise InvalidInput(f"{name} declares {count!r} stacked frames, but the shapes of its inputs differ", hint=FETCH_AGAIN)
    return count, frames


def action_bound(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a bound of the actions as float32 of ``shape``, with NaN for open ends; None if the file has no usable bound."""
    if value is None:
        return None
    try:
        array = np.array([math.nan if v is None else v for v in np.ravel(np.array(value, dtype=object))], np.float32)
    except (ValueError, TypeError, OverflowError):  # the file has something else there
        return None
    return np.broadcast_to(array if array.size > 1 else array.reshape(()), shape).copy() if array.size in (1, math.prod(shape)) else None


def environment_of(metadata: dict[str, Any]) -> str | None:
    """Return the environment in which the policy was evaluated, else the one of its data; None if neither is known."""
    evaluation, space, dataset = (metadata.get(key) for key in ("evaluation", "space", "dataset"))
    if isinstance(evaluation, dict) and evaluation.get("env"):
        return str(evaluation["env"])
    source = space.get("source") if isinstance(space, dict) else None
    if isinstance(source, str) and source.startswith("env:"):
        return source[len("env:") :]
    return str(dataset["env_id"]) if isinstance(dataset, dict) and dataset.get("env_id") else None


def opened(source: str | Path | bytes) -> tuple[Path | None, str, onnxruntime.InferenceSession]:
    """Open an ONNX file given by its path or as bytes; return its path, its name in messages, and its session."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = f"the {len(source)} bytes given"
        return None, name, load_session(bytes(source), name)
    path, name = Path(source), f"{str(source)!r}"
    return path, name, load_session(read_bytes(path), name)
