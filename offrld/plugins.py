"""Plug-ins of other installed packages: entry points by group, listed by name without importing anything.

Groups: ``offrl.algorithms`` (`offrld.algos`), ``offrl.encoders`` (`offrld.nets.encoders.plugins`), ``offrl.q_functions``
(`offrld.nets.q_plugins`) and ``offrl.scalers`` (`offrld.preprocess.scalers`). docs/extending.md shows how to write a package.
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
    """Return the sorted names that installed packages register in a group, without those of ``built_in``, which none can replace."""
    return tuple(name for name in _points(group, tuple(sys.path)) if name not in built_in)


def load(group: str, name: str, needs: tuple[str, ...] = ()) -> Any:
    """Import what a package registered under ``name``.

    Args:
        needs: names of the functions that it must have.

    Raises:
        Unknown: no package registers it; the hint suggests the nearest name.
        InvalidInput: several packages claim the name, the package cannot be imported, or it lacks a function.
    """
    points = _points(group, tuple(sys.path))
    if name not in points:
        raise Unknown(f"no installed package registers {name!r} in {group!r}", hint=nearest(name, list(points)))
    origins = sorted({point.value for point in points[name]})
    if len(origins) > 1:
        raise InvalidInput(f"{name!r} of {group!r} is claimed by {' and by '.join(origins)}", hint="uninstall one of these packages")
    point = points[name][0]
    try:
        plugin = point.load()
    except Exception as error:  # an import may raise any error: name the package
        text = str(error).partition("\n")[0]
        reason = f"{name!r} of {group!r} cannot be loaded from {point.value}: {type(error).__name__}: {text}"
        raise InvalidInput(reason, hint="repair or uninstall its package") from error
    missing = [function for function in needs if not callable(getattr(plugin, function, None))]
    if missing:
        reason = f"{name!r} of {group!r} ({point.value}) has no function {', '.join(missing)}"
        raise InvalidInput(reason, hint=f"it needs {', '.join(needs)}")
    return plugin


@functools.lru_cache(maxsize=16)
def _points(group: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a group by sorted name.

    They are read once for each ``sys.path``: reading takes 20 ms, and every encoder of every algorithm needs them.
    """
    points: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(importlib.metadata.entry_points(group=group), key=lambda point: point.name):
        points[point.name] = (*points.get(point.name, ()), point)
    return points
