"""Image layouts: turn a source's images from channels last to channels first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from offrl_store import Field, Schema
from offrld.fits import TURN, last_channels
from offrld.importers.source import Source, SourceEpisode


def turned(source: Source, channels: str | None) -> Source:
    """Move the channels of a source's images to the front if ``channels`` is "last".

    Messages name the fields that are or could be turned.
    """
    schema = source.schema
    single = isinstance(schema.observation, Field)
    fields = {"observation": schema.observation} if single else dict(schema.observation)
    if channels != "last":
        if channels is None:
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
    turned_fields = {
        name: Field(field.dtype, turned[name], *(_turn_bound(bound, field) for bound in (field.low, field.high)))
        if name in turned
        else field
        for name, field in fields.items()
    }
    source.schema = Schema(
        turned_fields["observation"] if single else turned_fields, schema.action, schema.reward, schema.extra, schema.metadata
    )
    source.episodes = _turn(source.episodes, set(turned), single)
    return source


def _turned_shape(field: Field) -> tuple[int, ...] | None:
    """Return the shape with the channels first; None if the field is not an image or already has them first."""
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
    """Return a line for each observation field that looks like images with channels last, which the networks do not accept."""
    lines = []
    for name, field in fields.items():
        if last_channels(field.shape):
            lines.append(f"{name!r} looks like images of {field.shape}, channels last: networks take uint8 images [C, H, W]; {TURN}")
    return lines
