"""What other installed packages add: entry points by group, listed by name without importing anything.

Groups: ``offrl.algorithms`` (`offrld.algos`), ``offrl.encoders`` (`offrld.nets.encoders.plugins`), ``offrl.q_functions``
(`offrld.nets.q_plugins`) and ``offrl.scalers`` (`offrld.preprocess.scalers`). docs/extending.md tells how a package is written.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint
from typing import Any

from offrl.errors import InvalidInput, Unknown, nearest


def names(group: str, built_in: Collection[str] = ()) -> tuple[str, ...]:
    """The names that installed packages register in a group, sorted; none replaces a ``built_in`` one."""
    return tuple(name for name in _points(group, tuple(sys.path)) if name not in built_in)


def load(group: str, name: str, needs: tuple[str, ...] = ()) -> Any:
    """Import what a package registered under ``name``; ``needs``: the functions that it must have.

    Raises:
        Unknown: no package registers it; the hint is the nearest name.
        InvalidInput: several packages claim the name, the package cannot be imported, or it lacks a function.
    """
    points = _points(group, tuple(sys.path))
    if name not in points:
        raise Unknown(f"no installed package gives {name!r} in {group!r}", hint=nearest(name, list(points)))
    origins = sorted({point.value for point in points[name]})
    if len(origins) > 1:
        raise InvalidInput(f"{name!r} of {group!r} is claimed by {' and by '.join(origins)}", hint="uninstall one of these packages")
    point = points[name][0]
    try:
        found = point.load()
    except Exception as error:  # whatever a package's import raises, its user wants to know which package it was
        said = str(error).partition("\n")[0]
        reason = f"{name!r} of {group!r} cannot be loaded from {point.value}: {type(error).__name__}: {said}"
        raise InvalidInput(reason, hint="repair or uninstall its package") from error
    missing = [each for each in needs if not callable(getattr(found, each, None))]
    if missing:
        reason = f"{name!r} of {group!r} ({point.value}) has no function {', '.join(missing)}"
        raise InvalidInput(reason, hint=f"it needs {', '.join(needs)}")
    return found


@functools.lru_cache(maxsize=16)
def _points(group: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """By name, sorted. Read once for each ``sys.path``: it takes 20 ms, and every encoder of every algorithm asks."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(importlib.metadata.entry_points(group=group), key=lambda point: point.name):
        found[point.name] = (*found.get(point.name, ()), point)
    return found
