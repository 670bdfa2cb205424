"""`torch.compile` for losses, with what its tracer cannot find out about the networks by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from offrld.nets import random

F = TypeVar("F", bound=Callable[..., Any])


def one_graph(function: F, **options: Any) -> F:
    """``function`` compiled as one graph of fixed shapes, with no way back to Python inside; ``options`` are `torch.compile`'s."""
    # Said here and not where `stream` stands, because saying it loads the compiler, 1.5 s of every process that imports networks.
    torch.compiler.assume_constant_result(random.stream)  # dynamo cannot look into zlib; name and count are constants of the graph
    return cast(F, torch.compile(function, fullgraph=True, dynamic=False, **options))
