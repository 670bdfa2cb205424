"""The types of Q functions: the built-in ones, and the ones that packages add through the entry-point group ``offrl.q_functions``.

An entry point names an object (a module will do) that defines how M numbers, the output of one linear layer on the encoder's features,
represent a value. They must shift and scale as returns do, because a Bellman target is r + gamma times each: quantiles, say, or
expectiles::

    size(options) -> int                             # M
    mean(numbers [..., M], options) -> [...]         # the expected value, which chooses actions and ensemble members
    errors(numbers [..., M], target [..., M], options) -> [...]   # the target broadcasts against the axes before

No branch on a tensor's value. ``options`` is the table ``q_function.options``, which ``size`` checks. Listing reads the names of entry
points; a package is imported only when its type is used.
"""

from __future__ import annotations

from typing import Any

from offrl.errors import InvalidInput, Unknown, nearest
from offrld import plugins as packages

GROUP = "offrl.q_functions"
BUILT_IN = ("mean", "qr", "iqn", "fqf")


def types() -> tuple[str, ...]:
    """List every type: the built-in ones, then those of installed packages, which cannot replace a built-in one."""
    return (*BUILT_IN, *plugins())


def plugins() -> tuple[str, ...]:
    """The types that installed packages add."""
    return packages.names(GROUP, BUILT_IN)


def load(name: str) -> Any:
    """The object behind a plugin's type; raises as `offrld.plugins.load`."""
    if name not in plugins():
        raise Unknown(f"unknown type {name!r} of Q functions", hint=nearest(name, types()))
    return packages.load(GROUP, name, ("size", "mean", "errors"))


def size_of(name: str, options: Any) -> int:
    """The count of numbers that represent a value of a plugin's type. Raises `InvalidInput` unless it is a whole number above 0."""
    size = load(name).size(options)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InvalidInput(f"Q function {name!r} gives size {size!r}", hint="its package must give a whole number above 0")
    return size
