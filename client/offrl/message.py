"""One message as bytes: a msgpack map within limits that hold before anything looks at what the message says.

msgpack itself refuses bad UTF-8, trailing and missing bytes, and headers that announce more than there is. What it would let through is
refused here: extension types, keys that are no text or occur twice, deep nesting, more values than a request can need (a million
empty lists fit into a megabyte and would hold up the daemon for a second), and, in a request, numbers that are not finite and NUL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack

from offrl.errors import InvalidMessage

MAX_DEPTH = 16  # nesting of maps and lists
MAX_LIST = 5_000  # values of one list: the files of an upload. A hundred thousand, nested, would cost memory before anybody counts
MAX_MAP = 4_096  # keys of one map
MAX_VALUES = 65_536  # of all lists and maps of a request together: 5,000 files of an upload are 35,000
SHOWN = 80  # characters of a value in an error


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message. `InvalidMessage` for text that is not UTF-8 and a number of more than 64 bits."""
    try:
        return msgpack.packb(message, use_bin_type=True)
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"text must be UTF-8, got {shown(error.object)}") from None
    except OverflowError:
        raise InvalidMessage(f"a number of more than 64 bits cannot be sent: {shown(_largest(message))}") from None
    except ValueError as error:  # nested too deeply
        raise InvalidMessage(f"not a message of this protocol: {error}") from None


def pack_reply(message: Mapping[str, Any]) -> bytes:
    """The bytes of an answer, in which nothing is refused: what a message cannot hold becomes text."""
    return msgpack.packb(message, use_bin_type=True, unicode_errors="backslashreplace", default=str)


def pack_around(message: Mapping[str, Any], values: list[bytes]) -> bytes:
    """The bytes of a message whose last value is an empty list, with these packed values in it."""
    return b"".join([pack_reply(message)[:-1], msgpack.Packer().pack_array_header(len(values)), *values])


def unpack(body: bytes) -> dict[str, Any]:
    """The map in ``body`` of a reply: a daemon may send long lists, and metrics that are NaN. `InvalidMessage` for anything else."""
    return _unpacked(body)


def unpack_request(body: bytes) -> dict[str, Any]:
    """The map in ``body`` of a request, within all limits. `InvalidMessage` says which one is broken."""
    size = _Size()
    message = _unpacked(body, object_pairs_hook=size.map, list_hook=size.list, max_array_len=MAX_LIST, max_map_len=MAX_MAP)
    _check(message, 0)
    return message


def shown(value: Any) -> str:
    """A value for an error message, at the cost of what is shown of it and not of its size."""
    if isinstance(value, str | bytes) and len(value) > SHOWN:
        return f"{value[:SHOWN]!r}..."
    if isinstance(value, dict | list | tuple) and len(value) > 4:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 2 * SHOWN else text[: 2 * SHOWN] + "..."


def _unpacked(body: bytes, **options: Any) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True, ext_hook=_no_extension, **options)
    except (ValueError, MemoryError) as error:  # every exception of msgpack is a ValueError
        raise InvalidMessage(f"not a message of this protocol: {error or type(error).__name__}") from None
    if not isinstance(message, dict):
        raise InvalidMessage(f"not a message of this protocol: expected a map, got {type(message).__name__}")
    return message


class _Size:
    """Counts the values of one message while it is read, so that reading ends where there are too many."""

    def __init__(self) -> None:
        self._values = 0

    def list(self, values: list[Any]) -> list[Any]:
        self._add(len(values))
        return values

    def map(self, pairs: Any) -> dict[Any, Any]:
        self._add(len(pairs))
        return _unique(pairs)

    def _add(self, count: int) -> None:
        self._values += count + 1
        if self._values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")


def _largest(value: Any) -> Any:
    """The number in a message that is furthest from zero."""
    if isinstance(value, Mapping):
        return _largest(list(value.values()))
    if isinstance(value, list | tuple):
        return max((found for item in value if (found := _largest(item)) is not None), key=abs, default=None)
    return value if isinstance(value, int) else None


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")


def _unique(pairs: Any) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidMessage(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidMessage(f"a key must be text, got {shown(key)}")
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidMessage(f"a number must be finite, got {value}")
    elif isinstance(value, str) and "\0" in value:
        raise InvalidMessage(f"text must not hold NUL, got {shown(value)}")
    elif isinstance(value, bytes) and depth != 1:
        raise InvalidMessage(f"bytes are the data of an upload, got {shown(value)} elsewhere")


__all__ = ["MAX_DEPTH", "MAX_LIST", "MAX_MAP", "MAX_VALUES", "pack", "pack_around", "pack_reply", "shown", "unpack", "unpack_request"]
