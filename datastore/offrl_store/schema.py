"""Field, Schema and Episode: the definition of a stored step.

An episode of T steps has T actions, T rewards and T+1 observations; with T observations the final one is missing. It is either
``terminated`` (the task ended, no bootstrap) or truncated (cut; the final observation is a state like any other).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import Any

import numpy as np

from offrl_store.errors import InvalidSchema

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
Arrays = Any  # an array-like, or a dict of them if the schema has several fields


@dataclass(frozen=True, eq=False)
class Field:
    """One array per step: its dtype, the shape of one row, and optionally inclusive bounds (scalars or arrays).

    A discrete action is an integer field of shape () with ``low=0, high=n-1``. Bounds are rounded to the field's dtype; only those
    of actions are enforced. An infinite bound means no bound. Raises InvalidSchema.
    """

    dtype: Any
    shape: tuple[int, ...] = ()
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise InvalidSchema(f"{self.dtype!r} is not a dtype", hint="use one of " + ", ".join(DTYPES)) from error
        if dtype.name not in DTYPES:
            raise InvalidSchema(f"dtype {dtype} cannot be stored", hint="use one of " + ", ".join(DTYPES))
        shape = (self.shape,) if isinstance(self.shape, (int, np.integer)) else tuple(self.shape)
        if any(not isinstance(n, (int, np.integer)) or n < 1 for n in shape):
            raise InvalidSchema(f"shape {shape} cannot be stored", hint="every dimension is a whole number of at least 1")
        object.__setattr__(self, "dtype", np.dtype(dtype.newbyteorder("<").str))  # NumPy's own object, as arrays have it
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        low, high = self._bound("low"), self._bound("high")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        if low is not None and high is not None and np.any(np.asarray(low) > np.asarray(high)):
            raise InvalidSchema(f"low {short(low)} is above high {short(high)}")

    @cached_property
    def inner(self) -> tuple[Any, Any]:
        """The highest lower bound and the lowest upper bound of a row's values; None without a bound.

        A value between the two is within the bounds of every dimension of a row, so one pass over an array can check it.
        """
        low, high = self.low, self.high
        return None if low is None else np.max(low).item(), None if high is None else np.min(high).item()

    def _bound(self, name: str) -> Any:
        """Return a bound as a read-only array of the field's shape and dtype (a Python number for shape ()), or None.

        Raises InvalidSchema.
        """
        value = getattr(self, name)
        if value is None:
            return None
        try:
            wide = np.asarray(value)
            if wide.dtype.kind not in "iufb":
                raise ValueError("not a number")
            with np.errstate(over="ignore", invalid="ignore"):
                bound = np.broadcast_to(wide, self.shape).astype(self.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidSchema(f"{name} {short(value)} does not fit a field of shape {self.shape} and dtype {self.dtype.name}") from error
        if self.dtype.kind == "f":
            if np.isnan(bound).any():
                raise InvalidSchema(f"{name} {short(value)} is not a number")
            if np.isinf(bound).all():
                return None
        elif not np.array_equal(bound, np.broadcast_to(wide, self.shape)):
            raise InvalidSchema(f"{name} {short(value)} does not fit dtype {self.dtype.name}")
        bound.setflags(write=False)
        return bound.item() if self.shape == () else bound

    @property
    def discrete(self) -> bool:
        """Whether this is a choice among ``n``: whole numbers of shape () from 0 to a declared upper bound."""
        return self.dtype.kind in "iu" and self.shape == () and self.low == 0 and self.high is not None

    @property
    def n(self) -> int:
        """Number of choices of a discrete field. Raises InvalidSchema for any other field."""
        if not self.discrete:
            raise InvalidSchema(f"{self!r} is not discrete", hint="declare an integer dtype, shape (), low=0 and high=n-1")
        return int(self.high) + 1

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"dtype": self.dtype.str, "shape": list(self.shape)}
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                value[name] = _bound_to_json(np.asarray(getattr(self, name)))
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Field:
        dtype = np.dtype(value["dtype"])
        bounds = {}
        for name, infinite in (("low", -np.inf), ("high", np.inf)):
            if value.get(name) is not None:
                bounds[name] = _bound_from_json(value[name], dtype, infinite)
        return cls(dtype, tuple(value["shape"]), **bounds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Field) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.dtype.str, self.shape))

    def __repr__(self) -> str:
        bounds = "".join(f", {name}={short(getattr(self, name))}" for name in ("low", "high") if getattr(self, name) is not None)
        return f"Field({self.dtype.name!r}, {self.shape}{bounds})"


@dataclass(frozen=True)
class Column:
    """A field's place in the store: ``name`` is the stem of its file, ``key`` its name in the dict of fields (None for a single field)."""

    name: str
    role: str
    key: str | None
    field: Field


