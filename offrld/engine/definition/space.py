"""The observation and action spaces of a dataset, in the form that the networks need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import Schema
from offrld.fits import check_action, check_action_bounds, check_observations, observation_fields

View = tuple[int, ...] | dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Space:
    """Spaces of a dataset.

    Attributes:
        observation: field name -> (dtype, shape), in the schema's order; a single field is called ``observation``.
        frame_stack: number of observations that the networks see at once, along the first axis of each field, oldest first.
        discrete: whether actions are the numbers 0..n-1.
        action_size: dimensions of a continuous action, or the number ``n`` of discrete actions.
        low, high: bounds of continuous actions in the environment's units, float64 ``[A]``; None if actions are discrete.
        whole: whether a continuous action is a vector of integers; the policy then rounds.
        source: source of the bounds (or ``n``): ``env:ID``, ``declared``, or ``inferred`` from the data.
    """

    observation: dict[str, tuple[str, tuple[int, ...]]]
    discrete: bool
    action_size: int
    low: np.ndarray | None
    high: np.ndarray | None
    source: str
    frame_stack: int = 1
    whole: bool = False

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Field name -> (dtype, shape) of a policy's inputs, with frames stacked."""
        return {name: (dtype, _stacked(shape, self.frame_stack)) for name, (dtype, shape) in self.observation.items()}

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds (low, high) of continuous actions. Raises `ValueError` for discrete ones."""
        if self.low is None or self.high is None:
            raise ValueError("discrete actions have no bounds")
        return self.low, self.high

    @property
    def view(self) -> View:
        """Shape of an observation as losses and networks see it.

        ``(D,)`` if all fields are vectors, which are concatenated; ``(C, H, W)`` for a single image; otherwise a dict of the fields'
        shapes.
        """
        shapes = {name: shape for name, (_, shape) in self.inputs.items()}
        if any(is_image(shape) for shape in shapes.values()):
            return shapes if len(shapes) > 1 else next(iter(shapes.values()))
        return (sum(math.prod(shape) for shape in shapes.values()),)

    @property
    def observation_size(self) -> int:
        """Length of the concatenated vector. Raises `InvalidInput` if the observation has images."""
        view = self.view
        if isinstance(view, dict) or len(view) != 1:
            raise InvalidInput(
                f"observations have the shape {view}, but this needs vectors", hint="choose an algorithm that supports images"
            )
        return view[0]

    def as_json(self) -> dict[str, Any]:
        """Return the form that run folders and policy files store."""
        return {
            "observation": {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in self.observation.items()},
            "discrete": self.discrete,
            "n": self.action_size if self.discrete else None,
            "low": None if self.low is None else [float(x) for x in self.low],
            "high": None if self.high is None else [float(x) for x in self.high],
            "source": self.source,
            "frame_stack": self.frame_stack,
            **({"whole": True} if self.whole else {}),  # only if true: checkpoints of older versions lack the key
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Space:
        """Rebuild a space from the result of `as_json`."""
        low, high = (None if saved[name] is None else np.asarray(saved[name], np.float64) for name in ("low", "high"))
        return cls(
            observation={name: (field["dtype"], tuple(field["shape"])) for name, field in saved["observation"].items()},
            discrete=bool(saved["discrete"]),
            action_size=int(saved["n"]) if saved["discrete"] else len(saved["low"]),
            low=low,
            high=high,
            source=saved["source"],
            frame_stack=int(saved["frame_stack"]),
            whole=bool(saved.get("whole", False)),
        )


def is_image(shape: tuple[int, ...]) -> bool:
    """Return whether a field of this shape is an image, channel first."""
    return len(shape) == 3


def space_of(
    schema: Schema,
    metadata: dict[str, Any],
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    source: str = "declared",
    frame_stack: int = 1,
    infer: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None,
) -> Space:
    """Derive the spaces of a store.

    Args:
        bounds, source: bounds of continuous actions and their source; they override the store's declaration.
        infer: computes the actions' range, for dimensions without bounds. None: such actions are refused.

    Raises:
        InvalidInput: the store's actions or bounds are unsuitable.
    """
    check_observations(schema)
    check_action(schema)
    fields = observation_fields(schema)
    observation = {name: (str(np.dtype(field.dtype)), tuple(field.shape)) for name, field in fields.items()}
    action = schema.action
    if action.discrete:
        return Space(observation, True, int(action.n), None, None, metadata.get("bounds", "declared"), frame_stack)
    if bounds is None:
        source = metadata.get("bounds", "declared")
    low, high = bounds if bounds is not None else (action.low, action.high)
    low, high = (
        np.broadcast_to(np.asarray(ends if bound is None else bound, np.float64), action.shape).copy()
        for bound, ends in ((low, -np.inf), (high, np.inf))
    )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        if infer is None:
            raise InvalidInput("the actions have no bounds", hint="set action_low and action_high")
        least, most = infer()
        low, high, source = np.where(np.isfinite(low), low, least), np.where(np.isfinite(high), high, most), "inferred"
    if (low > high).any():
        raise InvalidInput(f"action bounds: low {low.tolist()} is above high {high.tolist()}", hint="swap action_low and action_high")
    whole = action.dtype.kind in "iu"
    check_action_bounds(low, high, whole=whole)
    return Space(observation, False, action.shape[0], low, high, source, frame_stack, whole)


def _stacked(shape: tuple[int, ...], k: int) -> tuple[int, ...]:
    return shape if k == 1 else (k * (shape[0] if shape else 1), *shape[1:])
