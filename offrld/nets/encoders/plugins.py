"""The types of encoders: the built-in ones, and those that packages add through the entry-point group ``offrl.encoders``.

An entry point names an object with ``build(name, view, encoder, action_size)`` that returns a network (see `registry.Network`). Its
own settings are in ``encoder.options``, which it validates itself. Listing reads only the names of entry points; a package is imported
only when its type is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offrl.errors import Unknown, nearest
from offrld import plugins as packages

GROUP = "offrl.encoders"
BUILT_IN = ("default", "vector", "dense", "pixel", "impala", "simba")


def types() -> tuple[str, ...]:
    """List every type: the built-in ones, then those of installed packages, which cannot replace a built-in one."""
    return (*BUILT_IN, *plugins())


def plugins() -> tuple[str, ...]:
    """List the types that installed packages add."""
    return packages.names(GROUP, BUILT_IN)


def all_but(*left_out: str) -> Callable[[], tuple[str, ...]]:
    """Return a function that lists every type but these, for a setting that these types ignore."""
    return lambda: tuple(name for name in types() if name not in left_out)


def load(name: str) -> Any:
    """Load the object that defines a plugin's type; raise as `offrld.plugins.load` does."""
    if name not in plugins():
        raise Unknown(f"unknown encoder type {name!r}", hint=nearest(name, types()))
    return packages.load(GROUP, name, ("build",))
