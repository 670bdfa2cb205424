"""Check from schema and settings alone whether an algorithm can learn a dataset. Needs no torch, so that the daemon can check a submission.

The engine calls the same functions when it makes a learner, so a submission is refused for the same reasons as in a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import Field, Schema

MOST_CHOICES = 1_000_000  # most discrete actions: a network has an output for each
WHOLE = 1 << 24  # beyond this float32 does not hold every whole number
TURN = "--option channels=last moves the channels first (Python: options={'channels': 'last'})"
STEPS = 256  # number of values that float32 must distinguish between an action's bounds
_SMALLER = ((32, 5, 2, 64, 3, 2, 64, 3, 1), (16, 4, 2, 32, 3, 1), (16, 3, 1, 32, 3, 1), (16, 3, 1), (16, 2, 1), (16, 1, 1))


def check_fits(schema: Schema, settings: Mapping[str, Any], *, algorithm: str, actions: str, whose: str = "the dataset") -> None:
    """Raise `InvalidInput` if an algorithm cannot learn a dataset of this schema.

    Args:
        settings: the value of every setting by dotted name, after defaults, preset and the user's values are merged.
        algorithm, actions: its name, and the kind of actions that it learns: ``continuous``, ``discrete`` or ``both``.
        whose: what the schema belongs to, for messages; the environment's id if the schema describes its steps.
    """
    check_observations(schema)
    check_action(schema)
    check_kind(algorithm, actions, discrete=schema.action.discrete, whose=whose)
    check_images(schema, settings)


def observation_fields(schema: Schema) -> dict[str, Field]:
    """Return the observation's fields by name; a single field without a name is called ``observation``."""
    return dict(schema.observation) if isinstance(schema.observation, dict) else {"observation": schema.observation}


def last_channels(shape: tuple[int, ...]) -> bool:
    """Return whether a row of this shape can only be an image with its channels last."""
    return len(shape) == 3 and shape[2] in (1, 2, 3, 4) and min(shape[:2]) > 4


def check_observations(schema: Schema) -> None:
    """Raise `InvalidInput` for an observation that no network accepts."""
    for name, field in observation_fields(schema).items():
        if last_channels(field.shape):
            raise InvalidInput(
                f"observation field {name!r} has shape {tuple(field.shape)}, images with their channels last: networks take [C, H, W]",
                hint=f"import it again: {TURN}",
            )
        if len(field.shape) > 1 and not (len(field.shape) == 3 and field.dtype == np.uint8):
            raise InvalidInput(
                f"observation field {name!r} has shape {tuple(field.shape)} and dtype {field.dtype.name}: networks take vectors, or "
                "images of uint8 with the channels first",
                hint=f"images [H, W] or [H, W, C]: import them again, {TURN}; anything else: convert it to uint8 [C, H, W] or to a vector",
            )


def check_kind(algorithm: str, actions: str, *, discrete: bool, whose: str = "the dataset") -> None:
    """Raise `InvalidInput` if the algorithm does not learn this kind of actions; ``whose`` names their owner in the message."""
    kind = "discrete" if discrete else "continuous"
    if actions not in ("both", kind):
        raise InvalidInput(
            f"algorithm {algorithm!r} learns {actions} actions, {whose} has {kind} ones", hint=f"`offrl algos` lists the {kind} algorithms"
        )


def check_action(schema: Schema) -> None:
    """Raise `InvalidInput` for actions that no policy can return: an action is one choice of n, or a vector of float32 numbers."""
    if isinstance(schema.action, dict):
        names = ", ".join(schema.action)
        raise InvalidInput(f"the dataset has several action fields ({names}); algorithms take one", hint="join them into one")
    field: Field = schema.action
    whole, shape = field.dtype.kind in "iub", tuple(field.shape)
    if field.discrete:
        if field.n > MOST_CHOICES:
            raise InvalidInput(
                f"the field 'action' has {field.n} choices; a network has an output for each, at most {MOST_CHOICES}",
                hint="store it as a vector of numbers",
            )
        return
    kind = (schema.metadata.get("action_space") or {}).get("kind") if isinstance(schema.metadata.get("action_space"), Mapping) else None
    if shape == () and whole:
        low, high = ("?" if bound is None else bound for bound in (field.low, field.high))
        raise InvalidInput(
            f"the field 'action' has whole numbers from {low} to {high}; discrete actions are numbered from 0 and need a declared highest",
            hint="subtract the lowest before the import, and declare low=0 and high=n-1",
        )
    if len(shape) != 1:
        raise InvalidInput(f"actions have shape {shape}; continuous actions are vectors", hint="flatten them before the import")
    if field.dtype.kind == "b" or kind in ("MultiDiscrete", "MultiBinary"):
        raise InvalidInput(
            f"the field 'action' holds {shape[0]} choices at once ({kind or 'bool'}); algorithms learn one choice "
            "(Discrete) or a vector of numbers (Box)",
            hint="number the combinations from 0, and store the number as one choice",
        )
    if field.low is not None and field.high is not None:
        check_action_bounds(field.low, field.high, whole=whole)


def check_action_bounds(low: Any, high: Any, *, whole: bool) -> None:
    """Raise `InvalidInput` if float32, the type of a policy's actions, cannot distinguish the actions between these bounds."""
    lows, highs = (np.atleast_1d(np.asarray(bound, np.float64)) for bound in (low, high))
    for i, (least, most) in enumerate(zip(lows, highs, strict=True)):
        largest = max(abs(least), abs(most))
        if not np.isfinite(largest) or least == most:
            continue
        if largest > WHOLE if whole else (most - least) / STEPS < np.spacing(np.float32(largest)):
            raise InvalidInput(
                f"action dimension {i} lies between {least:.17g} and {most:.17g}: float32, the type of a policy's actions, "
                "cannot distinguish such values",
                hint="subtract the offset from the action before the import",
            )


# --- Images ---
def check_images(schema: Schema, settings: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` if an image is too small for the filters of an encoder; the hint suggests filters that fit."""
    fields = observation_fields(schema)
    images, several = {name: field.shape for name, field in fields.items() if len(field.shape) == 3}, len(fields) > 1
    for name, filters in settings.items():
        prefix, _, last = name.rpartition(".")
        kind = settings.get(f"{prefix}.type", "default")
        # Beside other fields an image always goes through convolutions: the type then applies to the other fields.
        convolves = kind in ("default", "pixel") or (several and kind in ("vector", "dense", "simba"))
        if last != "filters" or not convolves:
            continue
        for field, (_, height, width) in images.items():
            if problem := too_small(height, width, tuple(filters)):
                raise InvalidInput(f"field {field!r}: {problem}", hint=f"for example --set {name}={fitting(height, width)}")


def too_small(height: int, width: int, filters: tuple[int, ...]) -> str | None:
    """Describe the problem if an image has fewer pixels than a convolution covers, else return None.

    ``filters``: channels, kernel size and stride of each convolution.
    """
    size = [height, width]
    for i, (kernel, stride) in enumerate(zip(filters[1::3], filters[2::3], strict=False)):
        if min(size) < kernel:
            left = f"convolution {i + 1} of size {kernel} gets {size[0]} x {size[1]} pixels"
            return f"an image of {height} x {width} pixels is too small for the filters {list(filters)}: {left}"
        size = [(side - kernel) // stride + 1 for side in size]
    return None


def fitting(height: int, width: int) -> str:
    """Return filters that fit an image, as the text of a setting's value."""
    filters = next(filters for filters in _SMALLER if too_small(height, width, filters) is None)
    return "[" + ",".join(map(str, filters)) + "]"
