"""The policy file around the graph: metadata, and a write that is whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from offrl.policy import PREFIX
from offrld.export.parity import BEYOND, TOLERANCE, ObservationSpec

PLAIN, REMEMBERING = 1, 2  # versions of the file: a client that knows version 1 would run one that remembers as if it did not


def with_metadata(
    model: onnx.ModelProto,
    observation: Mapping[str, ObservationSpec],
    context: dict[str, Any] | None,
    actions: np.ndarray,
    scores: np.ndarray | None,
    metadata: dict[str, Any],
    parity: dict[str, Any],
) -> bytes:
    """The file's bytes: ``model`` with the metadata that the caller gives, and with what the graph itself says.

    Args:
        observation: the inputs that are observation fields.
        context: of a policy with memory, ``length`` and ``target_return``.
        actions, scores: what the network gave for some batch, ``[B, ...]`` and ``[B, n]``.
        parity: what came of the check.
    """
    discrete = actions.dtype == np.int64
    space = dict(metadata.get("space") or {})
    space.setdefault("discrete", discrete)
    if scores is not None:
        space.setdefault("n", int(scores.shape[1]))
    stacked = space.get("frame_stack", 1) > 1
    if not stacked:  # else the space says what one frame is
        space["observation"] = {name: {"dtype": str(spec.dtype), "shape": list(spec.shape)} for name, spec in observation.items()}
    space["action"] = {"dtype": "int64" if discrete else "float32", "shape": list(actions.shape[1:])}
    metadata["space"] = space
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    metadata["versions"] = versions | dict(metadata.get("versions") or {})
    metadata["parity"] = {**parity, "tolerance": TOLERANCE, "beyond": BEYOND}
    metadata["format"] = REMEMBERING if stacked or context is not None else PLAIN
    if context is not None:
        metadata["context"] = context
    model.producer_name = "offrld"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, _props(metadata))
    return model.SerializeToString()


def annotate(path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Add to the metadata of a policy file, or replace what it says: the ``evaluation`` that just ran it, say. The graph stays as it is.

    Raises:
        OSError: reading or writing failed; the file is as it was.
    """
    path = Path(path)
    model = onnx.load_model_from_string(path.read_bytes())
    props = {entry.key: entry.value for entry in model.metadata_props} | _props(metadata)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, props)
    write(model.SerializeToString(), path)


def _props(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {PREFIX + key: json.dumps(_plain(value), allow_nan=False) for key, value in metadata.items()}


def _plain(value: Any) -> Any:
    """``value`` in JSON's types: arrays as lists, what is not finite as null (JSON has no NaN), paths and devices as text."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write(data: bytes, path: Path) -> None:
    """All of ``data`` at ``path``, durable, or nothing."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


__all__ = ["annotate", "with_metadata", "write"]
