"""The policy file around the graph: its metadata, and an atomic write."""

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

PLAIN, REMEMBERING = 1, 2  # versions of the file: a client of version 1 would run a policy that remembers without its memory


def described(reference: Reference, fields: Mapping[str, ObservationSpec], metadata: dict[str, Any], difference: float) -> dict[str, Any]:
    """Return the file's metadata: the caller's, and those of the network.

    Args:
        reference: the network's results.
        fields: the inputs that are observation fields.
        metadata: the caller's.
        difference: the largest difference that the parity check measured.
    """
    action = reference.actions[0]
    space = dict(metadata.get("space") or {})
    space.setdefault("discrete", reference.discrete)
    if reference.scores is not None:
        space.setdefault("n", int(reference.scores[0].shape[1]))
    stacked = space.get("frame_stack", 1) > 1
    if not stacked:  # else the space describes one frame
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
    """Return the bytes of a file that holds ``model`` and the metadata."""
    model.producer_name = "offrld"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, _props(metadata))
    return model.SerializeToString()


def annotate(path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Add or replace metadata of a policy file, for example the ``evaluation`` that just ran it. The graph does not change.

    Raises:
        OSError: reading or writing failed; the file is unchanged.
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
    """Write ``data`` to ``path`` durably and atomically. A pipe or a device receives the data; a link stays a link."""
    reserve(len(data))
    outfile.write(path, data, force=True)
