"""Convert the spaces in Minari's metadata to fields of a store, and fields of a store to such spaces."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl_store import EpisodeStore, Field
from offrl_store.errors import InvalidInput
from offrld.importers.columns import Column
from offrld.importers.described import Shaped
from offrld.importers.exporting import action_shape, named_observations, source_attributes
from offrld.importers.source import field_names
from offrld.importers.spaces import MAX_CHOICES, kind_of

PLAIN = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")  # spaces of plain arrays of numbers

#: Metadata that an export computes; everything else in the metadata of a Minari dataset is written back.
COMPUTED = (
    "total_episodes",
    "total_steps",
    "data_format",
    "jpeg_encoding",
    "observation_space",
    "action_space",
    "dataset_id",
    "minari_version",
    "dataset_size",
    "env_spec",
    "eval_env_spec",
)


@dataclass(frozen=True)
class Leaf:
    """A space of plain numbers inside a Dict or Tuple: its key (``outer/inner``), the path to it (names and indices), and the space."""

    key: str
    path: tuple[str | int, ...]
    space: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row. Raises `InvalidInput` if the metadata do not state it."""
        kind = self.space["type"]
        shape: Any = self.space.get("n")  # of MultiBinary
        if kind == "Box":
            shape = self.space.get("shape")
        elif kind == "Discrete":
            shape = ()
        elif kind == "MultiDiscrete":
            shape = np.shape(self.space.get("nvec") or ())
        shape = (shape,) if isinstance(shape, int) else shape
        if not isinstance(shape, (list, tuple)) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InvalidInput(f"metadata.json gives observations/{self.key} no shape", hint="copy the dataset again")
        return tuple(shape)


def leaves(space: dict[str, Any], path: tuple[str | int, ...] = ()) -> list[Leaf]:
    """Return the leaves of a space in its order; a space without parts has the key ""."""
    inner = space.get("subspaces")
    if space.get("type") not in ("Dict", "Tuple"):
        return [Leaf("/".join(str(part) for part in path), path, space)]
    parts = inner.items() if isinstance(inner, dict) else enumerate(inner if isinstance(inner, list) else [])
    return [leaf for part, each in parts for leaf in leaves(each if isinstance(each, dict) else {}, (*path, part))]


class Seen:
    """The leaves of the observations that are read, and the fields that they become.

    Attributes:
        leaves: in the order of the space.
        messages: receives a line for each decision.
    """

    def __init__(self, leaves: list[Leaf], messages: list[str]) -> None:
        self.leaves, self.messages = leaves, messages
        self._single = not leaves[0].path
        self._names = field_names((leaf.key for leaf in leaves), [] if self._single else messages, "observation field")

    def named(self, columns: dict[str, Column]) -> Column | dict[str, Column]:
        """Return columns by key as a single observation, or as fields by name."""
        return columns[""] if self._single else {self._names[key]: column for key, column in columns.items()}


def h5_path(path: tuple[str | int, ...]) -> list[str]:
    """Return the path below ``observations`` at which Minari keeps a leaf."""
    return [f"_index_{part}" if isinstance(part, int) else part for part in path]


def flat_actions(column: Column, messages: list[str]) -> Column:
    """Flatten actions of several dimensions to vectors, because policies return vectors. A message reports it once."""
    if len(column.shape) < 2:
        return column
    line = f"actions of shape {column.shape} are kept as vectors of {math.prod(column.shape)}"
    if line not in messages:
        messages.append(line)
    return Column(column.file, column.key, Shaped(column.data, (math.prod(column.shape),)))


@dataclass(frozen=True)
class Place:
    """The place of an observation field: its path in HDF5, and whether its channels move back to the end."""

    path: str
    turn: bool = False


