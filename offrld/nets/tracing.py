"""`torch.compile` for losses, with facts about the networks that its tracer cannot infer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from offrld.nets import random

F = TypeVar("F", bound=Callable[..., Any])


def one_graph(function: F, **options: Any) -> F:
    """Compile ``function`` as one graph of fixed shapes, without graph breaks; ``options`` are `torch.compile`'s."""
    # Here rather than next to `stream`, because the call loads the compiler, which would add 1.5 s to every import of the networks.
    torch.compiler.assume_constant_result(random.stream)  # Dynamo cannot trace zlib; name and call are constants of the graph
    return cast(F, torch.compile(function, fullgraph=True, dynamic=False, **options))
