"""The context of a loss call: whether networks train, their random numbers, and the new values of their buffers.

The parameters carry it under the key `CONTEXT`, so that a network needs no further argument. Acting and export pass no context; networks
then run in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from offrld.nets import random

CONTEXT = "context"  # cannot be a parameter's name: those start with a network's name and a dot


class Context:
    """The context of one evaluation of a loss, for its networks.

    Args:
        key: key of the random numbers, 0-d int64: one per seed, update and step.
        training: whether dropout is active and batch norm uses the batch's statistics. It enters the random numbers, so that online
            and target parameters with the same key draw different ones.
        updates: receives the new values of buffers by name; the engine writes them into the state after the step.
    """

    def __init__(self, key: Tensor, training: bool, updates: dict[str, Tensor] | None = None) -> None:
        self.key = key
        self.training = training
        self.updates: dict[str, Tensor] = {} if updates is None else updates
        self._calls: dict[str, int] = {}
        self._words: tuple[Tensor, Tensor] | None = None

    def uniform(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw random numbers in [0, 1) with the dtype and device of ``like``; each call draws new ones, even for the same name."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        if self._words is None:
            self._words = random.words(self.key)
        return random.uniform(self._words, random.stream(name, 2 * call + self.training), shape, like)


def context_of(params: Mapping[str, Any]) -> Context | None:
    """Return the context that ``params`` carry; None when acting or exporting."""
    return params.get(CONTEXT)


def remember(params: Mapping[str, Any], **values: Tensor) -> None:
    """Store tensors in the algorithm's carry for the next update. Do nothing if the loss is only evaluated (validation)."""
    context = context_of(params)
    if context is not None:
        # "memory" is the earlier name of the carry; checkpoints keep it.
        context.updates.update({f"memory/{name}": value.detach() for name, value in values.items()})


def is_buffer(name: str) -> bool:
    """Return whether a parameter is a buffer: never differentiated, but updated through `Context.updates` (batch norm's statistics)."""
    return name.rpartition(".")[2].startswith("running_")