@dataclass(frozen=True, eq=False)
class Schema:
    """The fields of a store. ``observation`` and ``action`` are a Field or a dict of Fields; ``extra`` holds further fields, one row per
    step.

    ``metadata`` is any JSON (env_id, source, licence). Raises InvalidSchema.
    """

    observation: Any
    action: Any
    reward: Field = Field("float32")
    extra: Mapping[str, Field] = dataclass_field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclass_field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("observation", "action", "extra"):
            fields = getattr(self, role)
            if isinstance(fields, Field) and role != "extra":
                continue
            named = isinstance(fields, Mapping) and all(isinstance(f, Field) for f in fields.values())
            if not named or (role != "extra" and not fields):
                expected = "a dict of Fields" if role == "extra" else "a Field or a dict of Fields"
                raise InvalidSchema(f"{role} is {short(fields)}, not {expected}")
            for name in fields:
                if not isinstance(name, str) or not NAME.match(name):
                    raise InvalidSchema(f"{role} field name {name!r} cannot be stored", hint="use letters, digits, '_', '-' and '.'")
            object.__setattr__(self, role, dict(fields))
        reward = self.reward
        if not isinstance(reward, Field) or reward.shape != () or reward.dtype.name in ("float16", "bool"):
            raise InvalidSchema(f"reward is {reward!r}", hint="a reward is one number: float32, float64 or an integer dtype, shape ()")
        try:
            object.__setattr__(self, "metadata", json.loads(json.dumps(dict(self.metadata), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise InvalidSchema(f"metadata is not JSON: {error}") from error

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every field, in the order of the checksum of an episode: observations, actions, reward, extras."""
        columns = []
        for role in ("observation", "action", "reward", "extra"):
            fields = getattr(self, role)
            if isinstance(fields, Field):
                columns.append(Column(role, role, None, fields))
            else:
                columns += [Column(f"{role}.{key}", role, key, f) for key, f in fields.items()]
        return tuple(columns)

    @property
    def row_bytes(self) -> int:
        return sum(column.field.row_bytes for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        columns = [{"column": c.name, "role": c.role, "name": c.key, **c.field.to_json()} for c in self.columns]
        return {"columns": columns, "metadata": self.metadata}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        roles: dict[str, Any] = {"extra": {}}
        for column in value["columns"]:
            parsed = Field.from_json(column)
            if column["name"] is None:
                roles[column["role"]] = parsed
            else:
                roles.setdefault(column["role"], {})[column["name"]] = parsed
        return cls(**roles, metadata=value["metadata"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def same_fields(self, other: Schema) -> bool:
        """Return whether episodes of one schema fit the other: all columns are equal; metadata may differ."""
        return self.to_json()["columns"] == other.to_json()["columns"]


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of T steps: action, reward and each extra have T rows, observations T+1 (T: the final one is missing).

    Values are arrays or nested lists, or dicts of them by field. ``terminated=False`` means truncated. The writer checks an episode when it
    appends it.
    """

    observation: Arrays
    action: Arrays
    reward: Any
    terminated: bool = False
    extra: Mapping[str, Any] = dataclass_field(default_factory=dict)

    @property
    def steps(self) -> int:
        """T, the number of actions taken."""
        return len(self.reward)

    @property
    def ret(self) -> float:
        """The undiscounted return over all T rewards."""
        return float(np.sum(self.reward, dtype=np.float64))

    @property
    def final_missing(self) -> bool:
        """Whether the observation after the last action is missing."""
        observation = self.observation
        return len(next(iter(observation.values())) if isinstance(observation, Mapping) else observation) == self.steps

    def __repr__(self) -> str:
        def shapes(value: Any) -> str:
            if isinstance(value, Mapping):
                return "{" + ", ".join(f"{k}: {shapes(v)}" for k, v in value.items()) + "}"
            return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"{type(value).__name__}[{len(value)}]"

        extra = f", extra={shapes(self.extra)}" if self.extra else ""
        return (
            f"Episode(steps={self.steps}, return={self.ret:.6g}, terminated={self.terminated}, "
            f"observation={shapes(self.observation)}, action={shapes(self.action)}{extra})"
        )


def short(value: Any) -> str:
    """Return the value on one line of at most 60 characters, for an error."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _bound_to_json(bound: np.ndarray) -> Any:
    if bound.ndim:
        return [_bound_to_json(row) for row in bound]
    return None if bound.dtype.kind == "f" and np.isinf(bound) else bound.item()


def _bound_from_json(value: Any, dtype: np.dtype, infinite: float) -> Any:
    if isinstance(value, list):
        return np.array([_bound_from_json(item, dtype, infinite) for item in value], dtype)
    return infinite if value is None else value
