"""A checkpoint: the training state as one safetensors file, written so that a crash leaves the old one or the new one, whole.

The file's metadata holds ``offrl``: JSON of step, algorithm, config, snapshot, seeds, runner, versions, ..., and the ``crc32`` of the
tensors' bytes in the order of their names, because safetensors itself would not notice a flipped bit.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offrl.errors import OffrlError
from offrl_store.disk import write_atomic

FORMAT = 1


class CheckpointCorrupt(OffrlError):
    """A checkpoint that is cut, changed, or of an unknown version."""

    code = "checkpoint_corrupt"


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write a checkpoint durably: a crash leaves the old file or the new one, whole (`write_atomic`)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: safetensors writes several in random order, and equal states should make equal files.
    metadata = {"offrl": json.dumps({"format": FORMAT, "crc32": _crc32(tensors), **description})}
    write_atomic(path, save(tensors, metadata))


def read(path: str | os.PathLike[str], device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a checkpoint; `CheckpointCorrupt` when a byte of it is not as written."""
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        description = json.loads(metadata["offrl"])
        expected = description["crc32"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointCorrupt(f"checkpoint {os.fspath(path)}: cannot be read ({error})", hint="use the one before it") from None
    if description.get("format") != FORMAT:
        raise CheckpointCorrupt(f"checkpoint {os.fspath(path)}: format {description.get('format')!r}, this version reads {FORMAT}")
    if _crc32(tensors) != expected:
        raise CheckpointCorrupt(f"checkpoint {os.fspath(path)}: its checksum does not match its content", hint="use the one before it")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, description


def _crc32(tensors: dict[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), value))
    return value
