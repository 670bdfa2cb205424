"""The types of Q functions: the built-in ones, and those that packages add through the entry-point group ``offrl.q_functions``.

An entry point names an object (a module will do) that defines how M numbers, the output of one linear layer on the encoder's features,
represent a value. They must shift and scale as returns do, because a Bellman target is r + gamma times each number. Quantiles and
expectiles do so. The object has three functions::

    size(options) -> int                             # M
    mean(numbers [..., M], options) -> [...]         # the expected value, which chooses actions and ensemble members
    errors(numbers [..., M], target [..., M], options) -> [...]   # the target broadcasts over the leading axes

They must not branch on a tensor's value. ``options`` is the table ``q_function.options``; ``size`` validates it. Listing reads only the
names of entry points; a package is imported only when its type is used.
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
    """List the types that installed packages add."""
    return packages.names(GROUP, BUILT_IN)


def load(name: str) -> Any:
    """Load the object that defines a plugin's type; raise as `offrld.plugins.load` does."""
    if name not in plugins():
        raise Unknown(f"unknown Q function type {name!r}", hint=nearest(name, types()))
    return packages.load(GROUP, name, ("size", "mean", "errors"))


def size_of(name: str, options: Any) -> int:
    """Return how many numbers represent a value of a plugin's type. Raise `InvalidInput` unless it is a positive integer."""
    size = load(name).size(options)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InvalidInput(f"Q function {name!r} returns the size {size!r}", hint="its package must return a positive integer")
    return size
