"""The policy file around the graph: metadata, and a write that is whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from offrl import outfile
from offrl.policy import PREFIX
from offrl_store.disk import reserve
from offrld.export.network import Reference
from offrld.export.parity import BEYOND, TOLERANCE, ObservationSpec
from offrld.json_safe import json_safe

PLAIN, REMEMBERING = 1, 2  # versions of the file: a client that knows version 1 would run one that remembers as if it did not


def described(reference: Reference, fields: Mapping[str, ObservationSpec], metadata: dict[str, Any], difference: float) -> dict[str, Any]:
    """The file's metadata: what the caller gives, and what the network itself says.

    Args:
        reference: what the network gave.
        fields: the inputs that are observation fields.
        difference: what came of the check.
    """
    action = reference.actions[0]
    space = dict(metadata.get("space") or {})
    space.setdefault("discrete", reference.discrete)
    if reference.scores is not None:
        space.setdefault("n", int(reference.scores[0].shape[1]))
    stacked = space.get("frame_stack", 1) > 1
    if not stacked:  # else the space says what one frame is
        field_of = metadata.get("fields") or {}
        space["observation"] = {
            field_of.get(name, name): {"dtype": str(spec.dtype), "shape": list(spec.shape)} for name, spec in fields.items()
        }
    space["action"] = {"dtype": str(action.dtype), "shape": list(action.shape[1:])}
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    checked = {
        "largest_difference": difference,
        "batch_sizes": list(reference.batch_sizes),
        "tolerance": TOLERANCE,
        "beyond": BEYOND if reference.beyond else 1.0,
    }
    return {
        **metadata,
        "space": space,
        "versions": versions | dict(metadata.get("versions") or {}),
        "parity": checked,
        "format": REMEMBERING if stacked or reference.context is not None else PLAIN,
        **({} if reference.context is None else {"context": reference.context}),
    }


def with_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> bytes:
    """The file's bytes: ``model`` with the metadata."""
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
    return {PREFIX + key: json.dumps(json_safe(value), allow_nan=False) for key, value in metadata.items()}


def write(data: bytes, path: Path) -> None:
    """All of ``data`` at ``path``, durable, or nothing. A pipe or a device takes it and stays; a link stays, too."""
    reserve(len(data))
    outfile.write(path, data, force=True)
