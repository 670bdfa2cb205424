"""Messages between a collector and its worker processes: JSON and named arrays in one piece of bytes. Nothing is pickled."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGNMENT = 64
HEAD = struct.Struct("<I")


def pack(message: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Pack a JSON ``message`` and arrays into bytes."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    head = json.dumps({"message": message, "arrays": layout}).encode()
    parts, size = [HEAD.pack(len(head)), head], HEAD.size + len(head)
    for array in arrays.values():
        parts += [bytes(-size % ALIGNMENT), array.tobytes()]
        size += -size % ALIGNMENT + array.nbytes
    return b"".join(parts)


def unpack(data: bytes | bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the message and the arrays of `pack`; the arrays are views of ``data``."""
    length = HEAD.unpack_from(data)[0]
    head = json.loads(data[HEAD.size : HEAD.size + length])
    arrays, at = {}, HEAD.size + length
    for name, dtype, shape in head["arrays"]:
        at += -at % ALIGNMENT
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += arrays[name].nbytes
    return head["message"], arrays