class Layout:
    """The layout of an export: the spaces as JSON values, the place of each observation field, the shape of an action.

    The spaces of the source are written again if they still hold the same fields. Images that the import turned channels first are turned
    back.
    """

    def __init__(self, store: EpisodeStore, action: Field, say: Any) -> None:
        self.known = source_attributes(store, "minari")
        self._say = say
        fields = named_observations(store.schema.observation)
        space = _parsed(self.known.get("observation_space"))
        places = _places(space, fields) if space is not None else None
        if places is None:
            places = {name: Place(f"observations/{name}".rstrip("/")) for name in fields}
            made = {name: self._space(name or "observation", each, store) for name, each in fields.items()}
            space = made[""] if list(made) == [""] else {"type": "Dict", "subspaces": made}
        self.observation, self.places = space, places
        self.action_shape = action_shape(action)
        kind = kind_of(store.metadata)
        self.action = _same_action(_parsed(self.known.get("action_space")), action, kind) or action_space(action, self.action_shape, kind)
        if self.action["type"] == "Box":
            self.action_shape = tuple(self.action["shape"])

    def specs(self, env_id: Any) -> dict[str, str]:
        """Return the source's specifications of its environments, if the store still names the same environment; else {}."""
        spec = _parsed(self.known.get("env_spec"))
        if spec is None or spec.get("id") != env_id:
            return {}
        kept = {key: self.known.get(key) for key in ("env_spec", "eval_env_spec")}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in kept.items() if value}

    def _space(self, name: str, field: Field, store: EpisodeStore) -> dict[str, Any]:
        """Return the space of a field. One integer per step becomes Discrete: the bounds, or else the data, give the number of choices."""
        if field.dtype.kind not in "iu" or field.shape != ():
            return box_space(field, field.shape)
        low, high = field.low, field.high
        if low is None or high is None:
            rows = [each.observation[name] if isinstance(each.observation, dict) else each.observation for each in store.episodes]
            low, high = min(int(each.min()) for each in rows), max(int(each.max()) for each in rows)
            if low < 0 or high >= MAX_CHOICES:
                return box_space(field, ())
            low = 0
            self._say(f"{name!r} is declared as Discrete({high + 1}), counted in the data: the dataset declares no number")
        return {"type": "Discrete", "dtype": "int64", "start": int(low), "n": int(high) - int(low) + 1}


def box_space(field: Field, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return a field as a space in Minari's JSON. Missing bounds become infinite for floats and the limits of the dtype for integers."""
    if field.discrete:
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": field.n}
    dtype = field.dtype
    least, most = (-np.inf, np.inf) if dtype.kind == "f" else (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    bounds = [
        np.broadcast_to(limit if own is None else own, shape).astype(dtype).tolist()
        for own, limit in ((field.low, least), (field.high, most))
    ]
    return {"type": "Box", "dtype": dtype.name, "shape": list(shape), "low": bounds[0], "high": bounds[1]}


def action_space(action: Field, shape: tuple[int, ...], kind: str) -> dict[str, Any]:
    """Return the action field as a space in Minari's JSON. ``kind``: the kind of a vector of choices (`spaces.CHOICES`), else ""."""
    if kind == "MultiBinary":
        return {"type": kind, "n": shape[0]}
    if kind == "MultiDiscrete" and action.low is not None and action.high is not None:
        low, high = (np.broadcast_to(bound, shape).astype(int) for bound in (action.low, action.high))
        return {"type": kind, "dtype": action.dtype.name, "nvec": (high - low + 1).tolist(), "start": low.tolist()}
    return box_space(action, shape)


def _parsed(value: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _places(space: dict[str, Any], fields: dict[str, Field]) -> dict[str, Place] | None:
    """Return the places of the fields in the space of the source; None if it does not hold these fields."""
    plain = [leaf for leaf in leaves(space) if leaf.space.get("type") in PLAIN]
    if len(plain) != len(leaves(space)):
        return None
    single = space.get("type") not in ("Dict", "Tuple")
    names = {"": ""} if single else field_names([leaf.key for leaf in plain], [])
    places: dict[str, Place] = {}
    for leaf in plain:
        field = fields.get(names[leaf.key])
        try:
            shape = leaf.shape
        except InvalidInput:
            return None
        if field is None or (leaf.space["type"] == "Box" and leaf.space.get("dtype") != field.dtype.name):
            return None
        turned = len(shape) == 3 and field.shape == (shape[2], *shape[:2]) and field.shape != shape
        if not turned and field.shape != shape:
            return None
        places[names[leaf.key]] = Place("/".join(["observations", *h5_path(leaf.path)]), turned)
    return places if places.keys() == fields.keys() else None


def _same_action(space: dict[str, Any] | None, action: Field, kind: str) -> dict[str, Any] | None:
    """Return the action space of the source if the actions still have that form; else None."""
    if space is None or kind:
        return None
    try:
        if space["type"] == "Discrete":
            return space if action.discrete and (space["n"], space.get("start", 0)) == (action.n, 0) else None
        same = space["type"] == "Box" and not action.discrete and space["dtype"] == action.dtype.name
        return space if same and math.prod(space["shape"]) == math.prod(action_shape(action)) else None
    except (KeyError, TypeError):
        return None
