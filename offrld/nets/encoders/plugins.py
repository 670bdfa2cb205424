"""The types of encoders: the built-in ones, and those that installed packages add through the entry-point group ``offrl.encoders``.

An entry point names an object with ``build(name, view, encoder, action_size)`` that returns a network (see `registry.Network`); what
it takes beyond the common settings stands in ``encoder.options``, which it checks itself. Listing reads the names of entry points;
a package is imported only when its type is asked for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from offrl.errors import InvalidInput, Unknown, nearest

GROUP = "offrl.encoders"
BUILT_IN = ("default", "vector", "dense", "pixel", "simba")


def types() -> tuple[str, ...]:
    """Every type of encoder: the built-in ones, then those of installed packages (a package cannot replace a built-in one)."""
    return (*BUILT_IN, *plugins())


def plugins() -> tuple[str, ...]:
    """The types that installed packages add."""
    return _names(tuple(sys.path))


def all_but(*left_out: str) -> Callable[[], tuple[str, ...]]:
    """A function that gives every type but those, for settings which these do not read."""
    return lambda: tuple(name for name in types() if name not in left_out)


def load(name: str) -> Any:
    """The object behind a plugin's type.

    Raises:
        Unknown: there is no such type; the hint is the nearest one.
        InvalidInput: several packages claim the name, or its package cannot be imported.
    """
    found = metadata.entry_points(group=GROUP, name=name)
    if len(found) == 0:
        raise Unknown(f"unknown encoder type {name!r}", hint=nearest(name, types()))
    origins = sorted({point.value for point in found})
    if len(origins) > 1:
        raise InvalidInput(f"encoder type {name!r} is claimed by {' and by '.join(origins)}", hint="uninstall one of these packages")
    point = next(iter(found))
    try:
        plugin = point.load()
    except Exception as error:  # whatever a package does when it is imported
        said = str(error).partition("\n")[0]
        reason = f"encoder type {name!r} cannot be loaded from {point.value}: {type(error).__name__}: {said}"
        raise InvalidInput(reason, hint="repair or uninstall its package") from error
    if not callable(getattr(plugin, "build", None)):
        reason = f"encoder type {name!r} has no build function in {point.value}"
        raise InvalidInput(reason, hint="it needs build(name, view, encoder, action_size)")
    return plugin


@functools.lru_cache(maxsize=4)
def _names(path: tuple[str, ...]) -> tuple[str, ...]:
    """Read once for each ``sys.path``: it takes milliseconds, and every encoder of every algorithm asks."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=GROUP)} - set(BUILT_IN)))
