"""What other installed packages add: entry points by group, listed by name without importing anything.

Groups: ``offrl.scalers`` (`offrld.preprocess.scalers`).
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from offrl.errors import InvalidInput, Unknown, nearest


@functools.cache
def _points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    # Reading the metadata of all distributions takes 20 ms, and what is installed does not change while a worker runs.
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages register in a group, sorted."""
    return tuple(sorted(_points(group)))


def load(group: str, name: str, needs: tuple[str, ...] = ()) -> Any:
    """Import what a package registered under ``name``; ``needs``: the attributes that it must have. Raises `Unknown`, `InvalidInput`."""
    points = _points(group)
    if name not in points:
        raise Unknown(f"no installed package gives {name!r} in {group!r}", hint=nearest(name, list(points)))
    point = points[name]
    try:
        found = point.load()
    except Exception as error:  # whatever a package's import raises, its user wants to know which package it was
        raise InvalidInput(f"{point.value} of {group!r} cannot be imported: {type(error).__name__}: {error}") from error
    missing = [each for each in needs if not callable(getattr(found, each, None))]
    if missing:
        raise InvalidInput(f"{point.value} of {group!r} has no function {', '.join(missing)}", hint=f"it needs {', '.join(needs)}")
    return found
