"""Check an untrusted ONNX file before onnxruntime loads it: it must be self-contained and refer to no other file.

ONNX allows a tensor in another file, named in the model; onnxruntime reads that file, relative to the working directory if the model is
given as bytes. The check therefore visits every tensor, also in attributes, subgraphs and functions. It parses the file as a protobuf
message, decodes only what it needs, and does not use the package ``onnx``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from offrl.errors import InvalidInput

MOST_BYTES = (1 << 31) - 1  # largest protobuf message
MOST_DEPTH = 64  # nesting of messages; onnx's own reader accepts 100
MOST_FIELDS = 5_000_000  # visited fields: a few seconds
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # operators that are part of onnxruntime
_NOT_ONNX = "is not an ONNX file, or it is damaged"
FETCH_AGAIN = "fetch it again with: offrl fetch JOB --out policy.onnx"

# Message -> number of a field -> the message in that field.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


def read_bytes(path: Path) -> bytes:
    """Return the file's bytes; raise `InvalidInput` if it is not a regular file or is larger than any ONNX file."""
    shown = f"{str(path)!r}"
    try:
        # Non-blocking: opening a pipe without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidInput(f"no policy file {shown}", hint="fetch one with: offrl fetch JOB --out policy.onnx") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidInput(f"{shown} is a folder, not a policy file", hint="name the .onnx file itself")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"{shown} is a pipe or a device, not a policy file", hint="read it, and pass the bytes: Policy(data)")
        if status.st_size > MOST_BYTES:
            raise InvalidInput(f"{shown} has {status.st_size} bytes; an ONNX file has at most {MOST_BYTES}", hint=FETCH_AGAIN)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise InvalidInput(f"cannot read {shown}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def check(data: bytes, name: str) -> None:
    """Raise `InvalidInput` unless ``data`` is a self-contained ONNX model.

    Args:
        name: the file's name in messages.
    """
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"{name} has {len(data)} bytes; an ONNX file has at most {MOST_BYTES}", hint=FETCH_AGAIN)
    if not data or data[4:8] == b"ORTM":  # onnxruntime's own format, which this check cannot read
        raise InvalidInput(f"{name} {_NOT_ONNX}", hint=FETCH_AGAIN)
    try:
        problem = _problem(memoryview(data))
    except (ValueError, IndexError):
        raise InvalidInput(f"{name} {_NOT_ONNX}", hint=FETCH_AGAIN) from None
    if problem:
        raise InvalidInput(f"{name} {problem}; a policy file must be self-contained", hint=FETCH_AGAIN)


def _problem(data: memoryview) -> str:
    """Return why a model is refused, "" if it is accepted; raise `ValueError` or `IndexError` if it is not a protobuf message."""
    waiting, visited, used, own = [("model", data, 0)], 0, set(), set()
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > MOST_DEPTH:
            return f"holds messages more than {MOST_DEPTH} deep"
        inside = _MESSAGES[kind]
        texts: dict[int, str] = {}
        for number, value in _fields(message):
            visited += 1
            if visited > MOST_FIELDS:
                return f"has more than {MOST_FIELDS} parts"
            if kind == "tensor" and (number == 13 or (number == 14 and value != 0)):
                return "has tensors in another file"
            if isinstance(value, int):
                continue
            if number in inside:
                waiting.append((inside[number], value, depth + 1))
            elif (kind == "node" and number in (4, 7)) or (kind == "function" and number == 10):
                texts[number] = bytes(value).decode("utf-8", "replace")
        if kind == "node":
            used.add((texts.get(7, ""), texts.get(4, "")))
        elif kind == "function":
            own.add(texts.get(10, ""))
    for domain, operator in sorted(used):
        if (domain not in DOMAINS and domain not in own) or operator == "EPContext":
            return f"has the operator {domain or 'ai.onnx'}.{operator}, which runs external code or reads a file"
    return ""


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: a whole number, or bytes (0 for fixed-size numbers, which the check does not use)."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("a field without a number")
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(message, at)
            if size > end - at:
                raise ValueError("a field beyond the end")
            yield number, message[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise ValueError("a field beyond the end")
            yield number, 0
        else:
            raise ValueError("a field type that ONNX does not use")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Decode a number with seven bits in each byte; return it and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


__all__ = ["FETCH_AGAIN", "check", "read_bytes"]
