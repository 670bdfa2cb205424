"""Read JSON from untrusted files strictly, with limits on size and depth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offrl_store.errors import InvalidInput

#: Largest file of metadata, and its deepest nesting.
MAX_JSON_BYTES, MAX_JSON_DEPTH = 16 << 20, 64

#: Largest metadata of a source, as JSON text. Every list of datasets carries these metadata.
MAX_METADATA_BYTES = 64 << 10

#: Matches a whole string, or a bracket outside of strings.
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)|[\[\]{}]', re.DOTALL)


def read_json(path: Path, file: str, *, infinite: bool = False) -> Any:
    """Read the JSON in a file; ``file`` is its name in messages. ``infinite``: accept NaN and Infinity, as Python writes them.

    Raises `InvalidInput` for invalid JSON, and for JSON beyond the limits.
    """
    try:
        with open(path, "rb") as opened:
            content = opened.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror or error}", hint="check its owner and mode, or copy it again") from None
    return parse_json(content, file, infinite=infinite)


def parse_json(content: str | bytes, file: str, *, infinite: bool = False) -> Any:
    """Parse JSON in memory, such as the text of an attribute, as `read_json` does."""
    if len(content) > MAX_JSON_BYTES:
        hint = "JSON of metadata is not that large; the file may be damaged"
        raise InvalidInput(f"{file} is larger than {MAX_JSON_BYTES:,} bytes", hint=hint)
    try:
        if isinstance(content, bytes):
            content = content.decode("utf-8-sig")
        if _depth(content) > MAX_JSON_DEPTH:
            raise InvalidInput(f"{file} is nested more than {MAX_JSON_DEPTH} deep", hint="metadata is not that deep; write it again")
        return json.loads(
            content,
            parse_constant=float if infinite else _constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is not JSON: {_line(error)}", hint="correct the file, or copy it again") from None


def _depth(text: str) -> int:
    """Return the depth of the brackets."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        sign = match[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the largest number")
    return value


def _int(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"a whole number of {len(text)} digits is too large")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"an object has the key {name[:60]!r} twice")
            seen.add(name)
    return value


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def fitting(metadata: Mapping[str, Any], messages: list[str], what: str) -> dict[str, Any]:
    """Reduce metadata to `MAX_METADATA_BYTES`. The largest entries are left out, and a line in ``messages`` names them."""
    too_much = _size(metadata) - MAX_METADATA_BYTES
    if too_much <= 0:
        return dict(metadata)
    leaves = sorted(((_size(value), path) for path, value in _leaves(metadata)), reverse=True)
    dropped: set[tuple[str, ...]] = set()
    for size, path in leaves:
        if too_much <= 0:
            break
        dropped.add(path)
        too_much -= size
    messages.append(
        f"{what} beyond {MAX_METADATA_BYTES:,} bytes is left out: "
        + ", ".join("/".join(path)[:60] for path in sorted(dropped)[:8])
        + (f" and {len(dropped) - 8} more" if len(dropped) > 8 else "")
    )
    return _without(metadata, dropped)


def _size(value: Any) -> int:
    return len(json.dumps(value))


def _leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, each in value.items():
        if isinstance(each, Mapping) and each:
            yield from _leaves(each, (*path, key))
        else:
            yield (*path, key), each


def _without(value: Mapping[str, Any], dropped: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        key: _without(each, dropped, (*path, key)) if isinstance(each, Mapping) else each
        for key, each in value.items()
        if (*path, key) not in dropped
    }
