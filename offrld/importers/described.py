"""A record of what a foreign format cannot hold. An export writes it beside the content, and an import reads it.

The record lists the schema's fields, their keys in the format, the action space and the environment. Other readers of the format ignore it.
The file may have changed since the export, so an import uses only the parts of the record that still fit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store import EpisodeStore, Field, Schema
from offrl_store.errors import OffrlError
from offrld.importers.columns import Column
from offrld.importers.episodic import Recording
from offrld.importers.reading import parse_json, read_json
from offrld.importers.spaces import ActionSpace, Choices, box, kind_of

#: The attribute of an HDF5 file, and the stem of a file in a folder, that hold the record.
NAME = "offrl"


def record(store: EpisodeStore, keys: dict[str, str]) -> dict[str, Any]:
    """Make the record of a store. ``keys``: column of the schema (``observation.NAME``, ``extra.NAME``, ...) -> its key in the format."""
    metadata = store.metadata
    kind = kind_of(metadata)
    return {
        "columns": store.schema.to_json()["columns"],
        "keys": keys,
        "env_id": metadata.get("env_id"),
        "bounds": metadata.get("bounds"),
        **({"action_kind": kind} if kind else {}),
    }


class Described:
    """The record in one of our exports.

    Attributes:
        env_id: the environment, or None.
        space: the declared action space, or None.
        single: whether the observation is one field without a name.
        observation, extra: key in the format -> ``(name, field)``.
    """

    def __init__(self, schema: Schema, keys: dict[str, str], env_id: str | None, bounds: str | None, kind: str = "") -> None:
        self.env_id, self.single = env_id, isinstance(schema.observation, Field)
        named = {"": schema.observation} if self.single else schema.observation
        self.observation = {keys[f"observation.{name}" if name else "observation"]: (name, each) for name, each in named.items()}
        self.extra = {keys[key]: (name, each) for name, each in schema.extra.items() if (key := f"extra.{name}") in keys}
        self.space = _space(schema.action, env_id, bounds, kind)

    @classmethod
    def read(cls, source: Any) -> Described | None:
        """Read the record from JSON text or from a file (a Path). Returns None if it is missing or invalid."""
        try:
            value = read_json(source, source.name) if isinstance(source, Path) else parse_json(source, NAME)
            keys, env_id, bounds = value["keys"], value.get("env_id"), value.get("bounds")
            return cls(
                Schema.from_json({"columns": value["columns"], "metadata": {}}),
                {str(key): str(each) for key, each in keys.items()},
                env_id if isinstance(env_id, str) else None,
                bounds if isinstance(bounds, str) else None,
                kind_of({"action_space": {"kind": value.get("action_kind")}}),
            )
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError, OffrlError):
            return None

    def fields(self, columns: dict[str, Column]) -> Column | dict[str, Column] | None:
        """Restore the original fields from observation columns by key of the format; None if they differ from those of the record."""
        fields = _renamed(columns, self.observation)
        if fields is None:
            return None
        return next(iter(fields.values())) if self.single else fields

    def extras(self, columns: dict[str, Column]) -> dict[str, Column]:
        """Give extra columns by key of the format their original names; a column that the record lacks keeps its key."""
        recorded = {key: column for key, column in columns.items() if key in self.extra}
        fields = _renamed(recorded, {key: self.extra[key] for key in recorded})
        return columns if fields is None else {**{key: column for key, column in columns.items() if key not in recorded}, **fields}


def restored(described: Described | None, recording: Recording, observations: dict[str, Column], extra: dict[str, Column]) -> Recording:
    """Return the recording with the original observations and extras. Both column arguments use the keys of the format."""
    if described is None:
        return recording
    fields = described.fields(observations)
    return recording if fields is None else replace(recording, observations=fields, extra=described.extras(extra))


def _renamed(columns: dict[str, Column], fields: dict[str, tuple[str, Field]]) -> dict[str, Column] | None:
    if columns.keys() != fields.keys():
        return None
    renamed: dict[str, Column] = {}
    for key, (name, field) in fields.items():  # in the order of the record, which is the schema's
        column = columns[key]
        if column.dtype != field.dtype or math.prod(column.shape) != math.prod(field.shape):
            return None
        renamed[name] = column if column.shape == field.shape else Column(column.file, column.key, Shaped(column.data, field.shape))
    return renamed


class Shaped:
    """Rows reshaped to another shape with the same number of values, as the data of a column."""

    def __init__(self, data: Any, shape: tuple[int, ...]) -> None:
        self._data = data
        self.shape, self.dtype = (data.shape[0], *shape), data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = np.asarray(self._data[rows])
        return block.reshape(len(block), *self.shape[1:])


def _space(action: Any, env_id: str | None, bounds: str | None, kind: str) -> ActionSpace | None:
    origin = bounds if bounds == "declared" or (env_id and bounds == f"env:{env_id}") else None
    if bounds == "inferred" or not isinstance(action, Field):
        return None
    if action.discrete:
        return Choices(origin or "declared", action.n)
    low, high = (no if bound is None else bound for bound, no in ((action.low, -np.inf), (action.high, np.inf)))
    return box(low, high, origin or "declared", kind=kind)
