"""Replies cut to the size of a message: parts of any size (metadata, metrics of a thousand seeds) are shortened, and marked as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from offrl import message
from offrl.wire import MAX_MESSAGE, DatasetInfo, JobInfo

WHOLE = MAX_MESSAGE - (1 << 14)  # bytes of the one entry of a reply
NAMES = 1000  # of jobs, in one reply
Cuts = tuple[tuple[str, Callable[[Any, int], Any]], ...]  # key -> the function that cuts its value to a number of bytes
Info = TypeVar("Info", DatasetInfo, JobInfo)


def dataset(info: DatasetInfo, most: int = WHOLE) -> DatasetInfo:
    """Cut a dataset's information to ``most`` bytes; its ``trimmed`` names the keys that lost something."""
    cuts: Cuts = (
        ("metadata", _first_items),
        ("skipped", _first),
        ("pinned_by", _first),
        ("fields", _first_items),
        ("returns", _first_items),
    )
    return _cut(info, most, cuts, lambda trimmed: {"trimmed": trimmed})


def job(info: JobInfo, most: int = WHOLE) -> JobInfo:
    """Cut a job's information to ``most`` bytes: first to fewer seeds of its metrics, then to less of its error's log and its settings."""
    cuts: Cuts = (
        ("metrics", _first_items),
        ("error", _short_texts),
        ("spec", _first_items),
        ("seeds", _first),
        ("after", _first),
        ("reason", _short),
    )
    return _cut(info, most, cuts, lambda trimmed: {})


def _cut(info: Info, most: int, cuts: Cuts, marks: Callable[[list[str]], dict[str, Any]]) -> Info:
    over = len(message.pack_reply(info.model_dump())) - most
    trimmed: list[str] = []
    for name, cut in cuts:
        if over <= 0:
            break
        value = getattr(info, name)
        size = _size(value)
        shorter = cut(value, max(0, size - over - 64))  # room for the name of the key in ``trimmed``
        if shorter != value:
            trimmed.append(name)
            info = info.model_copy(update={name: shorter, **marks([*getattr(info, "trimmed", []), name])})
            over -= size - _size(shorter) - 64
    return info


def _size(value: Any) -> int:
    return len(message.pack_reply({"": value}))


def _first_items(values: dict[str, Any], most: int) -> dict[str, Any]:
    """Return as many items as fit; of a map that does not fit, its own first items."""
    part: dict[str, Any] = {}
    for name, value in values.items():
        size = _size(value) + len(name.encode(errors="replace")) + 8
        if size > most:
            if isinstance(value, dict) and (inner := _first_items(value, most - len(name) - 16)):
                part[name] = inner
                most -= _size(inner) + len(name) + 16
            continue
        part[name] = value
        most -= size
    return part


def _first(values: list[Any], most: int) -> list[Any]:
    part: list[Any] = []
    for value in values:
        most -= len(message.pack_reply({"": value.model_dump() if hasattr(value, "model_dump") else value}))
        if most < 0:
            break
        part.append(value)
    return part


def _short_texts(values: dict[str, str] | None, most: int) -> dict[str, str] | None:
    return values and {name: _short(text, max(200, most // max(1, len(values)))) for name, text in values.items()}


def _short(text: str, most: int) -> str:
    most = max(most, 200)
    return text if len(text.encode(errors="replace")) <= most else text.encode(errors="replace")[: most - 3].decode(errors="ignore") + "..."


def names(jobs: list[str], most: int = 10) -> str:
    """Name the jobs for a message: all of a few, else the first ones and the number of the rest."""
    return ", ".join(jobs[:most]) + (f" and {len(jobs) - most} more" if len(jobs) > most else "")
