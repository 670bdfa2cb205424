"""What a policy sees and does: the observation and action spaces of a dataset, as the networks need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import Schema


@dataclass(frozen=True)
class Space:
    """Spaces of a dataset.

    Attributes:
        observation: field name -> (dtype, shape), in the schema's order; a single field is called ``observation``.
        observation_size: elements of all fields together: the width of the vector that networks take.
        discrete: whether actions are numbers 0..n-1.
        action_size: dimensions of a continuous action, or the number ``n`` of discrete ones.
        low, high: bounds of continuous actions in the environment's units, float64 ``[A]``; None when discrete.
        source: where the bounds (or ``n``) come from: ``env:ID``, ``declared`` or ``inferred`` from the data.
    """

    observation: dict[str, tuple[str, tuple[int, ...]]]
    observation_size: int
    discrete: bool
    action_size: int
    low: np.ndarray | None
    high: np.ndarray | None
    source: str

    @property
    def view(self) -> tuple[int, ...]:
        """What networks see of an observation: the shape without the batch axis."""
        return (self.observation_size,)

    def as_json(self) -> dict[str, Any]:
        """The form kept in run folders and policy files."""
        return {
            "observation": {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.observation.items()},
            "discrete": self.discrete,
            "n": self.action_size if self.discrete else None,
            "low": None if self.low is None else [float(x) for x in self.low],
            "high": None if self.high is None else [float(x) for x in self.high],
            "source": self.source,
        }


def space_of(schema: Schema, metadata: dict[str, Any], bounds: tuple[np.ndarray, np.ndarray] | None, env_id: str | None) -> Space:
    """The spaces of a store; ``bounds`` of the given environment ``env_id`` take precedence over what the store declares."""
    fields = dict(schema.observation) if isinstance(schema.observation, dict) else {"observation": schema.observation}
    for name, field in fields.items():
        if len(field.shape) > 1:
            raise InvalidInput(
                f"observation field {name!r} has shape {tuple(field.shape)}: the networks take vectors, not images",
                hint="convert it to a vector of features before the import",
            )
    if isinstance(schema.action, dict):
        names = ", ".join(schema.action)
        raise InvalidInput(f"the dataset has several action fields ({names}); algorithms take one", hint="join them into one")
    observation = {name: (str(np.dtype(field.dtype)), tuple(field.shape)) for name, field in fields.items()}
    size = sum(int(np.prod(shape, dtype=np.int64)) for _, shape in observation.values())
    action = schema.action
    if action.discrete:
        return Space(observation, size, True, int(action.n), None, None, metadata.get("bounds", "declared"))
    if len(action.shape) != 1:
        shape = tuple(action.shape)
        raise InvalidInput(f"actions have shape {shape}; continuous actions are vectors", hint="flatten them before the import")
    source = f"env:{env_id}" if bounds is not None else metadata.get("bounds", "declared")
    low, high = bounds if bounds is not None else (action.low, action.high)
    if low is None or high is None:
        raise InvalidInput("the dataset declares no bounds for its actions", hint="import it again, or give --eval-env")
    low, high = (np.broadcast_to(np.asarray(x, np.float64), action.shape).copy() for x in (low, high))
    return Space(observation, size, False, action.shape[0], low, high, source)
