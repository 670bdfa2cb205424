"""Options that every format takes: the layout of images, and the action space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offrl_store import Field, Schema
from offrl_store.errors import InvalidInput
from offrld.fits import TURN, last_channels
from offrld.importers.source import Source, SourceEpisode
from offrld.importers.spaces import ActionSpace, box, choices

OPTIONS = {
    "channels": "last: turn images [H, W, C] into [C, H, W], and grey ones [H, W] into [1, H, W]; first: leave them",
    "action_low": "least value of the actions, one number or a list with one for each dimension",
    "action_high": "largest value of the actions, likewise",
    "action_n": "number of discrete actions",
}
LAYOUTS = ("first", "last")


@dataclass(frozen=True)
class CommonOptions:
    """What the user says of a source, whatever its format; None: nothing. Raises `InvalidInput` for a value that cannot be."""

    channels: str | None = None
    action_low: Any = None
    action_high: Any = None
    action_n: Any = None

    def __post_init__(self) -> None:
        if self.channels not in (None, *LAYOUTS):
            raise InvalidInput(f"channels is {self.channels!r:.60}", hint="give last (images [H, W, C]) or first ([C, H, W])")
        for name in ("action_low", "action_high"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        n = self.action_n
        if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
            raise InvalidInput(f"action_n is {n!r:.60}", hint="give the number of discrete actions, a whole number from 1")
        if n is not None and not (self.action_low is None and self.action_high is None):
            raise InvalidInput("action_n and the bounds of continuous actions are both given", hint="keep action_n, or the bounds")

    def space(self, known: ActionSpace | None, file: str) -> ActionSpace | None:
        """The action space as the options state it; what they leave out is as ``known`` has it."""
        if self.action_n is not None:
            return replace(choices(int(self.action_n), 0, "declared", file), owner="the options")
        if self.action_low is None and self.action_high is None:
            return known
        bounds = [
            option if option is not None else infinite if known is None or known.discrete else theirs
            for option, infinite, theirs in (
                (self.action_low, np.array(-np.inf), known and known.low),
                (self.action_high, np.array(np.inf), known and known.high),
            )
        ]
        space = box(*bounds, "declared", "the options")
        return space and replace(space, owner="the options")

    def turned(self, source: Source) -> Source:
        """The source with its images in the layout that networks take; says in its messages what it turns, or could turn."""
        schema = source.schema
        single = isinstance(schema.observation, Field)
        fields = {"observation": schema.observation} if single else dict(schema.observation)
        if self.channels != "last":
            if self.channels is None:
                source.messages += notes(fields)
            return source
        shapes = {name: _turned_shape(field) for name, field in fields.items()}
        turned = {name: shape for name, shape in shapes.items() if shape is not None}
        if not turned:
            described = ", ".join(f"{name} {field.dtype.name} {list(field.shape)}" for name, field in fields.items())
            source.messages.append(f"channels=last turns nothing: no observation has its channels last ({described})")
            return source
        for name, shape in turned.items():
            source.messages.append(f"{name!r} is turned to channels first: {list(fields[name].shape)} to {list(shape)}")
        made = {
            name: Field(field.dtype, turned[name], *(_turn_bound(bound, field) for bound in (field.low, field.high)))
            if name in turned
            else field
            for name, field in fields.items()
        }
        source.schema = Schema(made["observation"] if single else made, schema.action, schema.reward, schema.extra, schema.metadata)
        source.episodes = _turn(source.episodes, set(turned), single)
        return source


def _numbers(name: str, value: Any) -> np.ndarray:
    """A number or a list of them as float64 ``[]`` or ``[A]``."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.ndim > 1 or not array.size or np.isnan(array).any():
            raise ValueError
    except ValueError:
        hint = f"give a number, or a list with one for each dimension: {name}=[-1.0, 0.5]"
        raise InvalidInput(f"{name} is {value!r:.60}", hint=hint) from None
    return array.astype(np.float64)


def _turned_shape(field: Field) -> tuple[int, ...] | None:
    """The shape with the channels first; None where the field is no image, or has them first."""
    shape = field.shape
    if len(shape) == 3 and shape[2] < min(shape[:2]):
        return (shape[2], *shape[:2])
    return (1, *shape) if len(shape) == 2 and field.dtype == np.uint8 else None


def _turn_bound(bound: Any, field: Field) -> Any:
    if bound is None:
        return None
    bound = np.asarray(bound)
    return np.moveaxis(bound, -1, 0) if bound.ndim == 3 else bound[None]


def _turn_rows(rows: np.ndarray) -> np.ndarray:
    return rows[:, None] if rows.ndim == 3 else np.ascontiguousarray(np.moveaxis(rows, -1, 1))


def _turn(episodes: Iterator[SourceEpisode], names: set[str], single: bool) -> Iterator[SourceEpisode]:
    for episode in episodes:
        seen = episode.observation
        yield replace(
            episode,
            observation=_turn_rows(seen) if single else {key: _turn_rows(each) if key in names else each for key, each in seen.items()},
        )


def notes(fields: Mapping[str, Field]) -> list[str]:
    """A line for each observation field that looks like images that networks do not take as they are."""
    lines = []
    for name, field in fields.items():
        if last_channels(field.shape):
            lines.append(f"{name!r} looks like images of {field.shape}, channels last: networks take uint8 images [C, H, W]; {TURN}")
    return lines
